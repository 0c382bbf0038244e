"""The offline generator: training rows from tool schemas alone, no model and no network.

Every value is drawn from the schema (enum, examples, minimum and maximum, format, type). A tool may carry `x-queries`: ways people
ask for it, with `{parameter}` where a value goes; a tool without them is asked for by its own description. The same tools, count and
seed always give the same rows, and row i does not depend on how many rows are made.
"""

import hashlib
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from star.errors import InputError

REFUSAL = "None of the given tools can do that."
OPENINGS = ("", "", "please ", "hello, ")
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
KINDS = {"simple": 0.55, "parallel": 0.25, "irrelevance": 0.2}
WORDS = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "flint",
    "grove",
    "harbor",
    "ivory",
    "juniper",
    "kestrel",
    "lotus",
    "maple",
)


@dataclass(frozen=True)
class Request:
    """One thing the user asks for: the words, and the call that answers it."""

    text: str
    call: dict


def generate_rows(tools: list[dict], count: int, *, seed: int, tools_per_prompt: int = 3) -> Iterator[dict]:
    """Yields `count` rows of the kinds simple, parallel and irrelevance.

    Args:
        tools: normal-form tools, which may carry `x-queries` and `examples`.
        tools_per_prompt: how many tools a prompt shows, at most; one to this many are drawn.

    Raises:
        InputError: fewer than two tools, so nothing could ever be chosen or refused.
    """
    if len(tools) < 2:
        raise InputError(
            f"the generator needs at least 2 tools to choose between, got {len(tools)}: add tools to the tools file"
        )
    for index in range(count):
        rng = random.Random(f"{seed}:{index}")
        yield _row(tools, rng, seed=seed, index=index, tools_per_prompt=min(tools_per_prompt, len(tools)))


def public_tool(tool: dict) -> dict:
    """The tool as a prompt shows it: without `x-` hints and without `examples`, which are for the generator only."""
    properties = {
        name: {key: value for key, value in schema.items() if key != "examples"} if isinstance(schema, dict) else schema
        for name, schema in tool["parameters"]["properties"].items()
    }
    return {
        "name": tool["name"],
        "description": tool["description"],
        "parameters": {**tool["parameters"], "properties": properties},
    }


def _row(tools: list[dict], rng: random.Random, *, seed: int, index: int, tools_per_prompt: int) -> dict:
    kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
    wanted = rng.sample(tools, 2 if kind == "parallel" and rng.random() < 0.5 else 1)
    requests = [_request(tool, rng) for tool in wanted]
    if kind == "parallel" and len(wanted) == 1:
        requests.append(_request(wanted[0], rng))
    others = [tool for tool in tools if tool not in wanted]
    rng.shuffle(others)
    shown = others[: rng.randint(1, tools_per_prompt)]
    if kind != "irrelevance":
        shown = wanted + others[: max(0, len(shown) - len(wanted))]
        rng.shuffle(shown)
    target = _target([request.call for request in requests], given=kind != "irrelevance")
    query = rng.choice(OPENINGS) + " and ".join(request.text for request in requests)
    query = query[0].upper() + query[1:]
    row = {"messages": [{"role": "user", "content": query}, target], "tools": [public_tool(tool) for tool in shown]}
    digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:12]
    return {"id": f"gen-{seed}-{index}-{digest}", **row, "source": "generated", "kind": kind}


def _target(calls: list[dict], *, given: bool) -> dict:
    """The answer, with a word of reasoning: which tools the request needs, and whether they are there."""
    needed = ", ".join(dict.fromkeys(call["name"] for call in calls))
    reasoning = f"{needed}: {'given' if given else 'missing'}"
    answer = {"content": "", "tool_calls": calls} if given else {"content": REFUSAL, "tool_calls": []}
    return {"role": "assistant", **answer, "reasoning_content": reasoning}


def _request(tool: dict, rng: random.Random) -> Request:
    properties = tool["parameters"]["properties"]
    required = set(tool["parameters"].get("required", []))
    arguments: dict[str, object] = {}
    for name, schema in properties.items():
        if name in required or rng.random() < 0.5:
            arguments[name] = _draw_unused(schema, rng, used=list(arguments.values()))
    templates = [text for text in tool.get("x-queries", []) if set(PLACEHOLDER.findall(text)) == arguments.keys()]
    if templates:
        text = rng.choice(templates)
        for name, value in arguments.items():
            text = text.replace("{" + name + "}", spoken(value))
        return Request(text, {"name": tool["name"], "arguments": arguments})
    said = ", ".join(f"{name.replace('_', ' ')} {spoken(value)}" for name, value in arguments.items())
    ask = tool["description"].split(". ")[0].rstrip(".") or tool["name"].replace("_", " ")
    return Request(f"{ask}: {said}" if said else ask, {"name": tool["name"], "arguments": arguments})


def _draw_unused(schema: dict, rng: random.Random, *, used: list) -> object:
    """A value that no other argument of the request has, where the schema leaves that choice: nobody flies from Oslo to Oslo."""
    for _ in range(8):
        value = draw_value(schema, rng)
        if value not in used:
            break
    return value


def draw_value(schema: dict | bool, rng: random.Random) -> object:
    """One value that the schema accepts: its enum or examples first, then what its type and format say."""
    if not isinstance(schema, dict):  # `true` accepts anything
        schema = {}
    if choices := schema.get("enum") or schema.get("examples"):
        return rng.choice(choices)
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "integer":
        low, high = _bounds(schema, width=99)
        return rng.randint(math.ceil(low), max(math.ceil(low), math.floor(high)))
    if kind == "number":
        low, high = _bounds(schema, width=100)
        return min(max(round(rng.uniform(low, high), 1), low), high)
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "array":
        return [draw_value(schema.get("items", {}), rng) for _ in range(max(2, schema.get("minItems", 0)))]
    if kind == "object":
        return {key: draw_value(part, rng) for key, part in schema.get("properties", {}).items()}
    return _string(schema.get("format", ""), rng)


def _bounds(schema: dict, *, width: int) -> tuple[float, float]:
    low = schema.get("minimum", min(1, schema["maximum"] - width) if "maximum" in schema else 1)
    return low, schema.get("maximum", low + width)


def _string(form: str, rng: random.Random) -> str:
    word = rng.choice(WORDS)
    day = f"2026-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    made = {
        "date": day,
        "date-time": f"{day}T{rng.randint(0, 23):02d}:00:00Z",
        "time": f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:00Z",
        "email": f"{word}@example.com",
        "uri": f"https://example.com/{word}",
        "uuid": "-".join(f"{rng.getrandbits(bits):0{bits // 4}x}" for bits in (32, 16, 16, 16, 48)),
        "ipv4": ".".join(str(rng.randint(1, 254)) for _ in range(4)),
    }
    return made.get(form, word)


def spoken(value: object) -> str:
    """A value as a person would write it in a request."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " and ".join(spoken(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
