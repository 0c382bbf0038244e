"""What is over a bound is a reject, or an error that names the bound, and never costs what stands beside it."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star.data.generate_offline import generate_rows
from star.data.importers import import_rows, original_tools
from star.data.read_records import read_records
from star.data.rows import Reject, write_json_lines
from star.data.tool_files import load_tools, read_tools
from star.data.tools import normalize_tool
from star.data.write_set import reject_line
from star.errors import InputError
from star.json_file import write_json
from star.time_limit import TookTooLong, time_limit
from star.yaml_documents import parse_yaml

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}], "tools": []}


def _tool(name: str, schema: object) -> dict:
    return {"name": name, "parameters": {"type": "object", "properties": {"x": schema}, "required": ["x"]}}


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 60_000,
        b"\n".join(b" " * depth + b"a:" for depth in range(3000)),
        b"&a [*a]",
        b"a0: &a0 [x,x]\n" + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12)),
        b"a0: &a0 {x: 1}\n"
        + b"".join(b"a%d: &a%d\n  <<: [%s]\n  k%d: 1\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9), n) for n in range(1, 12)),
        b"a: 0x" + b"f" * 100_000,
        b"a: 1" + b":59" * 2000 + b".5",
        b"a: !!int ''",
        b"a: !!bool x",
        b"a: !!timestamp x",
    ],
)  # fmt: skip
def test_a_yaml_document_over_a_bound_is_refused_soon(content: bytes) -> None:
    start = time.process_time()
    with pytest.raises((ValueError, RecursionError)):
        parse_yaml(content)
    assert time.process_time() - start < 5


def test_yaml_within_the_bounds_is_read_as_before() -> None:
    content = b"base: &b {a: 1, d: 2026-01-31}\nmore:\n  <<: *b\n  a: 2\nlist: [*b, yes, ~, 1.5]\n"
    base = {"a": 1, "d": "2026-01-31"}
    assert parse_yaml(content) == {"base": base, "more": {**base, "a": 2}, "list": [base, True, None, 1.5]}


def test_a_tool_that_nests_too_deeply_is_a_reject_and_the_others_are_read(tmp_path: Path) -> None:
    deep: dict = {"type": "string"}
    for _ in range(150):
        deep = {"type": "object", "properties": {"a": deep}}
    (tmp_path / "tools.json").write_text(json.dumps([_tool("f", deep), _tool("g", {"type": "integer"})]))
    reject, tool = read_tools(tmp_path / "tools.json")
    assert isinstance(reject, Reject) and "deeper than 200" in reject.detail
    assert isinstance(tool, dict) and tool["name"] == "g"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 10**11},
        {"type": "string", "pattern": "(((a{90}){90}){90})"},
        {"type": "array", "minItems": 10**10, "items": {"type": "integer"}},
        {"type": "array", "minItems": 900, "items": {"type": "array", "minItems": 900, "items": {"type": "array", "minItems": 900}}},
        {"type": "array", "minItems": 900, "uniqueItems": True, "items": {"type": "boolean"}},
        {"type": "array", "contains": {"type": "integer"}, "minContains": 10**10},
        {"type": "object", "minProperties": 10**10, "additionalProperties": {"type": "string"}, "propertyNames": {"pattern": "a"}},
        {"type": "number", "exclusiveMinimum": 1e308, "maximum": 1e308},
        {"type": "number", "minimum": -1.7e308, "maximum": 1.7e308, "multipleOf": 5e-324},
        {"type": "string", "enum": []},
        {"type": "string", "examples": ["a" * 60 + "!"], "pattern": "^(a|a)*$"},
    ],
)  # fmt: skip
def test_rows_are_made_soon_whatever_a_schema_asks_for(schema: dict) -> None:
    tools = [normalize_tool(_tool("f", schema)), normalize_tool(_tool("g", {"type": "integer"}))]
    start = time.process_time()
    rows = list(generate_rows(tools, 12, seed=1))
    assert len(rows) == 12 and time.process_time() - start < 5
    assert max(len(json.dumps(row)) for row in rows) < 1_000_000


def test_one_bad_record_never_ends_a_set(tmp_path: Path) -> None:
    good = json.dumps(ROW).encode()
    bad = [
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"9" * 5000,
        b'{"a": "\x00"}',
        b"\xff\xfe",
        b"[" * 99_999,
        b"a" * 17 * 2**20,
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([good, *bad, good]))
    found = list(import_rows(tmp_path / "rows.jsonl", source="s"))
    assert [isinstance(row, dict) for row in found] == [True, *[False] * len(bad), True]


def _written(path: Path, table: pa.Table) -> Path:
    # A text that repeats is one entry of a dictionary, to which all records refer.
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=4 << 20)
    return path


def test_parquet_that_expands_is_read_in_bounded_batches(tmp_path: Path) -> None:
    many = _written(tmp_path / "many.parquet", pa.table({"messages": ["a" * (1 << 20)] * 300}))
    records = [record for _, record in read_records(many)]
    assert len(records) < 280 and "1000 times the file's bytes" in str(records[-1])
    one = _written(tmp_path / "one.parquet", pa.table({"a": ["b" * (17 << 20), "x"]}))
    (_, first), (_, second) = read_records(one)
    assert "longer than 16 MiB" in str(first) and second == {"a": "x"}
    values = _written(tmp_path / "values.parquet", pa.table({"a": [[0] * 600_000, [1]]}))
    (_, first), (_, second) = read_records(values)
    assert "more than 500,000 values" in str(first) and second == {"a": [1]}


def test_a_row_of_parquet_that_needs_too_much_memory_is_an_error_that_says_so(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 20_001, pa.int32()), ["a" * (1 << 20)])
    path = _written(tmp_path / "lists.parquet", pa.table({"a": pa.ListArray.from_arrays([0, 20_000, 20_001], texts)}))
    assert path.stat().st_size < 1000
    with pytest.raises(InputError, match="more than 768 MiB to decode"):
        list(read_records(path))


@pytest.mark.parametrize(
    "change", [lambda data: data[:-20], lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", lambda data: b"PAR1" * 9]
)
def test_a_damaged_parquet_file_is_an_error_of_one_line(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = _written(tmp_path / "rows.parquet", pa.table({"a": ["x"]}))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match="cannot be read as Parquet") as caught:
        list(read_records(path))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_read_to_its_end_leaves_no_process(tmp_path: Path) -> None:
    path = _written(tmp_path / "rows.parquet", pa.table({"a": ["x" * 1000] * 5000}))
    before = psutil.Process().children()
    records = read_records(path)
    assert next(records) == (1, {"a": "x" * 1000})
    [child] = [process for process in psutil.Process().children() if process not in before]
    records.close()
    assert not child.is_running()


def test_a_record_of_parquet_that_cannot_be_read_is_a_reject(tmp_path: Path) -> None:
    days = pa.array([2**62, 1], pa.timestamp("us"))
    pq.write_table(pa.table({"day": days, "a": ["x", "y"]}), tmp_path / "days.parquet")
    (_, first), (_, second) = read_records(tmp_path / "days.parquet")
    assert isinstance(first, ValueError) and second["a"] == "y"


def test_a_reject_does_not_fill_the_disk() -> None:
    line = reject_line(Reject("r", "unreadable", "d", {"a": "x" * 5_000_000}))
    assert len(line) < 20_000 and json.loads(line)["id"] == "'r'"


def test_an_openapi_content_that_is_no_object_is_a_reject(tmp_path: Path) -> None:
    parameter = {"name": "x", "in": "query", "content": {"a": [1]}}
    paths = {"/a": {"get": {"parameters": [parameter]}}, "/b": {"get": {"operationId": "b"}}}
    (tmp_path / "api.json").write_text(json.dumps({"openapi": "3.0.0", "paths": paths}))
    reject, tool = read_tools(tmp_path / "api.json")
    assert isinstance(reject, Reject) and isinstance(tool, dict)


def test_work_that_takes_too_long_is_ended_with_the_limit_in_its_reason() -> None:
    with pytest.raises(TookTooLong, match=r"more than 0\.1 s"), time_limit(0.1):
        any(False for _ in iter(int, 1))
    with time_limit(0.1):
        pass


def test_a_deep_json_document_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_tools(tmp_path / "tools.json")


def test_a_json_list_that_is_cut_behind_an_element_has_no_end(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[1")
    [(number, fault)] = read_records(tmp_path / "rows.json")
    assert number == 1 and "the list has no end" in str(fault)


@pytest.mark.parametrize("value", ["\ud800", float("nan"), float("inf")])
def test_a_tool_that_no_file_can_hold_is_a_reject_and_no_end_of_an_import(value: object, tmp_path: Path) -> None:
    odd = {**_tool("f", {"type": "integer", "default": 1}), "x-odd": value}
    (tmp_path / "tools.json").write_text(
        json.dumps([{**odd, "description": value if value == "\ud800" else "d"}, _tool("g", {})])
    )
    write_json(tmp_path / "out.json", [tool for tool in read_tools(tmp_path / "tools.json") if isinstance(tool, dict)])
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({**ROW, "tools": [tool]}) + "\n" for tool in (odd, _tool("g", {})))
    )
    assert write_json_lines(tmp_path / "out.jsonl", original_tools([tmp_path / "rows.jsonl"])) == 1


def test_a_tool_whose_arguments_cost_too_much_is_left_out_at_once(tmp_path: Path) -> None:
    rows = {"type": "array", "minItems": 1000, "items": {"not": {"type": "string"}}}
    slow = {"type": "array", "minItems": 1000, "uniqueItems": True, "items": rows}
    write_json(tmp_path / "tools.json", [_tool("f", {"type": "integer"}), _tool("slow", slow)])
    good, left_out = read_tools(tmp_path / "tools.json")
    assert isinstance(good, dict) and isinstance(left_out, Reject)
    assert left_out.detail == "no arguments of tool 'slow' can be drawn: it takes more than 1.5 s of processor time"
    with pytest.raises(
        InputError, match=r"no arguments of tool 'slow' can be drawn.*leave it out with `star data import"
    ):
        load_tools(tmp_path / "tools.json")
