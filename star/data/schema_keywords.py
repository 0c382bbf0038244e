"""Says what each keyword of JSON Schema 2020-12 holds, and checks and reads the values of those that hold no schema.

    plain_value("minimum", "3")    # 3
    plain_value("minimum", "low")  # raises Unusable

Keywords that are in none of the tables say nothing of values and may hold anything.
"""

from collections.abc import Callable
from typing import Any

from star.data.json_schema import TYPES, coerce_value
from star.data.python_types import json_schema_of_type
from star.errors import InputError

ONE_SCHEMA = frozenset(
    {"items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"}
    | {"unevaluatedItems", "unevaluatedProperties", "contentSchema"}
)
SCHEMA_LIST = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
SCHEMA_MAP = frozenset({"properties", "patternProperties", "dependentSchemas"})
# A part of these that accepts more makes the whole accept less.
TURNED = frozenset({"not", "if", "contains", "oneOf"})
COUNTS = (
    "maxLength",
    "minLength",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
    "maxContains",
    "minContains",
)
NUMBERS = ("maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum", "multipleOf")
TEXTS = ("pattern", "format", "title", "description", "$comment", "contentEncoding", "contentMediaType")
FLAGS = ("uniqueItems", "deprecated", "readOnly", "writeOnly")
SCALARS = {
    **dict.fromkeys(COUNTS, "integer"),
    **dict.fromkeys(NUMBERS, "number"),
    **dict.fromkeys(TEXTS, "string"),
    **dict.fromkeys(FLAGS, "boolean"),
}
SAYS_NOTHING = frozenset(
    {"title", "description", "$comment", "deprecated", "readOnly", "writeOnly", "examples", "format"}
)
NAME_LISTS = frozenset({"required", "dependentRequired"})
KNOWN = frozenset({"type", "const", "enum", "examples", *ONE_SCHEMA, *SCHEMA_LIST, *SCHEMA_MAP, *SCALARS, *NAME_LISTS})
NOT_OF_REQUESTS = frozenset({"readOnly", "writeOnly", "deprecated"})


class Unusable(Exception):
    """The value of a keyword cannot be used. The message says what it is."""


def type_of_text(text: str) -> dict[str, Any]:
    """Returns the keywords that a type as text stands for.

    Raises:
        Unusable: it is not a type.
    """
    try:
        return json_schema_of_type(text)[0]
    except InputError as error:
        raise Unusable(f"{text[:80]!r} is not a type: left out") from error


def plain_value(key: str, value: Any) -> Any:
    """Returns the value of a keyword that holds no schema.

    Raises:
        Unusable: it is not of the kind that the keyword needs.
    """
    check = CHECKS.get(key, lambda _: True)
    if (kind := SCALARS.get(key)) is not None:
        # A number as text is read, a text as a number is not.
        value = coerce_value(value, {"type": kind}) if kind != "string" else value
        check = KINDS[kind]
    if not check(value) or (key == "multipleOf" and value <= 0):
        raise Unusable(f"cannot be {str(value)[:80]}: left out")
    if key == "required":
        return list(dict.fromkeys(value))  # the standard wants each name once
    return {name: list(dict.fromkeys(names)) for name, names in value.items()} if key in NAME_LISTS else value


def _is_count(value: Any) -> bool:
    return TYPES.is_type(value, "integer") and value >= 0


def _is_number(value: Any) -> bool:
    return TYPES.is_type(value, "number") and value - value == 0  # neither nan nor infinite


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


KINDS: dict[str, Callable[[Any], bool]] = {
    "integer": _is_count,
    "number": _is_number,
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
}
CHECKS: dict[str, Callable[[Any], bool]] = {
    "enum": lambda value: isinstance(value, list) and bool(value),
    "examples": lambda value: isinstance(value, list),
    "required": _is_list_of_names,
    "dependentRequired": lambda value: isinstance(value, dict) and all(map(_is_list_of_names, value.values())),
}


def coerce_default(schema: dict) -> dict:
    """Gives a default the type of its parameter ("10" becomes 10) and removes one that cannot have it ('fasta' for an integer).

    An integer whose default is a fraction is a number: xLAM writes latitudes as `int` with the default '40.41'.
    """
    kinds = schema.get("type")
    if "default" not in schema or kinds is None:
        return schema
    # As text or as number: xLAM writes defaults either way.
    number = coerce_value(schema["default"], {"type": "number"})
    if kinds == "integer" and isinstance(number, float) and not number.is_integer():
        kinds = "number"
    default = coerce_value(schema["default"], {"type": kinds})
    settled = {**schema, "type": kinds, "default": default}
    if not any(TYPES.is_type(default, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        del settled["default"]
    return settled
