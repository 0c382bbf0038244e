"""Every tool of a file is called by some row, or named with the reason."""

import json
from collections import Counter
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from star.cli.main import app
from star.config.data import Data
from star.config.files import packaged_file
from star.data.cleaning import clean
from star.data.generate_offline import generate_rows
from star.data.rows import read_rows
from star.data.synthesize import make_data_set
from star.data.tools import normalize_tool

STATE = {"enum": ["open", "done"], "type": "string"}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "mail": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    },
    "required": ["name"],
}
BY_REFERENCE = [
    {
        "name": "open_case",
        "description": "Open a case",
        "inputSchema": {
            "$defs": {"Person": PERSON, "Level": {"enum": ["low", "high"]}},
            "type": "object",
            "properties": {
                "owner": {"$ref": "#/$defs/Person"},
                "level": {"$ref": "#/$defs/Level"},
                "readers": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
            },
            "required": ["owner", "level", "readers"],
        },
    },
    {
        "name": "list_cases",
        "description": "List the cases of a state",
        "inputSchema": {
            "$defs": {"State": STATE},
            "type": "object",
            "properties": {"state": {"anyOf": [{"$ref": "#/$defs/State"}, {"type": "null"}], "default": None}},
        },
    },
]
# No text is both: every row with a call of it is left out.
IMPOSSIBLE = {
    "name": "never",
    "description": "Do what cannot be",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^x$", "minLength": 2}},
        "required": ["a"],
    },
}


def calls_of(tools: list[dict], *, rows: int = 200) -> Counter:
    made = clean(list(generate_rows([normalize_tool(tool) for tool in tools], rows, seed=3)))
    return Counter(
        (call["name"], bool(call["arguments"]))
        for row in made.kept
        for call in row["messages"][-1].get("tool_calls") or []
    )


def test_tools_with_references_are_called_with_whole_values() -> None:
    schema = BY_REFERENCE[0]["inputSchema"]
    for row in generate_rows([normalize_tool(tool) for tool in BY_REFERENCE], 100, seed=3):
        for call in row["messages"][-1].get("tool_calls") or []:
            if call["name"] == "open_case":
                Draft202012Validator(schema).validate(call["arguments"])
    called = calls_of(BY_REFERENCE)
    assert {("open_case", True), ("list_cases", True), ("list_cases", False)} == set(called)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"properties": {"b": {"const": 1}}, "required": ["b"]}]},
        {"type": "object", "properties": {"a": {}}, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
        {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": {"enum": ["x", "y"]}, "minProperties": 1},
        {"type": "object", "patternProperties": {"^k_[a-z]{2}$": {"type": "integer"}}, "additionalProperties": False, "minProperties": 1},
        {"type": "object", "required": ["z"]},
        {"type": "array", "items": {"type": "integer"}, "contains": {"const": 7}},
        {"type": "array", "prefixItems": [{"type": "string"}], "items": False, "minItems": 1},
        {"type": ["string", "integer"], "not": {"type": "string"}},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "multipleOf": 0.05, "minimum": 0, "maximum": 1},
        {"type": "integer", "minimum": 1, "exclusiveMinimum": 5, "maximum": 6},
        {"type": "string", "pattern": r"^(?=.*\d)[a-z0-9]{8}$"},
        {"type": "string", "pattern": "^[a-f0-9]{128}$"},
        {"type": "string", "pattern": "^(?>a)b++$"},
        {"type": "string", "pattern": r"^[^\x00-\x7F]{2}$"},
    ],
)  # fmt: skip
def test_a_value_of_a_rare_keyword_is_drawn(schema: dict) -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"p": schema}, "required": ["p"]}}
    other = {"name": "g", "parameters": {}}
    assert calls_of([tool, other], rows=60)["f", True] > 3


def test_alternatives_of_a_whole_tool_are_called() -> None:
    parts = [
        {"type": "object", "properties": {"kind": {"const": kind}, kind: {"type": "integer"}},
         "required": ["kind", kind], "additionalProperties": False}
        for kind in ("circle", "square")
    ]  # fmt: skip
    tool = {"name": "draw", "inputSchema": {"anyOf": parts}}
    tools = [normalize_tool(tool), normalize_tool({"name": "clear"})]
    rows = list(generate_rows(tools, 100, seed=1))
    drawn = [
        call["arguments"] for row in rows for call in row["messages"][-1].get("tool_calls") or [] if call["arguments"]
    ]
    assert {tuple(sorted(arguments)) for arguments in drawn} == {("circle", "kind"), ("kind", "square")}
    for arguments in drawn:
        Draft202012Validator({"anyOf": parts}).validate(arguments)
    masked = clean(list(generate_rows(tools, 60, seed=1, masked=1.0)))
    assert masked.reasons().keys() <= {"duplicate", "near_duplicate"}, "the alternatives have the new names, too"


def test_a_schema_inside_itself_is_not_filled_with_nothing() -> None:
    node = {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"},
                       "others": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
        "required": ["value", "others"],
    }  # fmt: skip
    written = {
        "$defs": {"Node": node},
        "type": "object",
        "properties": {"head": {"$ref": "#/$defs/Node"}},
        "required": ["head"],
    }
    tools = [normalize_tool({"name": "store", "inputSchema": written}), normalize_tool({"name": "clear"})]
    for row in generate_rows(tools, 60, seed=2):
        for call in row["messages"][-1].get("tool_calls") or []:
            if call["name"] == "store":
                Draft202012Validator(written).validate(call["arguments"])


def test_a_tool_that_no_row_calls_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    noted = {"name": "say", "description": "Say", "parameters": {"a": {"type": "str", "pattern": r"\p{L}"}}}
    path.write_text(json.dumps([*BY_REFERENCE, IMPOSSIBLE, noted]))
    done = CliRunner().invoke(
        app, ["data", "synthesize", "--tools", str(path), "--rows", "80", "--out", str(tmp_path / "s")]
    )
    assert done.exit_code == 0, done.output
    assert "1 tool that no row calls" in done.output
    assert "  never: all rows with a call of it were left out: refused_value" in done.output
    assert "x-pattern" in done.output
    card = (tmp_path / "s" / "card.md").read_text(encoding="utf-8")
    assert "## Tools that no row calls" in card
    assert "| never | all rows" in card
    assert "No row calls 1 of the tools" in card
    assert "never" in (tmp_path / "s" / "card.html").read_text(encoding="utf-8")
    again = CliRunner().invoke(app, ["data", "card", str(tmp_path / "s")])
    assert "| never | all rows" in again.output


def test_the_stage_names_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([*BY_REFERENCE, IMPOSSIBLE]))
    settings = Data.model_validate({"tools": tmp_path / "tools.json", "generated_rows": 80, "heldout_rows": 5})
    for folder in ("out", "state"):
        (tmp_path / folder).mkdir()
    counts = make_data_set(settings, seed=1, out=tmp_path / "out", state=tmp_path / "state")
    assert counts["tools_not_called"] == 1
    assert "never: all rows with a call of it were left out" in capsys.readouterr().err
    assert not any(
        "never" in json.dumps(row["messages"][-1]["tool_calls"]) for row in read_rows(tmp_path / "out" / "train.jsonl")
    )


@pytest.mark.parametrize(("tools", "uncalled"), [(None, None), ("tools.json", len(BY_REFERENCE) + 1)])
def test_of_rows_alone_only_tools_of_ones_own_are_missed(
    tools: str | None, uncalled: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `make real SEED_DATA=rows.jsonl`, whose profile generates no rows and names no tools."""
    (tmp_path / "tools.json").write_text(json.dumps([*BY_REFERENCE, IMPOSSIBLE]))
    own = [normalize_tool({"name": name, "description": f"To {name} it"}) for name in ("clear", "fill")]
    with (tmp_path / "rows.jsonl").open("w") as file:
        for row in generate_rows(own, 20, seed=1):
            file.write(json.dumps({"messages": row["messages"], "tools": row["tools"]}) + "\n")
    given = {"seed_data": tmp_path / "rows.jsonl", "generated_rows": 0, "heldout_rows": 1}
    settings = Data.model_validate(given | ({"tools": tmp_path / tools} if tools else {}))
    for folder in ("out", "state"):
        (tmp_path / folder).mkdir()
    counts = make_data_set(settings, seed=1, out=tmp_path / "out", state=tmp_path / "state")
    assert counts.get("tools_not_called") == uncalled
    assert ("no row calls" in capsys.readouterr().err) is bool(uncalled)


def test_where_all_are_called_nothing_is_said(tmp_path: Path) -> None:
    tools = str(packaged_file("tools.json"))
    done = CliRunner().invoke(
        app, ["data", "synthesize", "--tools", tools, "--rows", "300", "--out", str(tmp_path / "s")]
    )
    assert "no row calls" not in done.output
    assert not {"uncalled", "tool_notes"} & json.loads((tmp_path / "s" / "figures.json").read_text()).keys()
