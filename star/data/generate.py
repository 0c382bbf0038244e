"""The offline generator: training rows from tool schemas alone, no model and no network.

A tool may carry `x-queries`: ways people ask for it, with `{parameter}` where a value goes; a tool without them is asked for by its own
description. The same tools, count, kinds and seed always give the same rows, and row i does not depend on how many rows are made.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from star.config.row_kinds import ROW_KIND_WEIGHTS
from star.data.masking import mask_row, shuffle_row
from star.data.tools import is_valid
from star.data.values import draw_value, spoken, words_of
from star.errors import InputError

REFUSAL = "None of the given tools can do that."
OPENINGS = ("", "", "please ", "hello, ")
ASKS = ("{ask}: {said}", "{ask}, {said}", "{ask} with {said}", "I need this: {ask}, {said}")
DONE = "Done."
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
NEIGHBOURS = 64  # tools a row looks at: with ten thousand, a row draws from as many as these
SMALL_WORDS = frozenset({"a", "an", "and", "by", "for", "from", "get", "in", "of", "on", "the", "to", "with"})
SAME_WORK = 0.6  # share of words in name and description from which another tool may do the same


@dataclass(frozen=True)
class Request:
    """One thing the user asks for: the words, and the call that answers it."""

    text: str
    call: dict


@dataclass(frozen=True)
class Conversation:
    """What a kind makes: the tools that were asked for, all messages with the target last, and whether those tools are shown."""

    wanted: list[dict]
    messages: list[dict]
    shown: bool = True
    least_tools: int = 1


def generate_rows(
    tools: list[dict],
    count: int,
    *,
    seed: int,
    tools_per_prompt: int = 3,
    kinds: Mapping[str, float] = ROW_KIND_WEIGHTS,
    masked: float = 0.0,
    licence: str = "own",
    start: int = 0,
) -> Iterator[dict]:
    """Rows `start` to `count` of the kinds asked for, made one at a time.

    Args:
        tools: normal-form tools, which may carry `x-queries` and `examples`.
        tools_per_prompt: how many tools a prompt shows, at most; one to this many are drawn (and never fewer than are called).
        kinds: weight of each kind of `ROW_KIND_WEIGHTS`.
        masked: share of rows whose functions and parameters get random names and another order (Hammer).
        licence: written on every row; the tools' owner decides.

    Raises:
        InputError: fewer than two tools, so nothing could ever be chosen or refused; no kind, or one that cannot be made of these tools.
    """
    if len(tools) < 2:
        raise InputError(
            f"the generator needs at least 2 tools to choose between, got {len(tools)}: add tools to the tools file"
        )
    weights = _weights(kinds, tools)
    tools = [_with_usable_examples(tool) for tool in tools]
    shown = {tool["name"]: public_tool(tool) for tool in tools}
    provenance = {"generator": "star-offline-2", "licence": licence, "parents": [], "seed": seed}

    def row_of(index: int) -> dict:
        rng = random.Random(f"{seed}:{index}")
        kind = rng.choices(list(weights), cum_weights=list(weights.values()))[0]
        made = _conversation(kind, tools, rng, tools_per_prompt=tools_per_prompt)
        row = {"messages": made["messages"], "tools": [shown[name] for name in made["tools"]]}
        digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:12]
        row = {"id": f"gen-{seed}-{index}-{digest}", **row, "source": "generated", "kind": kind, **provenance}
        if masked and (own := random.Random(f"{seed}:{index}:mask")).random() < masked:
            row = {**mask_row(shuffle_row(row, own), own), "id": f"{row['id']}-masked", "parents": [row["id"]]}
        return row

    return map(row_of, range(start, count))


def _weights(kinds: Mapping[str, float], tools: list[dict]) -> dict[str, float]:
    """Cumulative weights of the kinds wanted."""
    if unknown := sorted(kinds.keys() - ROW_KIND_WEIGHTS.keys()):
        raise InputError(f"there is no kind of row named {unknown[0]!r}: use some of {', '.join(ROW_KIND_WEIGHTS)}")
    # In one order, however the configuration came: as a file or as a task's sorted JSON.
    wanted = {kind: kinds[kind] for kind in sorted(kinds) if kinds[kind] > 0}
    if not wanted:
        raise InputError("no kind of row has a weight above 0: give one")
    if "missing-parameter" in wanted and not any(_askable(tool) for tool in tools):
        wanted.pop("missing-parameter")  # no tool needs anything that a user could leave out
    if not wanted:
        raise InputError(
            "no tool has a required parameter, so there are no rows of the kind missing-parameter: choose other kinds"
        )
    return dict(zip(wanted, accumulate(wanted.values()), strict=True))


def public_tool(tool: dict) -> dict:
    """The tool as a prompt shows it: without `x-` hints and without `examples`, which are for the generator only."""
    return {
        "name": tool["name"],
        "description": tool["description"],
        "parameters": _without_examples(tool["parameters"]),
    }


def _without_examples(schema: object) -> object:
    if not isinstance(schema, dict):
        return schema
    shown = {key: value for key, value in schema.items() if key != "examples"}
    for key in ("properties", "$defs", "definitions"):
        if isinstance(shown.get(key), dict):
            shown[key] = {name: _without_examples(part) for name, part in shown[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if key in shown:
            shown[key] = _without_examples(shown[key])
    for key in ("oneOf", "anyOf", "allOf", "prefixItems"):
        if isinstance(shown.get(key), list):
            shown[key] = [_without_examples(part) for part in shown[key]]
    return shown


def _with_usable_examples(tool: dict) -> dict:
    """The tool without the examples that its own schema refuses."""
    properties = {}
    for name, schema in tool["parameters"]["properties"].items():
        if isinstance(schema, dict) and isinstance(examples := schema.get("examples"), list):
            rest = {key: value for key, value in schema.items() if key != "examples"}
            usable = [value for value in examples if is_valid(value, rest)]
            schema = {**rest, "examples": usable} if usable else rest
        properties[name] = schema
    return {**tool, "parameters": {**tool["parameters"], "properties": properties}}


def _conversation(kind: str, tools: list[dict], rng: random.Random, *, tools_per_prompt: int) -> dict:
    """{"messages", "tools": names in the order shown} of one row."""
    pool = tools if len(tools) <= NEIGHBOURS else rng.sample(tools, NEIGHBOURS)
    made = MAKERS[kind](pool, rng)
    names = [tool["name"] for tool in made.wanted]
    others = [tool for tool in pool if tool["name"] not in names]
    if not made.shown:
        others = [tool for tool in others if not _may_do_the_same(tool, made.wanted[0])]
    rng.shuffle(others)
    wanted_count = max(rng.randint(1, min(tools_per_prompt, len(pool))), made.least_tools)
    if made.shown:
        shown = names + [tool["name"] for tool in others[: max(0, wanted_count - len(names))]]
        rng.shuffle(shown)
    else:
        shown = [tool["name"] for tool in others[:wanted_count]]
    return {"messages": [_opened(made.messages[0], rng), *made.messages[1:]], "tools": shown}


def _may_do_the_same(other: dict, wanted: dict) -> bool:
    """Whether another tool could answer the request that was made for `wanted`: much the same words say what it is."""
    mine, theirs = _work_words(wanted["name"], wanted["description"]), _work_words(other["name"], other["description"])
    return len(mine & theirs) / max(1, len(mine | theirs)) >= SAME_WORK


@cache
def _work_words(name: str, description: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", f"{words_of(name)} {description}".lower())) - SMALL_WORDS


def _asked(*requests: Request) -> dict:
    return {"role": "user", "content": " and ".join(request.text for request in requests)}


def _opened(message: dict, rng: random.Random) -> dict:
    query = rng.choice(OPENINGS) + message["content"]
    return {**message, "content": query[0].upper() + query[1:]}


def _calls(requests: list[Request], *, reasoning: bool = True) -> dict:
    """The answer that makes the calls, with a word of reasoning: which tools the request needs, and that they are there."""
    needed = ", ".join(dict.fromkeys(request.call["name"] for request in requests))
    calls = [request.call for request in requests]
    return {"role": "assistant", "content": "", "tool_calls": calls} | (
        {"reasoning_content": f"{needed}: given"} if reasoning else {}
    )


def _reply(content: str, *, reasoning: str | None = None) -> dict:
    said = {"role": "assistant", "content": content, "tool_calls": []}
    return said if reasoning is None else said | {"reasoning_content": reasoning}


def _simple(pool: list[dict], rng: random.Random, *, least_tools: int = 1) -> Conversation:
    [tool] = rng.sample(pool, 1)
    request = _request(tool, rng)
    return Conversation([tool], [_asked(request), _calls([request])], least_tools=least_tools)


def _multiple(pool: list[dict], rng: random.Random) -> Conversation:
    return _simple(pool, rng, least_tools=2)


def _parallel(pool: list[dict], rng: random.Random) -> Conversation:
    [tool] = rng.sample(pool, 1)
    requests = [_request(tool, rng), _request(tool, rng)]
    return Conversation([tool], [_asked(*requests), _calls(requests)])


def _parallel_multiple(pool: list[dict], rng: random.Random) -> Conversation:
    wanted = rng.sample(pool, 2)
    requests = [_request(tool, rng) for tool in wanted]
    return Conversation(wanted, [_asked(*requests), _calls(requests)])


def _irrelevance(pool: list[dict], rng: random.Random) -> Conversation:
    [tool] = rng.sample(pool, 1)
    request = _request(tool, rng)
    refusal = _reply(REFUSAL, reasoning=f"{tool['name']}: missing")
    return Conversation([tool], [_asked(request), refusal], shown=False)


def _missing_parameter(pool: list[dict], rng: random.Random) -> Conversation:
    tool, name, request, rest = _incomplete(pool, rng)
    ask = _reply(_question(name), reasoning=f"{tool['name']}: {name} missing")
    return Conversation([tool], [_asked(rest), ask])


def _multi_turn(pool: list[dict], rng: random.Random) -> Conversation:
    """Half of them: what was missing is given after being asked for; the others: a second request after the first was answered."""
    if any(_askable(tool) for tool in pool) and rng.random() < 0.5:
        tool, name, request, rest = _incomplete(pool, rng)
        given = {"role": "user", "content": spoken(request.call["arguments"][name])}
        return Conversation([tool], [_asked(rest), _reply(_question(name)), given, _calls([request])])
    wanted = rng.sample(pool, 2)
    first, second = (_request(tool, rng) for tool in wanted)
    before = [_asked(first), _calls([first], reasoning=False), _result({"ok": True}), _reply(DONE)]
    return Conversation(wanted, [*before, _asked(second), _calls([second])])


def _multi_step(pool: list[dict], rng: random.Random) -> Conversation:
    """Two requests in one, the first call made and its result there. Where it can be, the second call needs a value of that result."""
    wanted = rng.sample(pool, 2)
    first, second = (_request(tool, rng) for tool in wanted)
    result: dict = {"ok": True}
    name = next((name for name in _askable(wanted[1]) if name in second.call["arguments"]), None)
    if name is not None:
        result = {name: second.call["arguments"][name]}
        rest = {key: value for key, value in second.call["arguments"].items() if key != name}
        second = Request(f"{_said(wanted[1], rest, rng)}, using its {words_of(name)}", second.call)
    query = _asked(Request(f"{first.text}, then {second.text}", first.call))
    return Conversation(wanted, [query, _calls([first], reasoning=False), _result(result), _calls([second])])


MAKERS = {
    "simple": _simple,
    "multiple": _multiple,
    "parallel": _parallel,
    "parallel-multiple": _parallel_multiple,
    "irrelevance": _irrelevance,
    "missing-parameter": _missing_parameter,
    "multi-turn": _multi_turn,
    "multi-step": _multi_step,
}


def _result(content: dict) -> dict:
    return {"role": "tool", "content": json.dumps(content, ensure_ascii=False)}


def _question(name: str) -> str:
    return f"Which {words_of(name)}?"


def _askable(tool: dict) -> list[str]:
    """The required parameters whose value only the user can know."""
    properties = tool["parameters"]["properties"]
    return [
        name
        for name in tool["parameters"].get("required", [])
        if not (isinstance(properties[name], dict) and properties[name].keys() & {"default", "const"})
    ]


def _incomplete(pool: list[dict], rng: random.Random) -> tuple[dict, str, Request, Request]:
    """(tool, parameter left out, the whole request, the request without it)."""
    tool = rng.choice([tool for tool in pool if _askable(tool)] or pool)
    request = _request(tool, rng)
    name = rng.choice(_askable(tool))
    arguments = {key: value for key, value in request.call["arguments"].items() if key != name}
    return tool, name, request, Request(_said(tool, arguments, rng), request.call)


def _request(tool: dict, rng: random.Random) -> Request:
    required = set(tool["parameters"].get("required", []))
    arguments: dict[str, object] = {}
    for name, schema in tool["parameters"]["properties"].items():
        if name in required or rng.random() < 0.5:
            arguments[name] = _draw_unused(schema, rng, name=name, used=list(arguments.values()))
    return Request(_said(tool, arguments, rng), {"name": tool["name"], "arguments": arguments})


def _said(tool: dict, arguments: dict[str, object], rng: random.Random) -> str:
    """The words that ask for the tool with these arguments."""
    templates = [text for text in tool.get("x-queries", []) if set(PLACEHOLDER.findall(text)) == arguments.keys()]
    if templates:
        return PLACEHOLDER.sub(lambda found: spoken(arguments[found[1]]), rng.choice(templates))
    ask = tool["description"].split(". ")[0].rstrip(".:") or words_of(tool["name"])
    ask = ask if ask[1:2].isupper() else ask[:1].lower() + ask[1:]
    said = ", ".join(f"{words_of(name)} {spoken(value)}" for name, value in arguments.items())
    return (
        rng.choice(ASKS).format(ask="{ask}", said="{said}").replace("{ask}", ask, 1).replace("{said}", said, 1)
        if said
        else ask
    )


def _draw_unused(schema: dict, rng: random.Random, *, name: str, used: list) -> object:
    """A value that no other argument of the request has, where the schema leaves that choice: nobody flies from Oslo to Oslo."""
    for _ in range(8):
        value = draw_value(schema, rng, name=name)
        if value not in used:
            break
    return value
