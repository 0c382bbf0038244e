"""Merges schemas that must all hold (`allOf`, keywords beside a reference) into one, so that generator and prompts see one object.

    merged({"minimum": 1, "title": "a"}, {"minimum": 5, "title": "b"}, exact=True)    # {"minimum": 5, "title": "a"}

What cannot become one schema without accepting more or less stays apart.
"""

from collections.abc import Callable
from typing import Any

from star.data.json_schema import same_json

# Keywords that mean something together. Two groups of one kind cannot become one.
GROUPS = (frozenset({"if", "then", "else"}), frozenset({"contains", "minContains", "maxContains"}))
# Keywords without a rule below that limit values: where they differ, the schemas stay apart.
NOT_MERGED = frozenset({"anyOf", "oneOf", "not", "const", "pattern", "format", "multipleOf", "prefixItems", "$ref"})


def all_of(first: Any, second: Any, *, exact: bool = True) -> Any:
    """Returns a schema that accepts what both accept."""
    if first is False or second is False:
        return False
    if first is True or second is True:
        return second if first is True else first
    # As the normal form has it, which must stay as it is when it is read again.
    if (both := merged(first, second, exact=exact)) is None:
        if (both := merged({}, first, exact=exact)) is None:
            return {"allOf": [first, second]}
        both = {**both, "allOf": [*both.get("allOf", []), second]}
    return {"type": both["type"], **both} if "type" in both else both


def merged(first: dict, second: dict, *, exact: bool) -> dict | None:
    """Returns one schema for two that must both hold, or None where there is no such schema without `allOf`.

    Where they differ in what says nothing of values, such as the description, the first counts.

    Args:
        exact: whether the result must accept no more than both do. Otherwise properties that only one schema names are accepted although
            the other one forbids names that it does not know: a closed base with additions is often written so.
    """
    if exact and _lose_when_merged(first, second):
        return None
    if any(group & first.keys() and group & second.keys() for group in GROUPS):
        return None
    both = dict(first)
    for key, value in second.items():
        if key not in both:
            both[key] = value
        elif not same_json(both[key], value):
            if key in NOT_MERGED:
                return None
            if (merge := MERGES.get(key)) is not None:
                if (value := merge(both[key], value)) is None:
                    return None
                both[key] = value
    return both


def _lose_when_merged(first: dict, second: dict) -> bool:
    """Whether a keyword that depends on its neighbours would accept more beside those of the other schema."""
    for one, other in ((first, second), (second, first)):
        own = set(one.get("properties", {}))
        if one.get("additionalProperties", True) not in (True, {}) and (
            set(other.get("properties", {})) - own or "patternProperties" in other
        ):
            return True
        if "items" in one and "prefixItems" in other and one.get("prefixItems") != other["prefixItems"]:
            return True
        if one.keys() & {"unevaluatedProperties", "unevaluatedItems"}:
            return True
    return False


def _types(first: Any, second: Any) -> Any:
    """Returns the types that both allow, or None. An integer is a number."""
    one, other = ([kinds] if isinstance(kinds, str) else kinds for kinds in (first, second))
    shared = [kind for kind in one if kind in other or (kind == "integer" and "number" in other)]
    shared += [kind for kind in other if kind == "integer" and "number" in one and kind not in shared]
    return None if not shared else shared[0] if len(shared) == 1 else shared


def _maps(first: dict, second: dict) -> dict:
    return first | {key: all_of(first[key], part) if key in first else part for key, part in second.items()}


def _unions(first: list, second: list) -> list:
    return first + [part for part in second if not any(same_json(part, other) for other in first)]


def _shared_values(first: list, second: list) -> list | None:
    return [value for value in first if any(same_json(value, other) for other in second)] or None


def _lists_by_name(first: dict, second: dict) -> dict:
    return first | {key: _unions(first.get(key, []), names) for key, names in second.items()}


LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
SCHEMAS = (
    "items",
    "additionalProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "propertyNames",
    "contentSchema",
)
MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "type": _types,
    "enum": _shared_values,
    "required": _unions,
    "allOf": _unions,
    "dependentRequired": _lists_by_name,
    "uniqueItems": lambda first, second: first or second,
    **dict.fromkeys(LARGER, max),
    **dict.fromkeys(SMALLER, min),
    **dict.fromkeys(("properties", "patternProperties", "dependentSchemas"), _maps),
    **dict.fromkeys(SCHEMAS, all_of),
}
