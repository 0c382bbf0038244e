"""Makes validators of JSON Schema 2020-12 whose work is bounded, whatever schema and value are.

    bounded_validator({"pattern": "^(a|a)*$"}).is_valid("a" * 40 + "!")    # False, at once

They differ from those of `jsonschema` in cost only: expressions run on `star.data.schema_patterns`, unique items are found in linear time,
and schemas that double the work at each level end in a TooMuchWork.
"""

import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry

from star.data.schema_patterns import matches
from star.limits import SCHEMA_STEPS

# Keywords that look at other schemas for the same value.
COMBINING = ("allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas", "contains", "unevaluatedItems")
Keyword = Callable[[Any, Any, Any, Any], Any]


class TooMuchWork(Exception):
    """The check of a value looks at more schemas than it may."""


class _Steps(threading.local):
    """The steps that are left to the running check."""

    left = SCHEMA_STEPS

    def take(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooMuchWork(f"a check of a value needs more than {SCHEMA_STEPS:,} steps")


_steps = _Steps()


def bounded_validator(schema: Any) -> Draft202012Validator:
    """Returns a validator for a schema. The empty registry prevents `$ref` from loading anything from elsewhere."""
    return Validator(schema, registry=Registry())


def first_error(validator: Draft202012Validator, value: object) -> ValidationError | None:
    """Returns the first reason for which the schema refuses the value, or None.

    Raises:
        TooMuchWork, SlowPattern: the schema costs too much.
        Unresolvable, RecursionError: the schema refers to nothing, or to itself without end.
    """
    _steps.left = SCHEMA_STEPS
    return next(validator.iter_errors(value), None)


def _counted(check: Keyword) -> Keyword:
    def counted(validator: Any, keyword: Any, instance: Any, schema: Any) -> Any:
        _steps.take()
        return check(validator, keyword, instance, schema)

    return counted


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: dict, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, part in patterns.items():
        for name, value in instance.items():
            if matches(pattern, name):
                yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(validator: Any, others: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    known = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    extras = [name for name in instance if name not in known and not any(matches(one, name) for one in patterns)]
    if validator.is_type(others, "object"):
        for name in extras:
            yield from validator.descend(instance[name], others, path=name)
    elif not others and extras:
        names = ", ".join(map(repr, sorted(extras)))
        if patterns:
            does = "does" if len(extras) == 1 else "do"
            yield ValidationError(
                f"{names} {does} not match any of the regexes: {', '.join(map(repr, sorted(patterns)))}"
            )
        else:
            was = "was" if len(extras) == 1 else "were"
            yield ValidationError(f"Additional properties are not allowed ({names} {was} unexpected)")


def _multiple_of(validator: Any, divisor: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "number"):
        return
    try:
        yield from Draft202012Validator.VALIDATORS["multipleOf"](validator, divisor, instance, schema)
        return
    # The library divides as fractions of the machine: an integer may be too large for one, and nan and infinity are nothing's multiple.
    except (OverflowError, ValueError):
        whole = instance == instance and abs(instance) != float("inf") and not Fraction(instance) % Fraction(divisor)
    if not whole:
        yield ValidationError(f"{str(instance)[:80]} is not a multiple of {str(divisor)[:80]}")


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if wanted and validator.is_type(instance, "array") and len(set(map(_key, instance))) < len(instance):
        yield ValidationError(f"{instance!r} has non-unique elements")


def _key(value: Any) -> object:
    """Returns what two values share exactly if they are the same JSON. In Python True equals 1."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return ("list", tuple(map(_key, value)))
    if isinstance(value, dict):
        return ("dict", frozenset((name, _key(part)) for name, part in value.items()))
    return value


def _unevaluated_properties(validator: Any, others: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Asks the library, with the names that patterns allow written out: it would search with Python's own engine."""
    if validator.is_type(instance, "object"):
        _steps.take()
        yield from Draft202012Validator.VALIDATORS["unevaluatedProperties"](
            validator, others, instance, _without_patterns(schema, instance)
        )


def _without_patterns(schema: Any, instance: dict) -> Any:
    if not isinstance(schema, dict):
        return schema
    parts = dict(schema)
    for key in ("allOf", "anyOf", "oneOf"):
        if key in parts:
            parts[key] = [_without_patterns(part, instance) for part in parts[key]]
    for key in ("if", "then", "else"):
        if key in parts:
            parts[key] = _without_patterns(parts[key], instance)
    if "dependentSchemas" in parts:
        parts["dependentSchemas"] = {
            name: _without_patterns(part, instance) for name, part in parts["dependentSchemas"].items()
        }
    if patterns := parts.pop("patternProperties", None):
        known = parts.get("properties", {})
        found = {name: [part for one, part in patterns.items() if matches(one, name)] for name in instance}
        named = {name: {"allOf": [*listed, known.get(name, True)]} for name, listed in found.items() if listed}
        parts["properties"] = {**known, **named}
    return parts


Validator = extend(
    Draft202012Validator,
    {
        **{key: _counted(Draft202012Validator.VALIDATORS[key]) for key in COMBINING},
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "multipleOf": _multiple_of,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
        "unevaluatedProperties": _unevaluated_properties,
    },
)
