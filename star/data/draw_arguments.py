"""Draws the arguments of a call from a tool's parameters.

draw_arguments(book_hotel, random.Random(0))    # {"city": "Rome", "nights": 22}
"""

import random

from star.data.draw_values import draw_value
from star.data.json_schema import is_valid
from star.errors import InputError
from star.time_limit import TookTooLong, record_limit

MAX_TRIES = 20
# Keywords of a tool's parameters that do not make one argument depend on another.
INDEPENDENT = frozenset({"type", "properties", "required", "additionalProperties", "title", "description", "examples"})


def draw_arguments(tool: dict, rng: random.Random) -> dict[str, object]:
    """Draws arguments of a call of a tool in normal form.

    Raises:
        InputError: that takes too long.
    """
    try:
        with record_limit():
            return _arguments(tool["parameters"], rng)
    except (TookTooLong, RecursionError) as error:
        raise InputError(f"no arguments of tool {tool['name'][:80]!r} can be drawn: {error}") from error


def _arguments(parameters: dict, rng: random.Random) -> dict[str, object]:
    """Draws arguments of a call. Where the parameters depend on each other, they are drawn until they fit together."""
    if parameters.keys() <= INDEPENDENT:
        return _independent_arguments(parameters, rng)
    for _ in range(MAX_TRIES):
        alternatives = [
            part for part in parameters.get("oneOf") or parameters.get("anyOf") or [] if isinstance(part, dict)
        ]
        chosen = rng.choice(alternatives) if alternatives else {}
        # A parameter that only other alternatives name would make the call fit none.
        foreign = {name for part in alternatives for name in part.get("properties", {})} - chosen.get(
            "properties", {}
        ).keys()
        own = {name: part for name, part in parameters["properties"].items() if name not in foreign}
        required = [*parameters["required"], *chosen.get("required", [])]
        drawn = {"properties": own | chosen.get("properties", {}), "required": required}
        arguments = _independent_arguments(drawn, rng)
        if is_valid(arguments, parameters):
            break
    return arguments


def _independent_arguments(parameters: dict, rng: random.Random) -> dict[str, object]:
    required = set(parameters.get("required", []))
    arguments: dict[str, object] = {}
    for name, schema in parameters["properties"].items():
        if name in required or rng.random() < 0.5:
            arguments[name] = _draw_unused(schema, rng, name=name, used=list(arguments.values()))
    return arguments


def _draw_unused(schema: dict, rng: random.Random, *, name: str, used: list) -> object:
    """Draws a value that no other argument of the request has, where the schema allows it: nobody flies from Oslo to Oslo."""
    for _ in range(8):
        value = draw_value(schema, rng, name=name)
        if value not in used:
            break
    return value
