"""Draws values for a tool's parameters from their schemas, and writes values as a person would say them.

    draw_value({"type": "integer", "minimum": 1, "maximum": 3}, random.Random(0), name="guests")    # 2
    value_as_text(["Oslo", "Rome"])                                                                 # "Oslo and Rome"

The values that a schema names (const, enum, examples) come first, then its type, bounds, pattern and format. A text that nothing describes
is drawn by the parameter's name from Faker (`city` gives a city), else it is a plain word. All randomness comes from the generator that is
given, and the rows of a seed depend on the order of the draws.
"""

import json
import math
import random
import re
from functools import cache

from star.data.draw_patterns import draw_by_pattern
from star.data.json_schema import is_valid
from star.data.schema_merge import merged
from star.data.schema_normal_form import is_cut_off
from star.data.schema_patterns import SlowPattern, matches
from star.limits import DRAWN_CHARACTERS, DRAWN_ITEMS, DRAWN_ITEMS_IN_ALL

WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "flint", "grove", "harbor", "ivory", "juniper", "kestrel", "lotus", "maple",
)  # fmt: skip
# Faker's provider for a parameter whose name contains the word. The first match counts.
PROVIDERS = {
    "email": "email", "phone": "phone_number", "url": "url", "uri": "url", "link": "url", "website": "url", "domain": "domain_name",
    "city": "city", "town": "city", "location": "city", "place": "city", "origin": "city", "destination": "city", "country": "country",
    "state": "state", "address": "street_address", "street": "street_name", "zip": "postcode", "postal": "postcode",
    "first": "first_name", "last": "last_name", "username": "user_name", "user": "user_name", "author": "name", "recipient": "name",
    "company": "company", "organization": "company", "job": "job", "currency": "currency_code", "language": "language_name",
    "color": "color_name", "colour": "color_name", "ip": "ipv4", "date": "date", "time": "time", "isbn": "isbn13", "iban": "iban",
    "file": "file_name", "message": "sentence", "text": "sentence", "query": "bs", "title": "catch_phrase", "name": "name",
}  # fmt: skip
POOL_SIZE = 64  # number of values that are drawn from a provider
MAX_DEPTH = 6  # below this level, arrays and objects get as few parts as their schema allows
MAX_TRIES = 20
# Keywords that a drawn value may fail, so it is checked.
CHECKED = frozenset(
    {"allOf", "not", "if", "then", "else", "dependentSchemas", "dependentRequired", "unevaluatedProperties"}
)


class _Items:
    """The items of lists that the value may still get: lists in lists multiply what their schemas ask for."""

    left = DRAWN_ITEMS_IN_ALL


def draw_value(schema: dict | bool, rng: random.Random, *, name: str = "", depth: int = 0) -> object:
    """Draws a value that the schema should accept.

    Args:
        name: name of the parameter, by which a plain text is chosen.
        depth: number of arrays and objects around the value.
    """
    if depth == 0:
        _Items.left = DRAWN_ITEMS_IN_ALL
    if not isinstance(schema, dict):  # `true` accepts anything
        schema = {}
    if "const" in schema:
        return schema["const"]
    if choices := schema.get("enum") or schema.get("examples"):
        return rng.choice(choices)
    if not CHECKED.isdisjoint(schema):
        return _draw_checked(schema, rng, name=name, depth=depth)
    if parts := schema.get("oneOf") or schema.get("anyOf"):
        return _draw_alternative(schema, parts, rng, name=name, depth=depth)
    kind = schema.get("type") or _type_by_keywords(schema)
    # Null says nothing in a request, so another type is drawn where there is one.
    kind = next((one for one in kind if one != "null"), "null") if isinstance(kind, list) else kind
    match kind:
        case "integer" | "number":
            draw = _draw_integer if kind == "integer" else _draw_number
            try:
                return draw(schema, rng)
            except (OverflowError, ValueError):  # bounds at the end of what numbers can be
                return 0
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "array":
            return _draw_array(schema, rng, name=name, depth=depth + 1)
        case "object":
            return _draw_object(schema, rng, depth=depth + 1)
    return _draw_string(schema, rng, name=name)


def _type_by_keywords(schema: dict) -> str:
    return "object" if "properties" in schema else "array" if schema.keys() & {"items", "prefixItems"} else "string"


def _draw_checked(schema: dict, rng: random.Random, *, name: str, depth: int) -> object:
    """Draws from the schema and from what its conditions add, until the whole schema accepts a value."""
    plain = {key: value for key, value in schema.items() if key not in CHECKED}
    for part in schema.get("allOf", []):
        plain = _with_part(plain, part)
    conditional = [schema[key] for key in ("then", "else") if key in schema]
    others = [_with_part(plain, part) for part in [*conditional, *schema.get("dependentSchemas", {}).values()]]
    if isinstance(kinds := plain.get("type"), list):
        others += [{**plain, "type": kind} for kind in kinds]
    for _ in range(MAX_TRIES):
        value = draw_value(rng.choice([plain, *others]), rng, name=name, depth=depth)
        if is_valid(value, schema):
            break
    return value


def _with_part(schema: dict, part: dict | bool) -> dict:
    """Returns a schema to draw from that asks for both, or for what the part asks where they cannot become one."""
    if isinstance(part, bool):
        return schema
    part = {key: value for key, value in part.items() if key not in ("description", "title")}
    both = merged(schema, part, exact=False)
    return {**schema, **part} if both is None else both


def _draw_alternative(schema: dict, parts: list, rng: random.Random, *, name: str, depth: int) -> object:
    """Draws a value of one alternative that the whole schema accepts: `oneOf` rejects a value that fits two of them."""
    used = "oneOf" if schema.get("oneOf") else "anyOf"
    shared = {key: value for key, value in schema.items() if key not in (used, "description", "title")}
    options = [part for part in parts if isinstance(part, dict) and part.get("type") != "null"] or parts
    # What stands for a schema inside itself says nothing of its values.
    options = (
        [part for part in options if not is_cut_off(part)] or [part for part in parts if not is_cut_off(part)] or parts
    )
    for _ in range(MAX_TRIES):
        part = rng.choice(options)
        value = draw_value(_with_part(shared, part), rng, name=name, depth=depth)
        if is_valid(value, schema):
            break
    return value


def _draw_number(schema: dict, rng: random.Random) -> float:
    low, high = _bounds(schema, width=100)
    if low > high:  # less than 1 apart, and a bound is not allowed itself
        low, high = schema.get("exclusiveMinimum", low), schema.get("exclusiveMaximum", high)
        return (low + high) / 2
    if step := schema.get("multipleOf"):
        # Not every product is a multiple for a checker: 0.01 has no exact binary form.
        for _ in range(MAX_TRIES):
            value = round(
                step * rng.randint(math.ceil(low / step), max(math.ceil(low / step), math.floor(high / step))), 10
            )
            if is_valid(value, schema):
                break
        return value
    # Rounding can step over a bound.
    return min(max(round(rng.uniform(low, high), 1), low), high)


def _draw_integer(schema: dict, rng: random.Random) -> int:
    low, high = _bounds(schema, width=99)
    step = schema.get("multipleOf", 1)
    if step > 1 and step == int(step):
        step = int(step)
        first = math.ceil(low / step)
        return step * rng.randint(first, max(first, math.floor(high / step)))
    return rng.randint(math.ceil(low), max(math.ceil(low), math.floor(high)))


def _bounds(schema: dict, *, width: int) -> tuple[float, float]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMinimum" in schema and (low is None or low <= schema["exclusiveMinimum"]):
        low = schema["exclusiveMinimum"] + 1
    if "exclusiveMaximum" in schema and (high is None or high >= schema["exclusiveMaximum"]):
        high = schema["exclusiveMaximum"] - 1
    if low is None:
        low = 1 if high is None else min(1, high - width)
    return low, low + width if high is None else high


def _draw_array(schema: dict, rng: random.Random, *, name: str, depth: int) -> list:
    # No more than a prompt could hold: the cleaning leaves out a row whose value the schema refuses, and says so of the tool.
    least, most = min(int(schema.get("minItems", 0)), DRAWN_ITEMS), schema.get("maxItems", math.inf)
    items = schema.get("items", {})
    drawn = [draw_value(part, rng, name=name, depth=depth) for part in schema.get("prefixItems", [])]
    if "contains" in schema:
        times = min(int(schema.get("minContains", 1)), DRAWN_ITEMS)
        drawn += [draw_value(schema["contains"], rng, name=name, depth=depth) for _ in range(times)]
    most = min(most, len(drawn)) if items in (False, {"not": {}}) else most
    drawn = drawn if len(drawn) <= most else drawn[: int(most)]
    # A schema inside itself says nothing of its values, so fewer are better.
    wanted = least if depth > MAX_DEPTH or is_cut_off(items) else min(max(2, least), most)
    # Bounded, because there may be fewer distinct values than the schema wants.
    for _ in range(MAX_TRIES * max(1, least)):
        if len(drawn) >= wanted or _Items.left <= 0:
            break
        _Items.left -= 1
        value = draw_value(items, rng, name=name.removesuffix("s"), depth=depth)
        if not schema.get("uniqueItems") or value not in drawn:
            drawn.append(value)
    return drawn


def _draw_object(schema: dict, rng: random.Random, *, depth: int) -> dict:
    required = set(schema.get("required", []))
    properties = schema.get("properties", {})
    value = {
        key: draw_value(part, rng, name=key, depth=depth)
        for key, part in properties.items()
        if key in required or (depth <= MAX_DEPTH and part is not False and not _leads_into_itself(part))
    }
    others = schema.get("additionalProperties", {})
    for key in sorted(required - properties.keys()):
        value[key] = draw_value(_schema_of_name(key, schema), rng, name=key, depth=depth)
    if not properties and depth <= MAX_DEPTH and not value:
        for pattern, part in schema.get("patternProperties", {}).items():
            value[draw_by_pattern(pattern, rng, least=1, most=40) or rng.choice(WORDS)] = draw_value(
                part, rng, depth=depth
            )
        if isinstance(schema.get("additionalProperties"), dict) and not value and not is_cut_off(others):
            count = min(max(1, int(schema.get("minProperties", 1))), DRAWN_ITEMS)
            value |= {key: draw_value(others, rng, depth=depth) for key in _draw_names(schema, rng, count)}
    return value


def _schema_of_name(name: str, schema: dict) -> dict | bool:
    """Returns the schema of a property that is required but not described by its name."""
    patterns = schema.get("patternProperties", {})
    return next(
        (part for pattern, part in patterns.items() if _is_named(pattern, name)), schema.get("additionalProperties", {})
    )


def _is_named(pattern: str, name: str) -> bool:
    try:
        return matches(pattern, name)
    except SlowPattern:
        return False


def _draw_names(schema: dict, rng: random.Random, count: int) -> list[str]:
    names = schema.get("propertyNames")
    if not isinstance(names, dict):
        return rng.sample(WORDS, min(count, len(WORDS)))
    if isinstance(listed := names.get("enum"), list):
        return [str(name) for name in rng.sample(listed, min(count, len(listed)))]
    return [str(draw_value({"type": "string", **names}, rng, depth=1)) for _ in range(count)]


def _leads_into_itself(schema: dict | bool) -> bool:
    """Whether the value of an optional property would be one of which nothing is known."""
    if not isinstance(schema, dict):
        return False
    parts = [part for part in schema.get("anyOf") or schema.get("oneOf") or [schema] if part != {"type": "null"}]
    return bool(parts) and all(is_cut_off(part) for part in parts)


def _draw_string(schema: dict, rng: random.Random, *, name: str) -> str:
    if isinstance(pattern := schema.get("pattern"), str):
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if (drawn := draw_by_pattern(pattern, rng, least=least, most=most)) is not None:
            return drawn
    text = _draw_by_format(schema.get("format", ""), rng) or _draw_by_name(name, rng) or rng.choice(WORDS)
    while len(text) < min(schema.get("minLength", 0), DRAWN_CHARACTERS):
        text += rng.choice(WORDS)
    return text[: schema.get("maxLength")]


def _draw_by_format(form: str, rng: random.Random) -> str:
    word = rng.choice(WORDS)
    day = f"2026-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    # All are drawn, whatever the format: to draw only one would change the rows of every seed.
    made = {
        "date": day,
        "date-time": f"{day}T{rng.randint(0, 23):02d}:00:00Z",
        "time": f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:00Z",
        "email": f"{word}@example.com",
        "uri": f"https://example.com/{word}",
        "url": f"https://example.com/{word}",
        "hostname": f"{word}.example.com",
        "uuid": "-".join(f"{rng.getrandbits(bits):0{bits // 4}x}" for bits in (32, 16, 16, 16, 48)),
        "ipv4": ".".join(str(rng.randint(1, 254)) for _ in range(4)),
    }
    return made.get(form, "")


def _draw_by_name(name: str, rng: random.Random) -> str:
    words = set(name_as_words(name).lower().split())
    provider = next((provider for word, provider in PROVIDERS.items() if word in words), None)
    return rng.choice(_value_pool(provider)) if provider else ""


@cache
def _value_pool(provider: str) -> list[str]:
    from faker import Faker

    # A pool with a seed of its own: a shared Faker would make a row depend on the rows before it.
    faker = Faker("en_US", use_weighting=False)
    faker.seed_instance(f"star:{provider}")
    return list(dict.fromkeys(str(getattr(faker, provider)()).replace("\n", ", ") for _ in range(POOL_SIZE)))


@cache
def name_as_words(name: str) -> str:
    """Returns a name as a person says it: shipment_id, shipmentId and shipment-id become `shipment id`."""
    return " ".join(
        re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).replace("_", " ").replace("-", " ").replace(".", " ").split()
    )


def value_as_text(value: object) -> str:
    """Returns a value as a person would write it in a request."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " and ".join(value_as_text(part) for part in value)
    if isinstance(value, dict) and value:
        return ", ".join(f"{name_as_words(name)} {value_as_text(part)}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
