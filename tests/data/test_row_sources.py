"""`data.sources`: the rows of several sets in one run, all or a sample of each, in the wanted shares."""

import json
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.config.data import Data, RowSource
from star.data.filters import estimate_prompt_tokens
from star.data.row_sources import choose_samples, sample_rank
from star.data.rows import read_json_lines, read_rows
from star.data.synthesize import make_data_set
from star.data.turn_labels import label_turn
from star.doctor.sample_rows import most_rows
from star.errors import InputError

TOOLS = [
    {"name": name, "description": f"Look up {name}", "parameters": {"place": {"type": "str"}}}
    for name in ("weather", "traffic")
]
# One word per place, so that no row is a near duplicate of another one.
PLACES = [
    "".join(chr(97 + byte % 26) for byte in sha256(bytes([n // 256, n % 256])).digest()[:10]) for n in range(1000)
]


def call(number: int, *, tool: str = "weather") -> dict:
    return {"name": tool, "arguments": {"place": PLACES[number]}}


def conversation(number: int, kind: str) -> list[dict]:
    """A conversation about a place of its own, whose last turn has the labels of the kind."""
    ask = {"role": "user", "content": f"What is going on in {PLACES[number]}?"}
    first = [{"role": "assistant", "content": None, "tool_calls": [call(number)]}, {"role": "tool", "content": "Rain."}]
    calls = [call(number, tool="traffic")] if "parallel" not in kind else [call(number), call(number, tool="traffic")]
    last = {"role": "assistant", "content": None, "tool_calls": calls}
    if "response" in kind:
        last = {"role": "assistant", "content": f"It rains in {PLACES[number]}.", "tool_calls": []}
    return [ask, *(first if "later" in kind else []), last]


def write_source(file: Path, counts: dict[str, int], *, start: int = 0) -> Path:
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rows = [
        {"id": f"{file.stem}-{number}", "messages": conversation(start + number, kind), "tools": TOOLS}
        for number, kind in enumerate(kinds)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make(folder: Path, *sources: dict[str, Any], heldout_rows: int = 5, **data: Any) -> tuple[list[dict], dict]:
    """Makes a data set of these sources alone. Returns all of its rows, and the metrics."""
    settings = Data.model_validate({"sources": sources, "generated_rows": 0, "heldout_rows": heldout_rows, **data})
    out, state = folder / "out", folder / "state"
    for place in (out, state):
        place.mkdir(parents=True, exist_ok=True)
    metrics = make_data_set(settings, seed=7, out=out, state=state)
    rows = [row for name in ("train.jsonl", "heldout.jsonl") for row in read_rows(out / name)]
    return rows, metrics


def rejects_of(folder: Path) -> Counter:
    return Counter(json.loads(line)["reason"] for line in (folder / "out" / "rejects.jsonl").read_text().splitlines())


def labels_of(rows: list[dict]) -> Counter:
    found: Counter = Counter()
    for row in rows:
        turn = label_turn(row["messages"])
        assert row["turn"] == {"labels": list(turn.labels), "number": turn.number, "calls": turn.calls}
        found.update(
            {label.replace("-", "_") for label in turn.labels} | ({"single_turn"} if turn.number == 1 else set())
        )
    return found


def test_every_set_is_used_under_its_name_and_licence(tmp_path: Path) -> None:
    whole = write_source(tmp_path / "whole.jsonl", {"single": 40})
    part = write_source(tmp_path / "part.jsonl", {"single": 100}, start=100)
    rows, metrics = make(
        tmp_path,
        {"path": str(whole), "source": "xlam"},
        {"path": str(part), "source": "own", "share": 0.3, "licence": "MIT"},
    )
    used = Counter((row["source"], row["licence"]) for row in rows)
    assert used == {("xlam", "CC-BY-4.0"): 40, ("own", "MIT"): 30}
    assert metrics["imported"] == 140 and rejects_of(tmp_path) == {"not_sampled": 70}
    # Nobody asked for rows of the package's tools.
    assert "tools_not_called" not in metrics
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["rows"] == 70 and figures["labels"] == {"single": 70} and figures["turn_numbers"] == {"1": 70}
    assert "Labels of the last turn" in (tmp_path / "out" / "card.md").read_text()


def test_rows_of_a_sample_are_held_out_no_more_often_than_others(tmp_path: Path) -> None:
    part = write_source(tmp_path / "part.jsonl", {"single": 500})
    whole = write_source(tmp_path / "whole.jsonl", {"single": 50}, start=500)
    make(
        tmp_path,
        {"path": str(part), "source": "part", "rows": 50},
        {"path": str(whole), "source": "whole"},
        heldout_rows=40,
    )
    held = Counter(row["source"] for row in read_rows(tmp_path / "out" / "heldout.jsonl"))
    assert held["part"] + held["whole"] == 40 and 12 <= held["part"] <= 28


def test_a_sample_is_stratified_as_the_papers(tmp_path: Path) -> None:
    given_rows = {
        "single": 200,
        "response": 60,
        "parallel": 30,
        "later parallel": 80,
        "later single": 60,
        "later response": 70,
    }
    source = {"path": str(write_source(tmp_path / "mind.jsonl", given_rows)), "source": "toolmind"}
    rows, _ = make(tmp_path / "a", {**source, "rows": 100, "strata": {}})
    assert len(rows) == 100 and rejects_of(tmp_path / "a") == {"not_sampled": 400}
    # Of the 500 rows 26% say something and 52% make a single call: both are taken up to their shares, and parallel calls fill the rest.
    found = labels_of(rows)
    assert 15 <= found["response"] <= 20 and 40 <= found["single"] <= 55 and found["single_turn"] >= 30
    assert found["response"] + found["single"] + found["parallel"] == 100
    # The set has enough of all: what the shares leave no room for is not missing.
    assert json.loads((tmp_path / "a" / "out" / "figures.json").read_text())["shortfalls"] == {}
    # The choice is the content's: another order of the file gives the same rows.
    lines = (tmp_path / "mind.jsonl").read_text().splitlines()
    (tmp_path / "mind.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    again, _ = make(tmp_path / "b", {**source, "rows": 100, "strata": {}})
    assert {row["id"] for row in again} == {row["id"] for row in rows}


def test_what_a_source_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write_source(tmp_path / "mind.jsonl", {"single": 40, "parallel": 10})
    rows, _ = make(tmp_path, {"path": str(file), "source": "mind", "rows": 60, "strata": {"response": 0}})
    # Single calls have their half; the half of parallel ones and later turns are missing.
    assert labels_of(rows) == {"single": 30, "parallel": 10, "single_turn": 40}
    missing = {"mind: rows": 20, "mind: multi_turn": 42, "mind: multi_step": 18, "mind: parallel": 20}
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["shortfalls"] == missing
    assert "20 rows short of mind: parallel" in capsys.readouterr().err


def test_sets_with_the_same_ids_are_read_whole(tmp_path: Path) -> None:
    for name, start in (("tickets", 0), ("mails", 100)):
        rows = [{"id": str(n), "messages": conversation(start + n, "single"), "tools": TOOLS} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows, metrics = make(
        tmp_path, *({"path": str(tmp_path / f"{name}.jsonl"), "source": name} for name in ("tickets", "mails"))
    )
    assert metrics["rejected"] == 0 and len(rows) == 80
    assert {row["id"] for row in rows} >= {"tickets-0", "mails-0"}
    # The mark of the set is no field of a row.
    assert set(rows[0]) == {
        "id",
        "messages",
        "tools",
        "source",
        "kind",
        "turn",
        "licence",
        "generator",
        "seed",
        "parents",
    }


def test_rows_of_ones_own_are_in_no_sample(tmp_path: Path) -> None:
    given_rows = write_source(tmp_path / "xlam.jsonl", {"single": 40})
    own = tmp_path / "own.jsonl"
    # As `star data import` wrote them, from a part of the same origin.
    provenance = {"source": "xlam", "licence": "CC-BY-4.0", "generator": "import", "seed": None, "parents": []}
    rows = [
        {"id": f"own-{n}", "messages": conversation(200 + n, "single"), "tools": TOOLS, "kind": "simple", **provenance}
        for n in range(30)
    ]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, _ = make(tmp_path, {"path": str(given_rows), "source": "xlam", "rows": 10}, seed_data=str(own))
    assert sum(row["id"].startswith("own-") for row in made) == 30 and len(made) == 40


def test_a_sampled_set_does_not_take_rows_from_a_whole_one(tmp_path: Path) -> None:
    big = write_source(tmp_path / "big.jsonl", {"single": 100})
    own = write_source(tmp_path / "own.jsonl", {"single": 40})
    rows, _ = make(tmp_path, {"path": str(big), "source": "big", "rows": 10}, {"path": str(own), "source": "own"})
    assert Counter(row["source"] for row in rows) == {"own": 40, "big": 10}


def test_a_set_that_gives_no_row_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = {"path": str(write_source(tmp_path / "good.jsonl", {"single": 40})), "source": "good"}
    bad = tmp_path / "bad.jsonl"
    broken = {"id": "r0", "source": "reddit", "messages": conversation(500, "single"), "tools": TOOLS}
    broken["messages"][-1]["tool_calls"] = [{"name": "weather", "arguments": "not json"}]
    bad.write_text(json.dumps(broken) + "\n")
    with pytest.raises(InputError, match=r"`data.sources.1`: no row of mails is used \(mails:1: unreadable: "):
        make(tmp_path / "none", good, {"path": str(bad), "source": "mails"})
    seed_data = str(write_source(tmp_path / "seed.jsonl", {"single": 40}, start=200))
    small = {**good, "source": "small", "share": 0.001}
    with pytest.raises(InputError, match=r"no row of small is used \(small-good-\d+: not_sampled: the sample of small"):
        make(tmp_path / "few", small, seed_data=seed_data)
    # With one good row it is a warning.
    bad.write_text(bad.read_text() + json.dumps({"messages": conversation(501, "single"), "tools": TOOLS}) + "\n")
    make(tmp_path / "some", good, {"path": str(bad), "source": "mails"})
    said = capsys.readouterr().err
    assert "more than a tenth of mails was left out" in said and "more than a tenth of good" not in said
    [reject] = read_json_lines(tmp_path / "some" / "out" / "rejects.jsonl")
    assert (reject[1]["id"], reject[1]["source"]) == ("mails:1", "mails")


def test_a_made_set_is_read_without_its_rejects(tmp_path: Path) -> None:
    file = write_source(tmp_path / "first.jsonl", {"single": 20})
    file.write_text(file.read_text() * 2)
    _, metrics = make(tmp_path / "a", {"path": str(file), "source": "first"})
    assert metrics["rejected"] == 20
    rows, metrics = make(tmp_path / "b", {"path": str(tmp_path / "a" / "out"), "source": "again"})
    assert len(rows) == metrics["imported"] == 20 and metrics["rejected"] == 0


def test_turns_of_a_conversation_are_on_one_side(tmp_path: Path) -> None:
    file = write_source(tmp_path / "ace.jsonl", {"later single": 40, "later response": 30, "later parallel": 20})
    rows, metrics = make(tmp_path, {"path": str(file), "source": "ace", "every_turn": True}, heldout_rows=31)
    assert metrics["heldout"] == 31 and len(rows) + metrics["rejected"] == 180
    assert set(rejects_of(tmp_path)) <= {"heldout_conversation"} and metrics["rejected"] <= 3
    held, trained = (
        {row["id"].partition("#")[0] for row in read_rows(tmp_path / "out" / f"{side}.jsonl")}
        for side in ("heldout", "train")
    )
    assert held.isdisjoint(trained) and len(held) <= 20
    # All kinds are held out in proportion, as without conversations.
    kinds = Counter(row["kind"] for row in read_rows(tmp_path / "out" / "heldout.jsonl"))
    for kind, count in Counter(row["kind"] for row in rows).items():
        assert abs(kinds[kind] - 31 * count / len(rows)) < 2


def test_limits_leave_long_conversations_out(tmp_path: Path) -> None:
    file = write_source(tmp_path / "mind.jsonl", {"single": 20, "later single": 10})
    long = {"id": "long", "messages": conversation(500, "single"), "tools": TOOLS}
    long["messages"][0]["content"] += " Tell me" + " more" * 3000
    file.write_text(file.read_text() + json.dumps(long) + "\n")
    strata = {"max_turns": 1, "max_prompt_tokens": 2000, "single_turn": 1.0, "parallel": 0.0}
    rows, _ = make(tmp_path, {"path": str(file), "source": "mind", "share": 1.0, "strata": strata})
    assert len(rows) == 20 and rejects_of(tmp_path) == {"too_many_turns": 10, "too_long": 1}


def test_a_limit_of_the_prompt_holds_for_rows_of_every_origin(tmp_path: Path) -> None:
    path = write_source(tmp_path / "mixed.jsonl", {"single": 20, "single later": 30})
    given = {"seed_data": str(path), "generated_rows": 40, "heldout_rows": 10}
    all_rows, _ = make(tmp_path / "all", **given)
    lengths = sorted(map(estimate_prompt_tokens, all_rows))
    limit = lengths[len(lengths) // 2]
    rows, metrics = make(tmp_path / "short", **given, max_prompt_tokens=limit)
    wanted = {row["id"] for row in all_rows if estimate_prompt_tokens(row) <= limit}
    assert {row["id"] for row in rows} == wanted
    assert {row["source"] for row in all_rows} == {"seed", "generated"}
    assert metrics["rejected_too_long"] == len(all_rows) - len(rows) > 0


def test_every_turn_of_a_set_can_be_a_row(tmp_path: Path) -> None:
    file = write_source(tmp_path / "ace.jsonl", {"later single": 20})
    rows, _ = make(tmp_path, {"path": str(file), "source": "toolace", "every_turn": True}, heldout_rows=4)
    assert Counter(row["turn"]["number"] for row in rows) == {1: 20, 2: 20}


def test_a_run_that_broke_off_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [
        {"path": str(write_source(tmp_path / f"{name}.jsonl", {"single": 60}, start=start)), "source": name, "rows": 30}
        for name, start in (("first", 0), ("second", 100))
    ]
    make(tmp_path / "whole", *sources, generated_rows=40)
    monkeypatch.setattr("star.data.write_set.COMMIT_EVERY", 25)
    with monkeypatch.context() as patch:
        patch.setattr(
            "star.data.synthesize.generate_rows", lambda *args, **settings: (_ for _ in ()).throw(OSError("gone"))
        )
        with pytest.raises(OSError, match="gone"):
            make(tmp_path / "killed", *sources, generated_rows=40)
    make(tmp_path / "killed", *sources, generated_rows=40)
    for name in ("train.jsonl", "heldout.jsonl", "rejects.jsonl", "figures.json"):
        assert (tmp_path / "killed" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()


def test_rows_without_an_answer_are_trained_on_and_never_held_out(tmp_path: Path) -> None:
    file = write_source(tmp_path / "own.jsonl", {"single": 20})
    asked = [{"id": n, "query": f"Sing about {PLACES[600 + n]}!", "answers": "[]", "tools": TOOLS} for n in range(30)]
    (tmp_path / "xlam.json").write_text(json.dumps(asked))
    sources = [{"path": str(file), "source": "own"}, {"path": str(tmp_path / "xlam.json"), "source": "xlam"}]
    rows, metrics = make(tmp_path, *sources, heldout_rows=10)
    unanswered = [row for row in rows if row.get("unanswered")]
    assert len(unanswered) == metrics["unanswered"] == 30
    assert all(row["kind"] == "irrelevance" and not row["messages"][-1]["content"] for row in unanswered)
    assert not any(row.get("unanswered") for row in read_rows(tmp_path / "out" / "heldout.jsonl"))
    assert "30 rows have no answer: the teacher gives it" in (tmp_path / "out" / "card.md").read_text()
    # The set can be read again.
    again, _ = make(tmp_path / "again", {"path": str(tmp_path / "out" / "train.jsonl"), "source": "mine"})
    assert sum(row.get("unanswered", False) for row in again) == 30
    with pytest.raises(InputError, match="cannot hold out 20 of 20 rows"):
        make(tmp_path / "none", *sources, heldout_rows=20)


def test_real_rows_of_xlam_in_the_papers_shares(shared: Path, tmp_path: Path) -> None:
    file = shared / "data" / "xlam_sample.jsonl"
    if not file.is_file():
        pytest.skip("needs the sample of xLAM in ../shared/data")
    rows, metrics = make(tmp_path, {"path": str(file), "source": "xlam", "rows": 200, "strata": {}}, heldout_rows=50)
    assert len(rows) == 200 == metrics["train"] + metrics["heldout"]
    found = labels_of(rows)
    # Every row of xLAM is one answer to one question.
    assert found["single_turn"] == 200 and found["parallel"] == 100 and found["multi_step"] == found["response"] == 0
    shortfalls = json.loads((tmp_path / "out" / "figures.json").read_text())["shortfalls"]
    assert shortfalls == {"xlam: response": 40, "xlam: multi_step": 60, "xlam: multi_turn": 140}


@given(
    kinds=st.lists(
        st.sampled_from(["single", "parallel", "response", "later single", "later parallel"]), min_size=1, max_size=60
    ),
    rows=st.integers(1, 40),
    response=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_a_sample_has_at_most_its_size_and_its_share_of_replies(kinds: list[str], rows: int, response: float) -> None:
    given_rows = [
        {"source": "mind", "messages": conversation(number, kind), "tools": TOOLS} for number, kind in enumerate(kinds)
    ]
    settings = {
        "path": {"path": "mind.jsonl", "sha256": ""},
        "source": "mind",
        "rows": rows,
        "strata": {"response": response},
    }
    sources = [RowSource.model_validate(settings)]
    chosen = choose_samples(given_rows, sources, seed=3)["mind"]
    backwards = choose_samples(reversed(given_rows), sources, seed=3)["mind"]
    assert chosen == backwards
    used = [row for row in given_rows if sample_rank(row, 3) in chosen.ranks]
    assert len(used) == len(chosen.ranks) == rows - chosen.shortfalls["rows"]
    assert sum("response" in label_turn(row["messages"]).labels for row in used) <= int(response * rows)


def test_of_a_folder_that_star_wrote_the_seed_data_are_its_rows_without_the_rejects(tmp_path: Path) -> None:
    rows, _ = make(tmp_path, seed_data=str(write_source(tmp_path / "mine.jsonl", {"single": 30})))
    rejected = conversation(40, "single")
    (tmp_path / "out" / "rejects.jsonl").write_text(
        json.dumps(
            {"reason": "invalid", "row": {"messages": rejected, "tools": TOOLS}, "messages": rejected, "tools": TOOLS}
        )
        + "\n"
    )
    again, metrics = make(tmp_path / "again", seed_data=str(tmp_path / "out"))
    assert {row["id"] for row in again} == {row["id"] for row in rows}
    assert metrics["imported"] == 30 and not rejects_of(tmp_path / "again")
    settings = Data.model_validate({"seed_data": str(tmp_path / "out"), "generated_rows": 0})
    assert most_rows(settings, enough=100) == 30
