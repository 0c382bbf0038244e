"""Sets being written: nothing is lost, and a killed run ends with the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star.config.files import packaged_file
from star.data.data_card import html_card, markdown_card, write_card
from star.data.filters import at_most_words, in_languages
from star.data.generate_offline import generate_rows
from star.data.quotas import shortfalls, wanted_rows, within_quotas
from star.data.rows import Reject, read_rows
from star.data.set_statistics import SetStatistics
from star.data.splits import choose_heldout_tools, count_heldout_without_call, split_by_tool, tool_identity
from star.data.tool_files import load_tools
from star.data.write_set import COMMIT_EVERY, apply_quotas, read_statistics, write_set
from star.errors import InputError
from star.json_file import write_json

COUNT = 2 * COMMIT_EVERY + 300


def records(position: int):
    return generate_rows(load_tools(packaged_file("tools.json")), COUNT, seed=5, start=position)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    write_set(records, out=root, state=root)
    return root


def test_kept_rows_and_rejects_are_all_that_came_in(whole: Path) -> None:
    statistics = read_statistics(whole)
    rows = list(read_rows(whole / "rows.jsonl"))
    rejects = [json.loads(line) for line in (whole / "rejects.jsonl").read_text().splitlines()]
    assert statistics.read == COUNT == len(rows) + len(rejects)
    assert statistics.rows == len(rows) == statistics.kinds.total()
    assert all(reject["reason"] and reject["detail"] for reject in rejects)
    assert statistics.rejects.total() == len(rejects)


@pytest.mark.parametrize("stop", [10, COMMIT_EVERY + 50, 2 * COMMIT_EVERY + 200])
def test_work_that_broke_off_ends_with_the_same_bytes(whole: Path, tmp_path: Path, stop: int) -> None:
    def failing(position: int):
        for number, row in enumerate(records(position), start=position):
            if number == stop:
                raise OSError("the machine went away")
            yield row

    with pytest.raises(OSError, match="went away"):
        write_set(failing, out=tmp_path, state=tmp_path)
    write_set(records, out=tmp_path, state=tmp_path)
    for name in ("rows.jsonl", "rejects.jsonl", "figures.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_killed_command_ends_with_the_same_bytes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "star.cli",
        "data",
        "synthesize",
        "--tools",
        str(packaged_file("tools.json")),
        "--rows",
        "4000",
        "--out",
    ]
    state = tmp_path / ".killed.partial" / "state" / "kept.sqlite"
    running = subprocess.Popen([*command, tmp_path / "killed"], stderr=subprocess.DEVNULL)
    began = time.monotonic()
    while time.monotonic() - began < 60 and not (
        (rows := state.parents[1] / "out" / "rows.jsonl").exists() and rows.stat().st_size > 1e6
    ):
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, tmp_path / name], check=True, capture_output=True)
    for name in ("rows.jsonl", "rejects.jsonl", "figures.json", "card.html"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_quotas_keep_what_is_wanted_and_say_what_is_missing(whole: Path, tmp_path: Path) -> None:
    rows = list(read_rows(whole / "rows.jsonl"))
    wanted = wanted_rows({"simple": 0.5, "multi-step": 0.25, "response": 0.25}, 200)
    judged = list(within_quotas(rows, rows, wanted=wanted, seed=1))
    kept = [row for row in judged if isinstance(row, dict)]
    assert len(judged) == len(rows)
    kinds = {kind: sum(row["kind"] == kind for row in kept) for kind in wanted}
    assert kinds == {"simple": 100, "multi-step": 50, "response": 0}
    assert shortfalls(kinds, wanted) == {"response": 50}
    assert {row.reason for row in judged if isinstance(row, Reject)} == {"over_quota", "no_quota"}
    statistics = apply_quotas(whole, out=tmp_path, shares={"simple": 1}, total=50, seed=1)
    assert statistics.rows == 50 == sum(1 for _ in read_rows(tmp_path / "rows.jsonl"))
    assert statistics.rejects.total() == COUNT - 50 == len((tmp_path / "rejects.jsonl").read_bytes().splitlines())


def test_held_out_tools_are_in_no_training_prompt(whole: Path) -> None:
    rows = list(read_rows(whole / "rows.jsonl"))
    tools = choose_heldout_tools(rows, heldout=100, seed=2)
    without_call = count_heldout_without_call(rows, tools=tools, heldout=100)
    assert 0 < without_call < 50
    sides = list(split_by_tool(rows, tools=tools, heldout=100, without_call=without_call))
    assert len(sides) == len(rows)
    held = [row for side, row in sides if side == "heldout"]
    train = [row for side, row in sides if side == "train"]
    assert len(held) == 100 < len(train)
    for row in train:
        assert not {tool_identity(tool) for tool in row["tools"]} & tools
    silent = [row for row in held if not row["messages"][-1]["tool_calls"]]
    assert len(silent) == without_call
    for row in held:
        called = {call["name"] for call in row["messages"][-1]["tool_calls"]}
        assert any(tool_identity(tool) in tools for tool in row["tools"] if tool["name"] in called or row in silent)
    # A question for a value is no training row where its tool may have been removed.
    whole_prompts = {row["id"]: row["tools"] for row in rows}
    assert all(row["tools"] == whole_prompts[row["id"]] for row in train if row["kind"] == "missing-parameter")
    with pytest.raises(InputError, match="hold out fewer"):
        choose_heldout_tools(rows, heldout=len(rows), seed=2)


def said(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}


def test_filters_of_length_and_language() -> None:
    english = in_languages(["en"])
    assert english(said("Could you please tell me what the weather will be like tomorrow?")) is None
    assert english(said("Könntest du mir bitte sagen, wie das Wetter morgen in Hamburg wird?"))[0] == "other_language"
    assert english(said("Oslo?")) is None
    assert at_most_words(5)(said("one two three four five"))[0] == "too_long"
    assert at_most_words(6)(said("one two three four five")) is None
    with pytest.raises(InputError, match="'klingon'"):
        in_languages(["klingon"])


def test_the_card_counts_every_reason_and_escapes_what_came_from_outside(tmp_path: Path) -> None:
    statistics = SetStatistics(read=5, rows=1)
    row = {**said("Hi"), "id": "1", "tools": [], "source": "<script>alert(1)</script>|x", "kind": "[a](javascript:x)"}
    statistics.add(row)
    for reason, count in (("missing_argument", 3), ("unreadable", 1)):
        for _ in range(count):
            statistics.add_reject(Reject("x", reason, "", {"source": "<b>"}))
    page, text = html_card(statistics), markdown_card(statistics)
    assert "<script>alert" not in page
    assert "<b>: missing" not in page
    assert "<svg" in page
    assert "| missing_argument | 3 |" in text
    assert "[a](" not in text
    assert "no known licence" in text
    with pytest.raises(InputError, match="not a data set"):
        write_card(tmp_path)


def test_every_row_of_the_real_sample_is_kept_or_has_a_reason(shared: Path, tmp_path: Path) -> None:
    from star.data.importers import import_rows

    path = shared / "data" / "xlam_sample.jsonl"
    statistics = write_set(lambda position: import_rows(path, source="xlam"), out=tmp_path, state=tmp_path)
    write_card(tmp_path)
    assert statistics.read == 512 == statistics.rows + statistics.rejects.total()
    card = (tmp_path / "card.md").read_text()
    for reason, count in statistics.rejects.items():
        assert f"| {reason} | {count} |" in card


def test_a_half_of_a_surrogate_pair_that_a_reject_quotes_does_not_end_the_set(tmp_path: Path) -> None:
    write_json(tmp_path / "figures.json", {"quoted": "a\ud800b", "å": 1})
    assert json.loads((tmp_path / "figures.json").read_bytes()) == {"quoted": "a\ud800b", "å": 1}
    assert "å".encode() in (tmp_path / "figures.json").read_bytes()
