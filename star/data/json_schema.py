"""Checks values and schemas with JSON Schema 2020-12, and changes a value to the type that a schema names.

    is_valid(5, {"type": "integer", "minimum": 1})    # True
    coerce_value("5", {"type": "integer"})            # 5

No reference is followed to another document.
"""

import json

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing.exceptions import Unresolvable

from star.data.cached_by_text import cached_by_text
from star.data.json_schema_validator import TooMuchWork, bounded_validator, first_error
from star.data.schema_patterns import SlowPattern

TYPES = Draft202012Validator({})
# A valid schema may still refer to nothing, or to itself without end, or cost too much.
UNUSABLE = (Unresolvable, RecursionError, SlowPattern, TooMuchWork)


@cached_by_text
def check_schema(schema: str) -> None:
    """Checks a schema, given as JSON text. Cached, because many tools share a schema and a check takes milliseconds.

    Raises:
        SchemaError: it is not valid JSON Schema.
    """
    Draft202012Validator.check_schema(json.loads(schema))


@cached_by_text
def _validator(schema: str) -> Draft202012Validator:
    return bounded_validator(json.loads(schema))


def fault_of_value(value: object, schema: dict) -> ValidationError | None:
    """Returns the first reason for which the schema refuses the value, or None.

    Raises:
        any of UNUSABLE: the schema cannot be used.
    """
    # As text, because the cache of validators needs a key that can be hashed.
    return first_error(_validator(json.dumps(schema)), value)


def is_valid(value: object, schema: dict) -> bool:
    """Whether the schema accepts the value. A schema that cannot be used accepts nothing."""
    try:
        return fault_of_value(value, schema) is None
    except UNUSABLE:
        return False


def coerce_value(value: object, schema: dict) -> object:
    """Returns the value in the scalar type that the schema names, where its text stays the same: "5" becomes 5, "true" becomes true.

    Any other value is returned unchanged, and the schema rejects it later.
    """
    wanted = schema.get("type")
    if wanted == "string" and isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if wanted in ("integer", "number", "boolean") and isinstance(value, str):
        text = value.strip()
        try:
            # Lower case, because data sets write Python's True and False, too.
            read = json.loads(text.lower() if wanted == "boolean" else text)
        except (ValueError, RecursionError):
            return value
        return read if TYPES.is_type(read, wanted) and read - read == 0 else value  # nan and inf are not JSON
    return value


def same_json(first: object, second: object) -> bool:
    """Whether two values are the same JSON. In Python 1 equals True, in JSON it does not."""
    return json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
