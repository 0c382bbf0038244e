"""What is over a bound is a reject, or an error that names the bound, and never costs what stands beside it."""

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from star.data.generate_offline import generate_rows
from star.data.importers import import_rows
from star.data.read_records import read_records
from star.data.rows import Reject
from star.data.tool_files import load_tools, read_tools
from star.data.tools import normalize_tool
from star.data.write_set import reject_line
from star.data.yaml_documents import parse_yaml
from star.errors import InputError
from star.time_limit import TookTooLong, time_limit

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


def test_parquet_that_expands_is_read_in_bounded_batches(tmp_path: Path) -> None:
    text = "a" * (1 << 20)
    many = pa.table({"messages": [text] * 3000})
    # As one entry of a dictionary, to which all records refer.
    pq.write_table(many, tmp_path / "many.parquet", compression="zstd", dictionary_pagesize_limit=4 << 20)
    start = time.process_time()
    records = [record for _, record in read_records(tmp_path / "many.parquet") if isinstance(record, ValueError)]
    assert "1000 times the file's bytes" in str(records[-1]) and time.process_time() - start < 10
    pq.write_table(pa.table({"a": ["b" * (100 << 20), "x"]}), tmp_path / "one.parquet", compression="zstd")
    with pytest.raises(InputError, match="300 bytes for one are read"):
        list(read_records(tmp_path / "one.parquet"))


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
