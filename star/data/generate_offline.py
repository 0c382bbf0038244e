"""Generates training rows from tool schemas alone: no model, no network, and the same rows every time.

    tools = load_tools(Path("tools.json"))
    [row] = generate_rows(tools, 4, seed=7, start=3)
    row["messages"]    # user: "Book a hotel in Rome for 22 nights"; assistant: book_hotel(city="Rome", nights=22)

A row of a kind ("simple", "parallel", ...) is made in three steps: tools are drawn, a value is drawn for each of their parameters, and the
values are written into a request. A tool may have `x-queries`, requests as people write them with `{parameter}` where a value goes. A tool
without them is asked for by its description.

The same tools, count, kinds and seed give the same rows, and row i does not depend on the number of rows. So the order in which random
values are drawn must not change.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

from star.config.row_kinds import ROW_KIND_WEIGHTS
from star.data.draw_arguments import draw_arguments
from star.data.draw_values import name_as_words, value_as_text
from star.data.json_schema import is_valid
from star.data.masking import mask_row, shuffle_row
from star.data.rows import REFUSAL
from star.data.tools import public_tool
from star.errors import InputError

OPENINGS = ("", "", "please ", "hello, ")
REQUEST_FORMS = ("{ask}: {said}", "{ask}, {said}", "{ask} with {said}", "I need this: {ask}, {said}")
CONFIRMATION = "Done."
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
MAX_POOL = 64  # of more tools, each row draws this many to choose from: ten thousand would be slow
SMALL_WORDS = frozenset({"a", "an", "and", "by", "for", "from", "get", "in", "of", "on", "the", "to", "with"})
SAME_TASK_OVERLAP = 0.6  # a tool that shares this much of its words with another one may do the same task


@dataclass(frozen=True)
class Request:
    """One request of the user: its text, and the call that answers it."""

    text: str
    call: dict


@dataclass(frozen=True)
class Conversation:
    """What the maker of a kind returns.

    Attributes:
        wanted: the tools that the user asks for.
        messages: all messages, the target last.
        shown: whether the prompt shows the wanted tools; in a row of the kind irrelevance it does not.
        least_tools: number of tools that the prompt shows at least.
    """

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
    reasoning: bool = True,
    licence: str = "own",
    start: int = 0,
) -> Iterator[dict]:
    """Yields the rows number `start` to `count`, one at a time.

    Args:
        tools: normal-form tools, which may carry `x-queries` and `examples`.
        tools_per_prompt: largest number of tools in a prompt. One to this many are drawn, and never fewer than are called.
        kinds: weight of each kind of row; the kinds are the keys of `ROW_KIND_WEIGHTS`.
        masked: share of rows whose functions and parameters get random names and another order (Hammer).
        reasoning: whether the answers have their line of reasoning; without it their think block is empty.
        licence: written on every row.

    Raises:
        InputError: there are fewer than two tools to choose between, a kind is unknown, or no kind can be made of these tools.
    """
    if len(tools) < 2:
        raise InputError(
            f"the generator needs at least 2 tools to choose between, got {len(tools)}: add tools to the tools file"
        )
    weights = _cumulative_weights(kinds, tools)
    tools = [_with_usable_examples(tool) for tool in tools]
    shown = {tool["name"]: public_tool(tool) for tool in tools}
    # Raise the number of the generator when the same seed gives other rows.
    provenance = {"generator": "star-offline-2", "licence": licence, "parents": [], "seed": seed}

    def row_of(index: int) -> dict:
        # Seeded by the number of the row, so that a row does not depend on those before it and a resumed run can start anywhere.
        rng = random.Random(f"{seed}:{index}")  # noqa: S311 - rows are repeatable
        kind = rng.choices(list(weights), cum_weights=list(weights.values()))[0]
        made = _conversation(kind, tools, rng, tools_per_prompt=tools_per_prompt)
        *before, answer = made["messages"]
        if not reasoning:
            answer = {key: value for key, value in answer.items() if key != "reasoning_content"}
        row: dict[str, Any] = {"messages": [*before, answer], "tools": [shown[name] for name in made["tools"]]}
        # The digest makes ids differ between tool files: rows of two runs with one seed can be mixed.
        digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:12]
        row = {"id": f"gen-{seed}-{index}-{digest}", **row, "source": "generated", "kind": kind, **provenance}
        # The mask has a random generator of its own, so that masking some rows changes nothing in the others.
        mask_rng = random.Random(f"{seed}:{index}:mask") if masked else None  # noqa: S311 - rows are repeatable
        if mask_rng and mask_rng.random() < masked:
            masked_row = mask_row(shuffle_row(row, mask_rng), mask_rng)
            row = {**masked_row, "id": f"{row['id']}-masked", "parents": [row["id"]]}
        return row

    return map(row_of, range(start, count))


def _cumulative_weights(kinds: Mapping[str, float], tools: list[dict]) -> dict[str, float]:
    """Returns the cumulative weight of each kind that is wanted and that these tools allow."""
    if unknown := sorted(kinds.keys() - ROW_KIND_WEIGHTS.keys()):
        raise InputError(f"there is no kind of row named {unknown[0]!r}: use some of {', '.join(ROW_KIND_WEIGHTS)}")
    # Sorted, because the rows must not depend on the order in the configuration: in a file it is the user's, in a task it is sorted.
    wanted = {kind: kinds[kind] for kind in sorted(kinds) if kinds[kind] > 0}
    if not wanted:
        raise InputError("no kind of row has a weight above 0: give one")
    if "missing-parameter" in wanted and not any(_parameters_to_ask_for(tool) for tool in tools):
        wanted.pop("missing-parameter")  # no tool has a required parameter that a user could leave out
    if not wanted:
        raise InputError(
            "no tool has a required parameter, so there are no rows of the kind missing-parameter: choose other kinds"
        )
    return dict(zip(wanted, accumulate(wanted.values()), strict=True))


def _with_usable_examples(tool: dict) -> dict:
    """Returns the tool without the examples that its own schema does not accept."""
    properties = {}
    for name, schema in tool["parameters"]["properties"].items():
        if isinstance(schema, dict) and isinstance(examples := schema.get("examples"), list):
            rest = {key: value for key, value in schema.items() if key != "examples"}
            # A value that the schema refuses would make a row that the cleaning rejects.
            usable = [value for value in examples if is_valid(value, rest)]
            schema = {**rest, "examples": usable} if usable else rest
        properties[name] = schema
    return {**tool, "parameters": {**tool["parameters"], "properties": properties}}


def _conversation(kind: str, tools: list[dict], rng: random.Random, *, tools_per_prompt: int) -> dict:
    """Returns {"messages", "tools": names in the order shown} of one row."""
    pool = tools if len(tools) <= MAX_POOL else rng.sample(tools, MAX_POOL)
    made = CONVERSATION_MAKERS[kind](pool, rng)
    names = [tool["name"] for tool in made.wanted]
    others = [tool for tool in pool if tool["name"] not in names]
    if not made.shown:
        # A refusal would be wrong if another tool could do the task.
        others = [tool for tool in others if not _may_do_the_same_task(tool, made.wanted[0])]
    rng.shuffle(others)
    # Some prompts show few tools and some many, so that a model does not learn to expect one number.
    wanted_count = max(rng.randint(1, min(tools_per_prompt, len(pool))), made.least_tools)
    if made.shown:
        shown = names + [tool["name"] for tool in others[: max(0, wanted_count - len(names))]]
        rng.shuffle(shown)
    else:
        shown = [tool["name"] for tool in others[:wanted_count]]
    return {"messages": [_with_opening(made.messages[0], rng), *made.messages[1:]], "tools": shown}


def _may_do_the_same_task(other: dict, wanted: dict) -> bool:
    """Whether another tool could answer a request for `wanted`, judged by the words of their names and descriptions."""
    words, other_words = (
        _task_words(wanted["name"], wanted["description"]),
        _task_words(other["name"], other["description"]),
    )
    return len(words & other_words) / max(1, len(words | other_words)) >= SAME_TASK_OVERLAP


@cache
def _task_words(name: str, description: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", f"{name_as_words(name)} {description}".lower())) - SMALL_WORDS


def _user_message(*requests: Request) -> dict:
    return {"role": "user", "content": " and ".join(request.text for request in requests)}


def _with_opening(message: dict, rng: random.Random) -> dict:
    query = rng.choice(OPENINGS) + message["content"]
    return {**message, "content": query[0].upper() + query[1:]}


def _call_message(requests: list[Request], *, reasoning: bool = True) -> dict:
    """Returns the answer that makes the calls. Its reasoning names the tools that the request needs: 'book_flight: given'."""
    needed = ", ".join(dict.fromkeys(request.call["name"] for request in requests))
    calls = [request.call for request in requests]
    return {"role": "assistant", "content": "", "tool_calls": calls} | (
        {"reasoning_content": f"{needed}: given"} if reasoning else {}
    )


def _text_message(content: str, *, reasoning: str | None = None) -> dict:
    said = {"role": "assistant", "content": content, "tool_calls": []}
    return said if reasoning is None else said | {"reasoning_content": reasoning}


def _simple(pool: list[dict], rng: random.Random, *, least_tools: int = 1) -> Conversation:
    [tool] = rng.sample(pool, 1)
    request = _request(tool, rng)
    return Conversation([tool], [_user_message(request), _call_message([request])], least_tools=least_tools)


def _multiple(pool: list[dict], rng: random.Random) -> Conversation:
    return _simple(pool, rng, least_tools=2)


def _parallel(pool: list[dict], rng: random.Random) -> Conversation:
    [tool] = rng.sample(pool, 1)
    requests = [_request(tool, rng), _request(tool, rng)]
    return Conversation([tool], [_user_message(*requests), _call_message(requests)])


def _parallel_multiple(pool: list[dict], rng: random.Random) -> Conversation:
    wanted = rng.sample(pool, 2)
    requests = [_request(tool, rng) for tool in wanted]
    return Conversation(wanted, [_user_message(*requests), _call_message(requests)])


def _irrelevance(pool: list[dict], rng: random.Random) -> Conversation:
    [tool] = rng.sample(pool, 1)
    request = _request(tool, rng)
    refusal = _text_message(REFUSAL, reasoning=f"{tool['name']}: missing")
    return Conversation([tool], [_user_message(request), refusal], shown=False)


def _missing_parameter(pool: list[dict], rng: random.Random) -> Conversation:
    tool, name, _, rest = _request_without_parameter(pool, rng)
    ask = _text_message(_question(name), reasoning=f"{tool['name']}: {name} missing")
    return Conversation([tool], [_user_message(rest), ask])


def _multi_turn(pool: list[dict], rng: random.Random) -> Conversation:
    """In one half, the user gives a missing value after being asked for it. In the other, a second request follows an answered one."""
    if any(_parameters_to_ask_for(tool) for tool in pool) and rng.random() < 0.5:
        tool, name, request, rest = _request_without_parameter(pool, rng)
        given = {"role": "user", "content": value_as_text(request.call["arguments"][name])}
        return Conversation(
            [tool], [_user_message(rest), _text_message(_question(name)), given, _call_message([request])]
        )
    wanted = rng.sample(pool, 2)
    first, second = (_request(tool, rng) for tool in wanted)
    before = [
        _user_message(first),
        _call_message([first], reasoning=False),
        _tool_message({"ok": True}),
        _text_message(CONFIRMATION),
    ]
    return Conversation(wanted, [*before, _user_message(second), _call_message([second])])


def _multi_step(pool: list[dict], rng: random.Random) -> Conversation:
    """Two requests in one message, the first of which was called. Where possible the second call needs a value of the first result."""
    wanted = rng.sample(pool, 2)
    first, second = (_request(tool, rng) for tool in wanted)
    result: dict = {"ok": True}
    # The second request leaves this parameter out, and the result of the first call contains its value.
    name = next((name for name in _parameters_to_ask_for(wanted[1]) if name in second.call["arguments"]), None)
    if name is not None:
        result = {name: second.call["arguments"][name]}
        rest = {key: value for key, value in second.call["arguments"].items() if key != name}
        second = Request(f"{_request_text(wanted[1], rest, rng)}, using its {name_as_words(name)}", second.call)
    query = _user_message(Request(f"{first.text}, then {second.text}", first.call))
    return Conversation(
        wanted, [query, _call_message([first], reasoning=False), _tool_message(result), _call_message([second])]
    )


CONVERSATION_MAKERS = {
    "simple": _simple,
    "multiple": _multiple,
    "parallel": _parallel,
    "parallel-multiple": _parallel_multiple,
    "irrelevance": _irrelevance,
    "missing-parameter": _missing_parameter,
    "multi-turn": _multi_turn,
    "multi-step": _multi_step,
}


def _tool_message(content: dict) -> dict:
    return {"role": "tool", "content": json.dumps(content, ensure_ascii=False)}


def _question(name: str) -> str:
    return f"Which {name_as_words(name)}?"


def _parameters_to_ask_for(tool: dict) -> list[str]:
    """Returns the required parameters whose value only the user can know: those without a default or a constant."""
    properties = tool["parameters"]["properties"]
    return [
        name
        for name in tool["parameters"].get("required", [])
        if not (isinstance(properties[name], dict) and properties[name].keys() & {"default", "const"})
    ]


def _request_without_parameter(pool: list[dict], rng: random.Random) -> tuple[dict, str, Request, Request]:
    """Returns (tool, name of the parameter left out, the whole request, the request without it)."""
    tool = rng.choice([tool for tool in pool if _parameters_to_ask_for(tool)] or pool)
    request = _request(tool, rng)
    name = rng.choice(_parameters_to_ask_for(tool))
    arguments = {key: value for key, value in request.call["arguments"].items() if key != name}
    return tool, name, request, Request(_request_text(tool, arguments, rng), request.call)


def _request(tool: dict, rng: random.Random) -> Request:
    arguments = draw_arguments(tool, rng)
    return Request(_request_text(tool, arguments, rng), {"name": tool["name"], "arguments": arguments})


def _request_text(tool: dict, arguments: dict[str, object], rng: random.Random) -> str:
    """Returns a request for the tool with these arguments: one of its `x-queries` that fits, else its description and the values."""
    # With other places than arguments, the request would say more or less than the call.
    templates = [text for text in tool.get("x-queries", []) if set(PLACEHOLDER.findall(text)) == arguments.keys()]
    if templates:
        # By a function, because `sub` interprets backslashes in a text.
        return PLACEHOLDER.sub(lambda found: value_as_text(arguments[found[1]]), rng.choice(templates))
    ask = tool["description"].split(". ")[0].rstrip(".:") or name_as_words(tool["name"])
    # An abbreviation at the beginning keeps its capitals.
    ask = ask if ask[1:2].isupper() else ask[:1].lower() + ask[1:]
    said = ", ".join(f"{name_as_words(name)} {value_as_text(value)}" for name, value in arguments.items())
    if not said:
        return ask
    # Not by `format`: only the first place of each is filled, and braces in a description stay text.
    return rng.choice(REQUEST_FORMS).replace("{ask}", ask, 1).replace("{said}", said, 1)
