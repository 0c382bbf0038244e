"""Rows come out sorted, with their prompts, in the same bytes, however they were divided over runs, shards and merges."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from star.errors import InputError
from star.teacher import external_sort
from star.teacher.external_sort import merge_sorted, sort_rows
from star.topk.row_files import Rows, RowWriter, drop_repeated_prompts, read_groups
from star.topk.sequences import MAPPED_SEQUENCES, SCHEMA, SEQUENCES, copy_sequences, read_lengths, read_sequences

TOKENS = st.lists(st.integers(0, 200_000), max_size=5)
# Row ids that sort between the samples of another row, as "a#0" does: its sample "a#0#0" comes after "a#0".
ROW_IDS = st.lists(st.text("a#0!", min_size=1, max_size=4), unique=True, max_size=12)


def samples(row_ids: list[str], prompts: list[list[int]], completions: list[list[int]]) -> list[dict[str, Any]]:
    """One to four samples for each row id."""
    return [
        {"id": f"{row_id}#{number}", "row_id": row_id, "prompt_ids": prompt, "completion_ids": completion[number:]}
        | {"completion": f"{completion}", "reward": 0.5}
        for row_id, prompt, completion in zip(row_ids, prompts, completions, strict=True)
        for number in range(1 + len(completion) % 4)
    ]


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return drop_repeated_prompts(pa.Table.from_pylist(rows, schema=SCHEMA))


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [row for group in read_groups(file) for row in Rows(group).take(np.arange(len(group))).to_pylist()]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row_ids=ROW_IDS, data=st.data(), group=st.integers(1, 7), fan_in=st.integers(2, 4), shards=st.integers(1, 9))
def test_any_division_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_ids, data, group: int, fan_in: int, shards: int
) -> None:
    monkeypatch.setattr(external_sort, "FAN_IN", fan_in)
    lists = st.lists(TOKENS, min_size=len(row_ids), max_size=len(row_ids))
    rows = samples(row_ids, data.draw(lists), data.draw(lists))
    by_row = [[row for row in rows if row["row_id"] == row_id] for row_id in data.draw(st.permutations(row_ids))]

    def sorted_file(tables: list[pa.Table], name: str, *, run_bytes: int) -> Path:
        monkeypatch.setattr(external_sort, "RUN_BYTES", run_bytes)
        sort_rows(tables, tmp_path / name, SCHEMA, scratch=tmp_path, rows_per_group=group)
        return tmp_path / name

    tables = list(map(table, by_row))
    whole = sorted_file(tables, SEQUENCES, run_bytes=2**30)
    assert rows_of(whole) == sorted(rows, key=lambda row: row["id"])
    in_runs = sorted_file(tables, "in-runs.parquet", run_bytes=1)
    parts = [sorted_file(tables[number::shards], f"part-{number}.parquet", run_bytes=300) for number in range(shards)]
    merge_sorted(parts, tmp_path / "merged.parquet", SCHEMA, scratch=tmp_path, rows_per_group=group)
    assert whole.read_bytes() == in_runs.read_bytes() == (tmp_path / "merged.parquet").read_bytes()
    assert not list(tmp_path.glob("run-*")) and not list(tmp_path.glob("merged-*"))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row_ids=ROW_IDS, data=st.data(), group=st.integers(1, 7))
def test_copies_of_a_part_are_read_at_any_place_and_merge_to_the_bytes_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_ids, data, group: int
) -> None:
    monkeypatch.setitem(RowWriter.__init__.__kwdefaults__, "rows_per_group", group)
    monkeypatch.setitem(merge_sorted.__kwdefaults__, "rows_per_group", group)
    lists = st.lists(TOKENS, min_size=len(row_ids), max_size=len(row_ids))
    rows = sorted(samples(row_ids, data.draw(lists), data.draw(lists)), key=lambda row: row["id"])
    for name in ("rollout", "part", "rest", "all"):
        (tmp_path / name).mkdir(exist_ok=True)
    with RowWriter(tmp_path / "rollout" / SEQUENCES, SCHEMA) as writer:
        writer.write(pa.Table.from_pylist(rows, schema=SCHEMA))
    lengths = read_lengths(tmp_path / "rollout")
    assert lengths.prompts_S.tolist() == [len(row["prompt_ids"]) for row in rows]
    assert lengths.completions_S.tolist() == [len(row["completion_ids"]) for row in rows]
    taken = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    files = []
    for name, kept in {"part": taken, "rest": ~taken, "all": np.ones(len(rows), bool)}.items():
        copy_sequences(tmp_path / "rollout", tmp_path / name, taken=kept)
        files.append(tmp_path / name / MAPPED_SEQUENCES)
        ids, sequences = read_sequences(tmp_path / name)
        expected = [row for row, is_kept in zip(rows, kept, strict=True) if is_kept]
        for index in reversed(range(len(expected))):
            assert ids[index] == expected[index]["id"]
            assert sequences[index].prompt_ids == expected[index]["prompt_ids"]
            assert sequences[index].completion_ids == expected[index]["completion_ids"]
        assert sequences.completion_lengths().tolist() == [len(row["completion_ids"]) for row in expected]
    merge_sorted(files[:2], tmp_path / MAPPED_SEQUENCES, SCHEMA, scratch=tmp_path)
    assert (tmp_path / MAPPED_SEQUENCES).read_bytes() == files[2].read_bytes()


def test_a_prompt_is_stored_once_per_group_and_row(tmp_path: Path) -> None:
    rows = samples(["a", "b"], [[1, 2], [3]], [[9, 9, 9], [9]])
    with RowWriter(tmp_path / SEQUENCES, SCHEMA, rows_per_group=3) as writer:
        writer.write(pa.Table.from_pylist(rows, schema=SCHEMA))
    stored = [group["prompt_ids"].to_pylist() for group in read_groups(tmp_path / SEQUENCES)]
    assert stored == [[[1, 2], None, None], [[1, 2], [3], None]]


def test_a_group_that_begins_without_a_prompt_is_refused(tmp_path: Path) -> None:
    rows = [row | {"prompt_ids": None} for row in samples(["a"], [[]], [[9]])]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / SEQUENCES)
    for read in (read_sequences, read_lengths):
        with pytest.raises(InputError, match="the first sequence of a group has no prompt"):
            read(tmp_path)
