"""Rows on disk: what is read is what was written, and a faulty line is named."""

import json
from pathlib import Path

import pytest

from star.data.rows import (
    ordered_row,
    query_of,
    read_json_lines,
    read_rows,
    target_of,
    write_json_lines,
)
from star.errors import InputError

CALL = {"name": "get_weather", "arguments": {"units": "metric", "city": "Zürich\u2028"}}
TOOL = {
    "name": "get_weather",
    "description": "",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "units": {}}, "required": ["city"]},
}
ROW = {
    "id": "a-1",
    "messages": [
        {"role": "user", "content": "Weather in  Zürich?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": None},
    ],
    "tools": [TOOL],
    "source": "test",
    "kind": "simple",
}


def reply(text: str) -> dict:
    return {**ROW, "messages": [ROW["messages"][0], {"role": "assistant", "content": text}]}


def write_rows(path: Path, rows: list[dict]) -> int:
    return write_json_lines(path, map(ordered_row, rows))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert write_json_lines(path, map(ordered_row, [ROW, reply("No.")])) == 2
    assert list(read_rows(path)) == [ROW, reply("No.")]
    assert "Zürich" in path.read_text(encoding="utf-8")


def test_the_order_of_fields_is_fixed_and_that_of_arguments_is_kept(tmp_path: Path) -> None:
    shuffled = {key: ROW[key] for key in ("tools", "kind", "messages", "source", "id")}
    shuffled["messages"] = [dict(reversed(message.items())) for message in ROW["messages"]]
    write_json_lines(tmp_path / "a", [ordered_row({**ROW, "zeta": 1, "alpha": 2})])
    write_json_lines(tmp_path / "b", [ordered_row({"alpha": 2, "zeta": 1, **shuffled})])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    written = json.loads((tmp_path / "b").read_bytes())
    assert list(written) == ["id", "messages", "tools", "source", "kind", "alpha", "zeta"]
    assert list(written["messages"][1]["tool_calls"][0]["arguments"]) == ["units", "city"]


def test_blank_lines_and_a_byte_order_mark_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    assert list(read_json_lines(path)) == [(1, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{", "line 2: not JSON"),
        (b"\xff", "line 2: not JSON"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b"3", "line 2: not a row"),
        (json.dumps({**ROW, "id": 3}).encode(), "line 2: not a row: id"),
        (json.dumps({**ROW, "messages": ROW["messages"][:1]}).encode(), "the last message must be the assistant's"),
        (json.dumps({**ROW, "tools": [{**TOOL, "parameters": {}}]}).encode(), "tools.0.parameters"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + line)
    with pytest.raises(InputError, match=says) as raised:
        list(read_rows(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.jsonl"):
        list(read_rows(tmp_path / "nothing.jsonl"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_hold_is_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="line 2"):
        write_json_lines(tmp_path / "values.jsonl", [1, {"value": value}])


def test_rows_that_mean_the_same_compare_equal() -> None:
    twin = json.loads(json.dumps(ROW))
    twin["messages"].insert(0, {"role": "system", "content": "Be brief."})
    twin["messages"][1]["content"] = "weather in zürich? "
    other = {"name": "get_weather", "arguments": {"city": "Bern"}}
    twin["messages"][2]["tool_calls"] = [other, CALL]
    swapped = {**ROW, "messages": [ROW["messages"][0], {"role": "assistant", "tool_calls": [CALL, other]}]}
    assert query_of(twin) == query_of(ROW) == "weather in zürich?"
    assert target_of(twin) == target_of(swapped) != target_of(ROW)
    assert target_of(reply("No  Way")) == target_of(reply("no way"))


def test_the_query_holds_the_whole_conversation() -> None:
    before = [ROW["messages"][1], {"role": "tool", "content": "12 degrees"}]
    longer = {**ROW, "messages": [ROW["messages"][0], *before, {"role": "assistant", "content": "Twelve."}]}
    assert "12 degrees" in query_of(longer)
    assert "get_weather" in query_of(longer)
    assert ordered_row(longer) == longer
