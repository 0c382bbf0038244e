"""The split: disjoint, exact in size, stratified, and a matter of content only."""

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from star.data.rows import query_of, target_of
from star.data.splits import split
from star.errors import InputError


def row(number: int, kind: str = "simple", target: str = "Yes.") -> dict:
    messages = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": target}]
    return {"id": f"row-{number}", "messages": messages, "tools": [], "source": "test", "kind": kind}


def ids(rows: list[dict]) -> set[str]:
    return {row["id"] for row in rows}


ROWS = st.lists(
    st.builds(row, st.integers(0, 200), st.sampled_from(["simple", "parallel", "irrelevance"])),
    min_size=2,
    max_size=40,
    unique_by=lambda made: made["id"],
)


@settings(deadline=None)
@given(rows=ROWS, seed=st.integers(0, 3), data=st.data())
def test_the_sides_are_disjoint_and_no_matter_of_order(rows: list[dict], seed: int, data: st.DataObject) -> None:
    heldout = data.draw(st.integers(0, len(rows) - 1))
    train, held = split(rows, heldout=heldout, seed=seed)
    assert (len(held), len(train)) == (heldout, len(rows) - heldout)
    assert ids(train) | ids(held) == ids(rows)
    assert ids(train).isdisjoint(ids(held))
    shuffled = data.draw(st.permutations(rows))
    again_train, again_held = split(shuffled, heldout=heldout, seed=seed)
    assert (ids(again_train), ids(again_held)) == (ids(train), ids(held))


@settings(deadline=None)
@given(rows=ROWS, data=st.data())
def test_each_kind_is_held_out_in_proportion(rows: list[dict], data: st.DataObject) -> None:
    heldout = data.draw(st.integers(0, len(rows) - 1))
    _, held = split(rows, heldout=heldout, seed=0)
    counts = Counter(row["kind"] for row in held)
    for kind, size in Counter(row["kind"] for row in rows).items():
        assert abs(counts[kind] - heldout * size / len(rows)) < 1


@settings(deadline=None)
@given(rows=ROWS, seed=st.integers(0, 3), data=st.data())
def test_one_more_row_moves_no_more_than_one_at_the_edge(rows: list[dict], seed: int, data: st.DataObject) -> None:
    rows = [{**row, "kind": "simple"} for row in rows]
    added = row(500)
    heldout = data.draw(st.integers(0, len(rows) - 1))
    _, before = split(rows, heldout=heldout, seed=seed)
    _, after = split([added, *rows], heldout=heldout, seed=seed)
    assert ids(after) - ids(before) <= {added["id"]}
    assert len(ids(before) - ids(after)) <= 1


@settings(deadline=None)
@given(copies=st.lists(st.integers(0, 6), min_size=8, max_size=30), seed=st.integers(0, 3))
def test_a_query_with_its_target_stays_on_one_side(copies: list[int], seed: int) -> None:
    rows = [{**row(number), "id": str(place)} for place, number in enumerate(copies)]
    try:
        train, held = split(rows, heldout=3, seed=seed)
    except InputError:
        assume(False)
    pairs = [{(query_of(row), target_of(row)) for row in side} for side in (train, held)]
    assert pairs[0].isdisjoint(pairs[1])
    assert len(held) == 3


@settings(deadline=None)
@given(
    turns=st.lists(st.lists(st.sampled_from(["simple", "response"]), min_size=1, max_size=3), min_size=4, max_size=20)
)
def test_conversations_are_never_on_both_sides(turns: list[list[str]]) -> None:
    rows = []
    for number, kinds in enumerate(turns):
        messages = []
        for kind in kinds:
            messages = [*messages, *row(number * 10 + len(messages), kind)["messages"]]
            rows.append({**row(0, kind), "messages": messages, "id": f"c{number}#{len(messages) - 1}"})
    train, held = split(rows, heldout=len(rows) // 4, seed=0)
    assert len(held) == len(rows) // 4
    sides = [{row["id"].partition("#")[0] for row in side} for side in (train, held)]
    assert sides[0].isdisjoint(sides[1])


def test_an_id_that_only_looks_like_a_turns_is_a_row_of_its_own() -> None:
    rows = [{**row(number), "id": f"issue#{number + 5}"} for number in range(20)]
    train, held = split(rows, heldout=5, seed=0)
    assert (len(train), len(held)) == (15, 5)


def test_another_seed_holds_out_other_rows() -> None:
    rows = [row(number) for number in range(100)]
    assert ids(split(rows, heldout=10, seed=0)[1]) != ids(split(rows, heldout=10, seed=1)[1])


def test_both_sides_keep_the_order_given() -> None:
    rows = [row(number) for number in range(50)]
    train, held = split(rows, heldout=10, seed=0)
    assert [row for row in rows if row in train] == train
    assert [row for row in rows if row in held] == held


@pytest.mark.parametrize("heldout", [5, 6, -1])
def test_too_few_rows_are_an_input_error(heldout: int) -> None:
    with pytest.raises(InputError, match=f"cannot hold out {heldout} of 5 rows"):
        split([row(number) for number in range(5)], heldout=heldout, seed=0)


def test_rows_that_all_repeat_cannot_be_split() -> None:
    with pytest.raises(InputError, match="repeat each other"):
        split([{**row(1), "id": str(place)} for place in range(5)], heldout=2, seed=0)
