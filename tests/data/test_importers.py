"""Importing other people's records: every form read, and every record that cannot be read handed back."""

import json
import resource
from pathlib import Path

import pytest

from star.data.importers import import_rows, original_tools
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
        ({"messages": []}, "must have a message of the assistant"),
        ({"messages": [USER]}, "last message must be the assistant's"),
        ({"messages": [3]}, "a message must be an object"),
        ({"query": "q", "answers": "[", "tools": "[]"}, "`answers` is text that is not JSON"),
        ({"query": 3, "answers": [], "tools": []}, "must be text or a list of parts, got 3"),
        (record(calls=["x"]), "a call must be an object"),
        (record(calls=3), "`tool_calls` must be a list"),
        (record(calls=[{"name": "get_weather", "arguments": "{"}]), "`arguments` is text that is not JSON"),
        (record(calls=[{"name": "get_weather", "arguments": []}]), "arguments"),
        (record(calls=[{"name": "get_weather", "arguments": {"city": "\ud800"}}]), "surrogates"),
        (record(calls=[{"name": "get_weather", "arguments": {"n": float("nan")}}]), "JSON compliant"),
        ({**record(calls=[CALL]), "tools": [{"name": " ", "parameters": {}}]}, "a tool must be an object with a name"),
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


def test_a_line_that_is_not_json_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    good = json.dumps(record(calls=[CALL])).encode()
    path.write_bytes(good + b'\n{"id"\n\xff\xfe\n' + b"[" * 20_000 + b"\n" + good + b"\n")
    first, *rejects, last = import_rows(path, source="test")
    assert first == last
    assert [reject.id for reject in rejects] == ["records.jsonl:2", "records.jsonl:3", "records.jsonl:4"]
    assert {reject.reason for reject in rejects} == {"unreadable"}


def test_a_line_of_a_gigabyte_is_a_reject_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with path.open("wb") as file:
        file.truncate(2**30)  # sparse: no disk is filled
        file.seek(2**30)
        file.write(b"\n" + json.dumps(record(calls=[CALL])).encode() + b"\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reject, row = import_rows(path, source="test")
    assert "longer than 16 MiB" in reject.detail
    assert row["id"] == "r1"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_list_that_breaks_off_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([record(calls=[CALL])] * 3)[:-4])
    *rows, reject = import_rows(path, source="test")
    assert len(rows) == 2
    assert reject.reason == "unreadable"


def test_parquet_and_saved_data_sets_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    table = [{"id": "a", "query": "Weather?", "answers": json.dumps([CALL]), "tools": json.dumps([TOOL])}] * 2
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    Dataset.from_list(table).save_to_disk(str(tmp_path / "saved"))
    by_parquet = list(import_rows(tmp_path / "rows.parquet", source="xlam"))
    assert by_parquet == list(import_rows(tmp_path / "saved", source="xlam"))
    assert [row["licence"] for row in by_parquet] == ["CC-BY-4.0"] * 2


def test_a_clone_of_a_repository_is_read_whatever_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([{**record(calls=[CALL]), "id": "a"}], indent=1))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "more.jsonl").write_text(json.dumps({**record(calls=[CALL]), "id": "b"}) + "\n")
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    assert [row["id"] for row in import_rows(tmp_path, source="test")] == ["a", "b"]


def test_a_row_that_says_where_it_comes_from_keeps_it(tmp_path: Path) -> None:
    own = {"source": "llm", "licence": "CC0-1.0", "generator": "llm:qwen", "seed": 3, "parents": ["p"]}
    [row] = imported(tmp_path, record(calls=[CALL]) | own)
    assert own.items() <= row.items()
    [other] = imported(tmp_path, record(calls=[CALL]) | {"licence": "MIT"})
    assert (other["source"], other["licence"], other["generator"]) == ("test", "unknown", "import")
    [licensed] = import_rows(tmp_path / "records.jsonl", source="test", licence="MIT")
    assert licensed["licence"] == "MIT"


TOOLACE = {
    "system": f"You are an expert. A list of functions in JSON:\n{json.dumps([{**TOOL, 'name': 'Get Weather/Now'}])}\nDo it.",
    "conversations": [
        {"from": "user", "value": "Oslo and (as text) 'Rome'?"},
        {
            "from": "assistant",
            "value": """[Get Weather/Now(city="Oslo (\\"N\\")", n=3), Get Weather/Now(city='Rome')]""",
        },
        {"from": "tool", "value": "[]"},
        {"from": "assistant", "value": "Cold."},
    ],
}


def test_toolace_is_read_turn_by_turn_and_never_executed(tmp_path: Path) -> None:
    path = tmp_path / "toolace.jsonl"
    harmful = {
        **TOOLACE,
        "conversations": [
            TOOLACE["conversations"][0],
            {"from": "assistant", "value": "[Get Weather/Now(city=open('x'))]"},
        ],
    }
    path.write_text(json.dumps(TOOLACE) + "\n" + json.dumps(harmful) + "\n")
    calls, reply, refused = import_rows(path, source="toolace", every_turn=True)
    assert [call["arguments"] for call in calls["messages"][-1]["tool_calls"]] == [
        {"city": 'Oslo ("N")', "n": 3},
        {"city": "Rome"},
    ]
    assert (calls["kind"], reply["kind"], calls["licence"]) == ("parallel", "response", "Apache-2.0")
    assert [message["role"] for message in reply["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert "cannot be read" in refused.detail


def test_calls_in_messages_of_their_own_are_one_turn(tmp_path: Path) -> None:
    second = {"name": "get_weather", "arguments": {"city": "Rome"}}
    split = [{"role": "assistant", "content": "", "tool_calls": [call]} for call in (CALL, second)]
    results = [{"role": "tool", "content": "Rain."}, {"role": "tool", "content": "Sun."}]
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record(content="Rain and sun.", before=(*split, *results))))
    first, last = import_rows(path, source="test", every_turn=True)
    assert first["messages"][-1]["tool_calls"] == [CALL, second] and first["kind"] == "parallel"
    assert [message["role"] for message in last["messages"]] == ["user", "assistant", "tool", "tool", "assistant"]
    # A message that says something is a turn of its own.
    split[1]["content"] = "And in Rome:"
    path.write_text(json.dumps(record(content="Rain and sun.", before=(*split, *results))))
    assert len(list(import_rows(path, source="test", every_turn=True))) == 3


def test_hermes_calls_in_the_text_are_calls(tmp_path: Path) -> None:
    said = '<think>\nOslo\n</think>\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    [row] = imported(
        tmp_path,
        {"conversations": [{"from": "human", "value": "Oslo?"}, {"from": "gpt", "value": said}], "tools": [TOOL]},
    )
    assert row["messages"][-1]["tool_calls"] == [CALL]
    assert row["messages"][-1]["reasoning_content"] == "Oslo"


def test_the_original_of_every_tool_is_kept_once(tmp_path: Path) -> None:
    imported(tmp_path, record(calls=[CALL]), record(calls=[CALL]))
    [kept] = original_tools([tmp_path / "records.jsonl"])
    assert kept["original"] == TOOL
    assert kept["tool"]["parameters"]["properties"]["city"] == {"type": "string"}


def test_a_missing_file_and_a_broken_list_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("[{")
    for name in ("broken.json", "missing.json"):
        with pytest.raises(InputError, match=name):
            list(import_rows(tmp_path / name, source="test"))
