"""Whatever others write into files of tools and rows: a reject or an InputError, soon, and in little memory.

The inputs run in a child process with a limit of its memory. By hand: `python -m tests.data.test_foreign_input 20000`.
"""

import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import strategies as st

from star.data.cleaning import check_row, fault_of
from star.data.generate_offline import generate_rows
from star.data.importers import import_rows, original_tools
from star.data.rows import Reject, json_line
from star.data.set_statistics import SetStatistics
from star.data.tool_files import holds_tools, read_tools
from star.data.tools import repeated_name
from star.data.write_set import reject_line
from star.errors import InputError
from tests.foreign_inputs import read_many, read_many_in_a_child

HERE = Path(__file__).parent
PATTERNS = [
    "^(a|a)*$", "^(a+)+$", "(", "[", r"\p{L}", "(((a{900}){900}){900})", "(?=.*b)(a|a)*$", r"^(\w+\s?)*\1$", "a{99999}", "^[a-z]{2,5}$",
    r"(?<=a)(?:a{0,900}){0,900}b", "(?i)straße", r"[^\W\d]+\b", "x" * 20_000, "\ud800", "(?:" * 400 + ")" * 400, "",
]  # fmt: skip
TEXTS = [
    "a" * 40 + "!",
    "é" * 30,
    "\ud800",
    "\x00",
    "a" * 200_000,
    "<tool_call>",
    "<think>",
    "[f(x=",
    "{" * 3000,
    "[" * 3000,
    "\n" * 50,
]
TEXTS += [
    "List[" * 60,
    "<function=f>" * 30,
    "'" * 99,
    "USER: a ASSISTANT: b",
    "#/properties/x",
    "https://a.example/b#c",
    "Literal[" * 9,
]
NUMBERS = [0, -1, 10**11, 10**400, 1e308, -1e308, float("nan"), float("inf"), 5e-324, 2**63, 0.1, True]
KEYS = [
    "type", "pattern", "minLength", "maxLength", "minItems", "maxItems", "exclusiveMinimum", "minimum", "maximum", "multipleOf", "enum",
    "const", "items", "properties", "patternProperties", "additionalProperties", "required", "anyOf", "oneOf", "allOf", "not", "if",
    "then", "prefixItems", "contains", "minContains", "uniqueItems", "unevaluatedProperties", "dependentSchemas", "propertyNames",
    "minProperties", "$ref", "$defs", "format", "examples", "default", "nullable", "description", "x", "name", "parameters",
]  # fmt: skip
TYPES = ["string", "integer", "number", "array", "object", "null", "dict", "List[int]", "Union[int, str]", "HashMap"]


def _parquet_of(records: list[dict]) -> bytes:
    file = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(
            [{"text": json.dumps(record), "tools": record["tools"], "list": [[1], []]} for record in records]
        ),
        file,
    )
    return file.getvalue()


def _nested(inner: Any, key: str, depth: int) -> Any:
    for _ in range(depth):
        inner = [inner] if key == "list" else {key: [inner, inner]} if key.endswith("Of") else {key: inner}
    return inner


LEAVES = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(PATTERNS), st.sampled_from(TEXTS), st.sampled_from(TYPES),
    st.integers(), st.text(max_size=8),
    st.builds(_nested, st.sampled_from([1, {}, "a"]), st.sampled_from(["list", "items", "not", "a"]), st.integers(1, 600)),
    st.builds(_nested, st.just({"type": "integer"}), st.sampled_from(["anyOf", "oneOf", "allOf"]), st.integers(1, 9)),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)
BOMBS = [
    {"type": "array", "minItems": 10**10, "items": {"type": "array", "minItems": 900, "items": {"type": "integer"}}},
    {"type": "string", "minLength": 10**11}, {"type": "number", "exclusiveMinimum": 1e308, "maximum": 1e308, "multipleOf": 5e-324},
    {"type": "object", "patternProperties": {"^(a|a)*$": {}}, "additionalProperties": False},
    {"type": "array", "uniqueItems": True, "minItems": 9999, "items": {"type": "boolean"}},
    _nested({"type": "object"}, "allOf", 10), {"allOf": [{"properties": {str(n): {}}} for n in range(3000)]},
    {"type": "object", "required": [str(n) for n in range(5000)]}, {"enum": list(range(9000)), "allOf": [{"enum": list(range(9000))}]},
]  # fmt: skip
PARAMETERS = {
    "type": "object",
    "required": ["x"],
    "properties": {
        "x": {"type": "string", "pattern": "^[a-z]+$"},
        "y": {"type": "array", "items": {"type": "integer"}},
    },
}
TOOL = {"name": "f", "description": "d", "x-queries": ["f {x}"], "parameters": PARAMETERS}
CALL = {"name": "f", "arguments": {"x": "a" * 40 + "!", "y": [1, 2]}}
ASKED = {"role": "user", "content": "hi"}
ANTHROPIC = {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": "a"}}]}
SHAREGPT = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "[f(x='a', y=[1])]"}]
HERMES = f"<think>\nr\n</think>\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
GLAIVE = f"USER: a\n\nASSISTANT: <functioncall> {json.dumps(CALL)} <|endoftext|>"
ROWS = [
    {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}], "tools": [TOOL]},
    {"id": 7, "query": "hi", "answers": json.dumps([CALL]), "tools": json.dumps([TOOL])},
    {"system": f"tools: {json.dumps([TOOL])}", "conversations": SHAREGPT},
    {"system": f"SYSTEM: functions -\n{json.dumps(TOOL)}", "chat": GLAIVE},
    {"messages": [ASKED, ANTHROPIC], "tools": [{"name": "f", "input_schema": PARAMETERS}]},
    {"messages": [ASKED, {"role": "assistant", "content": HERMES}], "tools": [TOOL]},
]
PARQUET = _parquet_of([{**row, "tools": json.dumps(row.get("tools", []))} for row in ROWS])
API = yaml.safe_load((HERE / "openapi.yaml").read_text(encoding="utf-8"))
TOOLS = [
    TOOL,
    {"type": "function", "function": {**TOOL, "name": "g"}},
    {"name": "h", "parameters": {"a": {"type": "List[int], optional"}}},
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list) -> Any:
    """A value of ours, with some of its parts replaced, added or moved."""
    value = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 3))):
        node = value
        for _ in range(draw(st.integers(0, 9))):
            inner = list(node.values() if isinstance(node, dict) else node)
            inner = [part for part in inner if isinstance(part, dict | list) and part]
            if not inner:
                break
            node = draw(st.sampled_from(inner))
        new = copy.deepcopy(draw(VALUES | st.sampled_from(BOMBS) | st.sampled_from(seeds)))
        if isinstance(node, dict):
            node[draw(st.sampled_from([*node, *KEYS]))] = new
        elif isinstance(node, list):
            node.insert(draw(st.integers(0, len(node))), new)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some bytes replaced."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        place = draw(st.integers(0, len(content)))
        junk = draw(
            st.binary(max_size=3)
            | st.sampled_from([b"[" * 5000, b'{"a":' * 999, b"9" * 5000, b"&a [*a]", b"<<: *a", b"\x00"])
        )
        content = content[:place] + junk + content[place + draw(st.integers(0, 9)) :]
    return content


@st.composite
def written(draw: st.DrawFn) -> tuple[str, bytes]:
    """(suffix, content) of a file."""
    # Rarely, because each is decoded by a process of its own.
    if draw(st.integers(0, 99)) == 0:
        return ".parquet", draw(damaged(PARQUET))
    if draw(st.booleans()):
        suffix, value = (
            draw(st.sampled_from([".json", ".yaml"])),
            draw(mutated([TOOLS, {"tools": TOOLS}, TOOL, API]) | VALUES),
        )
    else:
        suffix, value = (
            draw(st.sampled_from([".jsonl", ".json"])),
            draw(st.lists(mutated(ROWS) | VALUES, min_size=1, max_size=3)),
        )
    try:
        if suffix == ".yaml":
            content = yaml.dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
        elif suffix == ".jsonl":
            content = b"\n".join(json.dumps(row).encode() for row in value)
        else:
            content = json.dumps(value).encode()
    except (RecursionError, ValueError, yaml.YAMLError):
        content = b"["
    return suffix, draw(damaged(content))


def read(folder: Path, suffix: str, content: bytes) -> None:
    """Does with a file what the commands of `star data` do."""
    path = folder / f"input{suffix}"
    path.write_bytes(content)
    try:
        if holds_tools(path):
            read_tool_file(path)
            return
        for entry in original_tools([path]):
            json_line(entry)
        records = list(import_rows(path, source="s"))
        statistics = SetStatistics()
        for record in records:
            checked = check_row(record, [fault_of])
            if isinstance(checked, Reject):
                reject_line(checked)
            else:
                json_line(checked)
                statistics.add(checked)
    except InputError:
        return


def read_tool_file(path: Path) -> None:
    tools: list[dict] = []
    for tool in read_tools(path):
        if isinstance(tool, Reject):
            reject_line(tool)
        elif not repeated_name([*tools, tool]):
            tools.append(tool)
    json.dumps(tools, ensure_ascii=False).encode()
    for row in generate_rows([*tools[:9], {**TOOL, "name": "k"}, {**TOOL, "name": "l"}], 4, seed=1):
        checked = check_row(row, [fault_of])
        reject_line(checked) if isinstance(checked, Reject) else json_line(checked)


@pytest.mark.parametrize("count", [pytest.param(200, id="200"), pytest.param(2000, id="2000", marks=pytest.mark.slow)])
def test_no_file_of_others_hangs_or_ends_a_command(count: int) -> None:
    read_many_in_a_child("tests.data.test_foreign_input", count)


if __name__ == "__main__":
    read_many(written(), read, count=int(sys.argv[1]))
