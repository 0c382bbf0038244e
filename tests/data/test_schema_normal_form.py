"""Schemas of every dialect in JSON Schema 2020-12: what they become, and laws over random ones."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from star.data.schema_normal_form import SchemaReader
from star.data.schema_references import References
from star.data.tools import normalize_tool
from star.errors import InputError

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def read(schema: dict, **document: object) -> Any:
    """Returns a parameter's schema in normal form, in a tool with these further keywords beside its properties."""
    tool = normalize_tool({"name": "f", "parameters": {"type": "object", "properties": {"p": schema}, **document}})
    assert "x-notes" not in tool, tool["x-notes"]
    return tool["parameters"]["properties"]["p"]


def notes_of(schema: dict) -> tuple[Any, list[str]]:
    tool = normalize_tool({"name": "f", "parameters": {"type": "object", "properties": {"p": schema}}})
    return tool["parameters"]["properties"]["p"], tool.get("x-notes", [])


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ({"type": "array", "items": [{"type": "str"}]}, {"type": "array", "prefixItems": [{"type": "string"}]}),
        (
            {"items": [{"type": "string"}], "additionalItems": {"type": "int"}},
            {"prefixItems": [{"type": "string"}], "items": {"type": "integer"}},
        ),
        ({"items": {"type": "string"}, "additionalItems": False}, {"items": {"type": "string"}}),
        ({"minimum": 0, "exclusiveMinimum": True}, {"exclusiveMinimum": 0}),
        ({"maximum": 9, "exclusiveMaximum": False}, {"maximum": 9}),
        (
            {"dependencies": {"a": ["b"], "b": {"required": ["c"]}}},
            {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"b": {"required": ["c"]}}},
        ),
        ({"type": "string", "nullable": True, "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"nullable": True, "const": 1}, {"anyOf": [{"const": 1}, {"type": "null"}]}),
        ({"type": "string", "example": "Oslo"}, {"type": "string", "examples": ["Oslo"]}),
        ({"id": "x", "$id": "y", "$anchor": "z", "$schema": "s", "xml": {}, "type": "string"}, {"type": "string"}),
        ({"divisibleBy": 5, "disallow": "string"}, {"multipleOf": 5, "not": {"type": "string"}}),
        ({"type": ["Integer", "null"], "enum": None, "required": None}, {"type": ["integer", "null"]}),
        ({"properties": [], "type": "object"}, {"type": "object", "properties": {}}),
        (
            {"properties": {"a": {"type": "string", "required": True}, "b": {"required": False}}},
            {"properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]},
        ),
        ({"allOf": [{"minimum": 1}, {"minimum": 5, "type": "integer"}], "title": "t"}, {"type": "integer", "title": "t", "minimum": 5}),
        (
            {"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}, "required": ["b"]}]},
            {"properties": {"a": {}, "b": {}}, "required": ["a", "b"]},
        ),
        ({"allOf": [{"pattern": "^a"}, {"pattern": "b$"}]}, {"pattern": "^a", "allOf": [{"pattern": "b$"}]}),
        (
            {"anyOf": [{"type": "int"}, {"type": "null"}], "default": None},
            {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        ),
    ],
)  # fmt: skip
def test_keywords_of_other_drafts_are_read(written: dict, normal: dict) -> None:
    assert read(written) == normal


@pytest.mark.parametrize(
    "reference",
    [
        "#/$defs/Person",
        "#/definitions/P%20erson",
        "#person",
        "person.json",
        "https://example.com/s/person.json",
        "#/$defs/List/0",
    ],
)
def test_references_are_written_in_place(reference: str) -> None:
    named = {"$id": "https://example.com/s/person.json", "$anchor": "person", **PERSON}
    places = {"$defs": {"Person": named, "List": [PERSON]}, "definitions": {"P erson": PERSON}}
    assert read({"$ref": reference}, **places) == PERSON
    assert read({"type": "array", "items": {"$ref": reference}}, **places) == {"type": "array", "items": PERSON}
    assert read({"$ref": reference, "description": "d"}, **places) == {**PERSON, "description": "d"}


def test_a_reference_to_another_parameter_or_to_the_whole() -> None:
    """zod writes the second use of a schema as a pointer to the first."""
    tool = normalize_tool(
        {
            "name": "move",
            "inputSchema": {
                "type": "object",
                "properties": {"from": PERSON, "to": {"$ref": "#/properties/from"}, "then": {"$ref": "#"}},
                "required": ["to"],
            },
        }
    )
    assert tool["parameters"]["properties"]["to"] == PERSON
    assert "$ref" not in json.dumps(tool)


def test_a_tool_whose_parameters_are_a_reference_or_parts() -> None:
    by_reference = {"$ref": "#/definitions/Find", "definitions": {"Find": PERSON}}
    assert normalize_tool({"name": "f", "inputSchema": by_reference})["parameters"] == PERSON
    merged = normalize_tool({"name": "f", "inputSchema": {"allOf": [PERSON, {"properties": {"age": {"type": "int"}}}]}})
    assert merged["parameters"]["properties"].keys() == {"name", "age"}
    either = {"anyOf": [PERSON, {"type": "object", "properties": {"id": {"type": "integer"}, "name": {"const": ""}}}]}
    assert normalize_tool({"name": "f", "inputSchema": either})["parameters"]["properties"] == {
        "name": {"anyOf": [{"type": "string"}, {"const": ""}]},
        "id": {"type": "integer"},
    }


def test_a_schema_inside_itself_is_cut_off() -> None:
    node = {"type": "object", "properties": {"value": {"type": "int"}, "next": {"$ref": "#/$defs/Node"}}}
    assert read({"$ref": "#/$defs/Node"}, **{"$defs": {"Node": node}})["properties"] == {
        "value": {"type": "integer"},
        "next": {"type": "object", "description": "another Node"},
    }
    value = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/Value"}}]}
    cut = read({"$ref": "#/$defs/Value"}, **{"$defs": {"Value": value}})
    assert cut["anyOf"][1]["items"] == {"description": "another Value"}, "it may be of any type"
    filters = {"type": "object", "$recursiveAnchor": True, "properties": {"parts": {"items": {"$recursiveRef": "#"}}}}
    cut = read({"$ref": "#/$defs/Filter"}, **{"$defs": {"Filter": filters}})
    assert cut["properties"]["parts"]["items"] == {"type": "object", "description": "another Filter"}


def test_a_schema_that_was_put_into_another_one_keeps_its_references() -> None:
    inner = {"type": "object", "$defs": {"State": {"enum": ["on"]}}, "properties": {"s": {"$ref": "#/$defs/State"}}}
    other = {**inner, "$defs": {"State": {"enum": ["off"]}}}
    schema = read({"type": "array", "prefixItems": [inner, other]})
    assert [part["properties"]["s"] for part in schema["prefixItems"]] == [{"enum": ["on"]}, {"enum": ["off"]}]


@pytest.mark.parametrize("reference", ["#/$defs/None", "https://example.com/x", "other.json#/a"])
def test_a_reference_that_leads_nowhere_costs_a_tool_only_where_it_is_the_parameter(reference: str) -> None:
    with pytest.raises(InputError, match=r"points to nothing|leaves the document"):
        notes_of({"$ref": reference})
    schema, notes = notes_of({"type": "object", "properties": {"a": {"$ref": reference}, "b": {"type": "integer"}}})
    assert schema["properties"] == {"a": {}, "b": {"type": "integer"}}
    assert notes[0].startswith("p.a: schema is left out")


@pytest.mark.parametrize(
    "pattern", [r"^[\w.]+\z", r"^\p{L}+$", r"^(?<year>\d{4})$", "/^[a-z]+$/i", r"^\u{1F600}$", "("]
)
def test_a_pattern_of_another_language_is_put_aside(pattern: str) -> None:
    schema, notes = notes_of({"type": "array", "items": {"type": "string", "pattern": pattern}})
    assert schema["items"] == {"type": "string", "x-pattern": pattern}
    assert "put aside as x-pattern" in notes[0]


def test_a_lost_part_never_makes_the_whole_accept_less() -> None:
    lost = {"pattern": r"\p{L}"}
    schema, notes = notes_of({"not": lost, "oneOf": [lost, {"type": "string"}], "if": lost, "then": False})
    assert schema == {"anyOf": [{"x-pattern": r"\p{L}"}, {"type": "string"}]}
    assert len(notes) == 6
    schema, _ = notes_of({"patternProperties": {r"^\p{L}$": {}}, "additionalProperties": False})
    assert schema == {"patternProperties": {}}


def test_references_that_fan_out_end() -> None:
    levels = {f"S{n}": {"properties": {k: {"$ref": f"#/S{n + 1}"} for k in "abcdefgh"}} for n in range(9)}
    with pytest.raises(InputError, match="more than 20000 parts"):
        SchemaReader(References({**levels, "S9": {}})).read({"$ref": "#/S0"})


NAMES = st.sampled_from(["a", "b"])
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from(["", "a", "ab"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=2)),
    max_leaves=4,
)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null"])
NAME_LISTS = st.lists(NAMES, unique=True, max_size=2)


def around(inner: st.SearchStrategy) -> st.SearchStrategy:
    one = (
        "items",
        "contains",
        "additionalProperties",
        "not",
        "if",
        "then",
        "else",
        "unevaluatedProperties",
        "propertyNames",
    )
    several = ("allOf", "anyOf", "oneOf", "prefixItems")
    return st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(one, inner),
            **dict.fromkeys(several, st.lists(inner, min_size=1, max_size=3)),
            "properties": st.dictionaries(NAMES, inner, max_size=2),
            "patternProperties": st.dictionaries(st.just("^a"), inner, max_size=1),
            "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
            "dependentRequired": st.dictionaries(NAMES, NAME_LISTS, max_size=1),
            "required": NAME_LISTS,
            "type": st.one_of(TYPES, st.lists(TYPES, min_size=1, unique=True, max_size=3)),
            "minItems": st.integers(0, 2),
            "default": VALUES,
        },
    )


LEAVES = st.one_of(
    st.booleans(),
    st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES,
            "minimum": st.integers(-2, 2),
            "exclusiveMaximum": st.integers(-2, 2),
            "pattern": st.sampled_from(["^a", "b$"]),
            "const": VALUES,
            "enum": st.lists(VALUES, min_size=1, max_size=2),
            "title": st.just("t"),
        },
    ),
)
SCHEMAS = st.recursive(LEAVES, around, max_leaves=7)
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(schema=SCHEMAS, values=st.lists(VALUES, min_size=1, max_size=6))
def test_what_a_schema_accepts_it_accepts_in_normal_form(schema: Any, values: list) -> None:
    tool = normalize_tool({"name": "f", "parameters": {"type": "object", "properties": {"p": schema}}})
    assert json.dumps(normalize_tool(tool)) == json.dumps(tool)
    assert "x-notes" not in tool, "a valid schema loses nothing"
    normal = tool["parameters"]["properties"]["p"]
    Draft202012Validator.check_schema(normal)
    for value in values:
        if Draft202012Validator(schema).is_valid(value):
            Draft202012Validator(normal).validate(value)


WORDS = """
    type items prefixItems additionalItems additionalProperties properties required enum const pattern minimum exclusiveMinimum
    multipleOf minLength uniqueItems allOf anyOf oneOf not if then contains dependencies dependentSchemas $defs $id id $anchor $ref
    $dynamicRef $recursiveRef $recursiveAnchor nullable example examples default discriminator xml format description divisibleBy
    disallow extends patternProperties propertyNames unevaluatedItems x-y unknown
"""
KEYS = st.sampled_from(WORDS.split())
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 3),
        st.floats(),
        st.sampled_from(
            ["", "int", "true", "(", r"\p{L}", "#", "#/properties/p", "http://x/y", "object", "1.5", "List[int]"]
        ),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.one_of(KEYS, NAMES), inner, max_size=4)),
    max_leaves=10,
)


@QUICK
@given(junk=st.dictionaries(KEYS, JUNK, max_size=6))
def test_nothing_inside_a_schema_costs_the_tool(junk: dict) -> None:
    deep = {"type": "object", "properties": {"deep": junk}}
    tool = normalize_tool({"name": "f", "parameters": {"type": "object", "properties": {"p": deep}}})
    Draft202012Validator.check_schema(tool["parameters"])
    assert json.dumps(normalize_tool(tool)) == json.dumps(tool)
