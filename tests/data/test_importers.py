"""Importing other people's records: every form read, and every record that cannot be read handed back."""

import json
from pathlib import Path

import pytest

from star.data.importers import import_rows
from star.data.rows import Reject, ordered_row
from star.errors import InputError

TOOL = {
    "name": "get_weather",
    "description": "Weather.",
    "parameters": {"city": {"type": "str"}, "n": {"type": "int, optional"}},
}
CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}
USER = {"role": "user", "content": "Weather in Oslo?"}


def imported(folder: Path, *records: object) -> list[dict | Reject]:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return list(import_rows(path, source="test"))


def record(*, calls: list | None = None, content: str | None = None, before: tuple = ()) -> dict:
    answer = {"role": "assistant", "content": content, "tool_calls": calls}
    return {"id": "r1", "messages": [USER, *before, answer], "tools": [TOOL]}


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
        {"id": "call_1", "type": "function", "function": CALL},
        {"function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
    ],
)
def test_calls_of_every_form_become_the_same_row(tmp_path: Path, call: dict) -> None:
    [row] = imported(tmp_path, record(calls=[call]))
    assert row["messages"][-1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [CALL],
        "reasoning_content": None,
    }
    assert row["tools"][0]["parameters"]["required"] == ["city"]
    assert (row["id"], row["source"], row["kind"]) == ("r1", "test", "simple")


@pytest.mark.parametrize("arguments", [None, "", " ", {}])
def test_a_call_without_arguments_has_none(tmp_path: Path, arguments: object) -> None:
    [row] = imported(tmp_path, record(calls=[{"name": "get_weather", "arguments": arguments}]))
    assert row["messages"][-1]["tool_calls"] == [{"name": "get_weather", "arguments": {}}]


def test_xlam_as_published_is_a_list_with_json_in_text(tmp_path: Path) -> None:
    published = {"id": 7, "query": "Weather in Oslo?", "answers": json.dumps([CALL]), "tools": json.dumps([TOOL])}
    path = tmp_path / "xlam.json"
    path.write_text(json.dumps([published], indent=1))
    [row] = import_rows(path, source="xlam")
    [same] = imported(tmp_path, {**published, "answers": [CALL], "tools": [TOOL]})
    assert row["id"] == "xlam-7"
    assert row["messages"] == same["messages"] == imported(tmp_path, record(calls=[CALL]))[0]["messages"]
    assert ordered_row(row) == row


def test_an_id_is_made_from_the_content(tmp_path: Path) -> None:
    nameless = {key: value for key, value in record(calls=[CALL]).items() if key != "id"}
    first, again, other = imported(tmp_path, nameless, nameless, {**nameless, "tools": []})
    assert first["id"] == again["id"] != other["id"]
    assert first["id"].startswith("test-")


def test_the_kind_says_what_the_target_does(tmp_path: Path) -> None:
    result = ({"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "12", "tool_call_id": "x"})
    rows = imported(
        tmp_path,
        record(calls=[CALL]),
        record(calls=[CALL, CALL]),
        record(content="I cannot."),
        record(content="Twelve.", before=result),
        record(calls=[CALL], before=result),
        {**record(calls=[CALL]), "kind": "own"},
    )
    assert [row["kind"] for row in rows] == ["simple", "parallel", "irrelevance", "response", "multi-step", "own"]


@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        (3, "must be an object"),
        ({"id": "x"}, "must have `messages`"),
        ({"messages": 3}, "`messages` must be a list"),
        ({"messages": [USER]}, "last message must be the assistant's"),
        ({"messages": [3]}, "a message must be an object"),
        ({"query": "q", "answers": "[", "tools": "[]"}, "`answers` is text that is not JSON"),
        ({"query": 3, "answers": [], "tools": []}, "messages.0.content"),
        (record(calls=["x"]), "a call must be an object"),
        (record(calls=3), "`tool_calls` must be a list"),
        (record(calls=[{"name": "get_weather", "arguments": "{"}]), "`arguments` is text that is not JSON"),
        (record(calls=[{"name": "get_weather", "arguments": []}]), "arguments"),
        (record(calls=[{"name": "get_weather", "arguments": {"city": "\ud800"}}]), "surrogates"),
        (record(calls=[{"name": "get_weather", "arguments": {"n": float("nan")}}]), "JSON compliant"),
        ({**record(calls=[CALL]), "tools": [{"name": "f", "parameters": {"a": {"type": "wat"}}}]}, "tool 'f'"),
    ],
)
def test_an_unreadable_record_is_handed_back_with_its_fault(tmp_path: Path, faulty: object, says: str) -> None:
    reject, row = imported(tmp_path, faulty, record(calls=[CALL]))
    assert isinstance(reject, Reject)
    assert isinstance(row, dict)
    assert says in reject.detail
    assert reject.reason == "unreadable"
    assert str(reject.row) == str(faulty)
    named = faulty.get("id") if isinstance(faulty, dict) else None
    assert reject.id == (named or "records.jsonl:1")


def test_a_line_that_is_not_json_stops_the_import(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": 1}\n{"id"')
    with pytest.raises(InputError, match="line 2"):
        list(import_rows(path, source="test"))


def test_a_missing_file_and_a_broken_list_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("[{")
    for name in ("broken.json", "missing.json"):
        with pytest.raises(InputError, match=name):
            list(import_rows(tmp_path / name, source="test"))
