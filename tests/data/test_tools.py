"""Tool schemas of every dialect: what they become, and which faults are named."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from star.data.json_schema import coerce_value
from star.data.python_types import json_schema_of_type
from star.data.tools import normalize_tool
from star.errors import InputError

NUMBERS = {"type": "array", "items": {"type": "number"}}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def parameters_of(written: object) -> dict:
    return normalize_tool({"name": "f", "description": "", "parameters": written})["parameters"]


@pytest.mark.parametrize(
    ("text", "schema", "optional"),
    [
        ("str", {"type": "string"}, False),
        ("string", {"type": "string"}, False),
        ("int, optional", {"type": "integer"}, True),
        ("List[Tuple[float, float]]", {"type": "array", "items": {**NUMBERS, "minItems": 2, "maxItems": 2}}, False),
        ("List[Union[int, float]]", NUMBERS, False),
        ("List[List[str]]", {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}, False),
        ("Dict", {"type": "object"}, False),
        ("Dict[str, float]", {"type": "object", "additionalProperties": {"type": "number"}}, False),
        ("set", {"type": "array", "uniqueItems": True}, False),
        ("Callable[[float], float]", {"type": "string"}, False),
        ("str, default='elonmusk'", {"type": "string", "default": "elonmusk"}, True),
        ("Optional[str]", {"type": ["string", "null"]}, True),
        ("int | None", {"type": ["integer", "null"]}, True),
        ("typing.List[int]", {"type": "array", "items": {"type": "integer"}}, False),
        ("Tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}, False),
        ("Literal['a', 'b']", {"enum": ["a", "b"]}, False),
        ("Any", {}, False),
    ],
)
def test_a_type_text_becomes_a_schema(text: str, schema: dict, optional: bool) -> None:
    assert json_schema_of_type(text) == (schema, optional)


def test_a_tuple_of_different_types_keeps_their_places() -> None:
    schema, _ = json_schema_of_type("Tuple[str, int]")
    validator = Draft202012Validator(schema)
    assert validator.is_valid(["a", 1])
    assert not any(validator.is_valid(value) for value in ([1, "a"], ["a"], ["a", 1, 2]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "wat",
        "List[int",
        "List[int, str]",
        "Union[()]",
        "Tuple[()]",
        "str, perhaps",
        "str) or (int",
        "str, default={1}",
    ],
)
def test_a_text_that_is_no_type_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a type"):
        json_schema_of_type(text)


def test_a_type_text_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for text in (f"open({str(mark)!r}, 'w')", f"str, default=open({str(mark)!r}, 'w')"):
        with pytest.raises(InputError):
            json_schema_of_type(text)
    assert not mark.exists()


@given(st.text(max_size=60))
def test_any_text_gives_a_valid_schema_or_an_input_error(text: str) -> None:
    try:
        schema, _ = json_schema_of_type(text)
    except InputError:
        return
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    "written",
    [
        WEATHER,
        {"type": "function", "function": WEATHER},
        {"name": "get_weather", "description": "The weather of a city.", "inputSchema": WEATHER["parameters"]},
        {**WEATHER, "parameters": {"city": {"type": "str"}}},
        {**WEATHER, "parameters": {"type": "dict", "properties": {"city": {"type": "str"}}}},
    ],
    ids=["normal", "openai", "mcp", "xlam-flat", "xlam-dict"],
)
def test_every_dialect_becomes_the_same_tool(written: dict) -> None:
    assert normalize_tool(written) == WEATHER


def test_parameters_named_type_and_properties_are_parameters() -> None:
    flat = {"type": {"description": "kind of word", "type": "str"}, "properties": {"type": "int"}}
    expected = {"type": {"type": "string", "description": "kind of word"}, "properties": {"type": "integer"}}
    assert parameters_of(flat)["properties"] == expected
    assert parameters_of({"type": "dict", "properties": flat})["properties"] == expected
    assert list(parameters_of({"properties": {"type": "str", "description": "d"}})["properties"]) == ["properties"]
    assert list(parameters_of({"properties": {"type": {"type": "str"}}})["properties"]) == ["type"]


def test_a_list_of_required_parameters_beside_them_may_hold_anything() -> None:
    beside = [{"not": "a name"}, "city", 3, "town"]
    written = {
        "name": "f",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "required": beside,
    }
    assert normalize_tool(written)["parameters"]["required"] == ["city"]


def test_a_tool_without_parameters() -> None:
    empty = {"type": "object", "properties": {}, "required": []}
    for written in (None, {}, {"type": "object"}, {"type": "object", "properties": None, "required": None}, "", "{}"):
        assert parameters_of(written) == empty
    assert normalize_tool({"name": "now"}) == {"name": "now", "description": "", "parameters": empty}


@pytest.mark.parametrize(
    "written",
    [
        {"parameters": {"city": {"type": "str", "required": True}, "days": {"type": "int", "required": False}}},
        {"parameters": {"city": {"type": "str", "required": "true"}, "days": {"type": "int", "required": "false"}}},
        {"parameters": {"city": {"type": "str"}, "days": {"type": "int"}, "required": ["city"]}},
        {"parameters": {"city": {"type": "str"}, "days": {"type": "int"}}, "required": ["city"]},
        {"parameters": {"type": "object", "city": {"type": "str"}, "days": {"type": "int"}, "required": ["city"]}},
        {"parameters": {"type": "object", "properties": {"city": {"type": "str", "required": True}, "days": {"type": "int"}}}},
        {"parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}, "days": {"type": "INTEGER"}}, "required": ["city"]}},
        {"parameter_definitions": {"city": {"type": "str", "required": True}, "days": {"type": "int", "required": False}}},
        {"inputSchema": {"properties": {"city": {"$ref": "#/$defs/C"}, "days": {"type": "int"}}, "required": ["city"],
                         "$defs": {"C": {"type": "string"}}}},
        {"parameters": {"city": {"$ref": "#/$defs/C"}, "days": {"type": "int, optional"}, "$defs": {"C": {"type": "string"}}}},
        {"parameters": '{"properties": {"city": {"$ref": "#/$defs/C"}, "days": {"type": "int"}}, "required": ["city"], '
                       '"$defs": {"C": {"type": "string"}}}'},
    ],
)  # fmt: skip
def test_what_is_required_may_be_said_in_many_places(written: dict) -> None:
    tool = normalize_tool({"name": "f", **written})
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}}
    assert tool["parameters"] == {"type": "object", "properties": properties, "required": ["city"]}
    assert tool.keys() == {"name", "description", "parameters"}


def test_a_tool_that_its_references_make_too_large_is_cut_off_deeper_down() -> None:
    levels = {f"S{n}": {"properties": {key: {"$ref": f"#/$defs/S{n + 1}"} for key in "abcdefgh"}} for n in range(12)}
    written = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/S0"}},
        "$defs": {**levels, "S12": {"type": "string"}},
    }
    tool = normalize_tool({"name": "f", "inputSchema": written})
    assert "too large" in tool["x-notes"][0]
    assert "another S" in json.dumps(tool["parameters"])


def test_what_xlam_requires_is_what_has_no_default_and_is_not_optional() -> None:
    written = {
        "city": {"type": "str", "description": "A city."},
        "units": {"type": "str", "default": "metric"},
        "days": {"type": "int, optional"},
        "field": {"type": "float", "description": "Strength, default is 8.854e-12."},
        "code": {"type": "str", "description": "The default code."},
    }
    assert parameters_of(written)["required"] == ["city", "code"]
    assert parameters_of({"type": "dict", "properties": written})["required"] == ["city", "code"]
    assert parameters_of({"type": "dict", "properties": written, "required": ["days"]})["required"] == ["days"]
    assert parameters_of({"type": "object", "properties": {"city": {"type": "string"}}})["required"] == []


@pytest.mark.parametrize(
    ("written", "settled"),
    [
        ({"type": "int", "default": "10"}, {"type": "integer", "default": 10}),
        ({"type": "bool", "default": "False"}, {"type": "boolean", "default": False}),
        ({"type": "int", "default": "40.41"}, {"type": "number", "default": 40.41}),
        ({"type": "int", "default": ""}, {"type": "integer"}),
        ({"type": "List[int]", "default": "static"}, {"type": "array"}),
        ({"type": "str", "default": None}, {"type": "string"}),
        ({"type": "float", "default": True}, {"type": "number"}),
    ],
)
def test_a_default_gets_the_type_of_its_parameter_or_goes(written: dict, settled: dict) -> None:
    schema = parameters_of({"x": written})["properties"]["x"]
    assert {key: schema[key] for key in schema if key != "items"} == settled


def test_nested_schemas_are_normalised_and_hints_kept() -> None:
    written = {
        "name": "order",
        "strict": True,
        "x-queries": ["order {items}"],
        "inputSchema": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {
                "items": {"type": "array", "items": {"type": "dict", "properties": {"price": {"type": "float"}}}}
            },
            "additionalProperties": False,
        },
    }
    tool = normalize_tool(written)
    price = tool["parameters"]["properties"]["items"]["items"]["properties"]["price"]
    assert price == {"type": "number"}
    assert tool["parameters"]["additionalProperties"] is False
    assert tool.keys() == {"name", "description", "parameters", "x-queries"}
    assert "$schema" not in tool["parameters"]


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ("text", "with a name"),
        ({"description": "no name"}, "with a name"),
        ({"name": " "}, "with a name"),
        ({"name": "f", "description": 3}, "'f': the description"),
        ({"name": "f", "parameters": [1]}, "'f': parameters must be an object"),
        ({"name": "f", "parameters": {"type": "array"}}, "'f': parameters must be"),
        ({"name": "f", "parameters": "none"}, "'f': `parameters` is text that is not JSON"),
        ({"name": "f", "inputs": {"a": {"type": "string"}}}, "'f': its parameters are under `inputs`"),
        ({"name": "f", "parameters": None, "required_parameters": [{"name": "a"}]}, "under `required_parameters`"),
        ({"name": "f", "parameters": {"a": "str"}}, "'f': parameters must be"),
        ({"name": "f", "parameters": {"type": "dict", "properties": {"a": 3}}}, "'f': parameter 'a': a schema must be"),
        ({"name": "f", "parameters": {"a": {"type": "str", "$ref": "http://x/y"}}}, "leaves the document"),
    ],
)
def test_a_fault_names_the_tool_and_the_reason(tool: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        normalize_tool(tool)


@pytest.mark.parametrize(
    ("written", "read", "says"),
    [
        ({"a": {"type": "wat", "description": "d"}}, {"a": {"description": "d"}}, "a: type 'wat' is not a type"),
        ({"a": {"type": ["string", {"enum": [1]}]}}, {"a": {"anyOf": [{"type": "string"}, {"enum": [1]}]}}, None),
        ({"a": {"type": "str", "pattern": "("}}, {"a": {"type": "string", "x-pattern": "("}}, "put aside as x-pattern"),
        ({"type": "object", "properties": {}, "required": ["b"]}, {"b": {}}, "b: required, but not among"),
        ({"a": {"type": "int", "minimum": "3"}}, {"a": {"type": "integer", "minimum": 3}}, None),
        ({"a": {"type": "int", "minimum": "low"}}, {"a": {"type": "integer"}}, "a: minimum cannot be low"),
        ({"a": {"type": "list", "items": 5}}, {"a": {"type": "array", "items": {}}}, "a.items: schema is left out"),
    ],
)
def test_one_keyword_never_costs_a_tool(written: dict, read: dict, says: str | None) -> None:
    tool = normalize_tool({"name": "f", "parameters": written})
    assert tool["parameters"]["properties"] == read
    notes = tool.get("x-notes", [])
    assert says in notes[0] if says else not notes
    assert normalize_tool(tool) == tool


def test_a_bottomless_schema_is_an_input_error() -> None:
    schema: dict = {"type": "string"}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InputError, match="too deep"):
        parameters_of({"type": "object", "properties": {"a": schema}})


TYPE_TEXTS = st.recursive(
    st.sampled_from(["str", "int", "float", "bool", "list", "dict", "set", "Any", "None"]),
    lambda inner: st.one_of(
        inner.map("List[{}]".format),
        inner.map("Optional[{}]".format),
        inner.map("Dict[str, {}]".format),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"Union[{', '.join(parts)}]"),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"Tuple[{', '.join(parts)}]"),
    ),
    max_leaves=5,
)
DEFAULTS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8))
PARAMETER = st.fixed_dictionaries(
    {"type": st.builds(str.__add__, TYPE_TEXTS, st.sampled_from(["", ", optional"]))},
    optional={"description": st.text(max_size=20), "default": DEFAULTS},
)
NAMES = st.one_of(st.sampled_from(["type", "properties", "required", "items"]), st.text(min_size=1, max_size=8))
FLAT = st.dictionaries(NAMES, PARAMETER, max_size=4)


@settings(max_examples=30, deadline=None)
@given(FLAT)
def test_normalising_loses_no_parameter_and_twice_is_once(flat: dict) -> None:
    once = normalize_tool({"name": "f", "parameters": flat})
    assert once["parameters"]["properties"].keys() == flat.keys()
    assert normalize_tool({"type": "function", "function": once}) == once
    assert normalize_tool({"name": "f", "parameters": {"type": "dict", "properties": flat}}) == once
    Draft202012Validator.check_schema(once["parameters"])


@pytest.mark.parametrize(
    ("value", "kind", "fitted"),
    [
        ("5", "integer", 5),
        ("5.5", "number", 5.5),
        ("True", "boolean", True),
        (20, "string", "20"),
        (True, "string", "true"),
        ("5.5", "integer", "5.5"),
        ("007", "integer", "007"),
        ("NaN", "number", "NaN"),
        ("1e999", "number", "1e999"),
        ("true", "integer", "true"),
        (1, "boolean", 1),
        (5.5, "integer", 5.5),
        ([1], "string", [1]),
    ],
)
def test_a_value_is_fitted_only_where_its_text_stays(value: object, kind: str, fitted: object) -> None:
    result = coerce_value(value, {"type": kind})
    assert (result, type(result)) == (fitted, type(fitted))


def test_every_tool_of_the_real_sample_has_a_normal_form(shared: Path) -> None:
    lines = (shared / "data" / "xlam_sample.jsonl").read_text().splitlines()
    tools = {json.dumps(tool) for line in lines for tool in json.loads(line)["tools"]}
    for text in sorted(tools)[::20]:
        written = json.loads(text)
        tool = normalize_tool(written)
        properties = written["parameters"]
        properties = properties["properties"] if properties.get("type") == "dict" else properties
        assert tool["parameters"]["properties"].keys() == properties.keys()
        assert normalize_tool(tool) == tool
