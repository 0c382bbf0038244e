"""What is wrong with an answer, by kind: the first thing that keeps it from being an exact match."""

from collections import Counter

from star.chat import Completion, FormatError, parse_completion, parse_target, tool_parameters

KINDS = (
    "bad format",
    "unknown tool",
    "unknown argument",
    "call instead of reply",
    "reply instead of call",
    "wrong tool",
    "too few calls",
    "too many calls",
    "missing argument",
    "extra argument",
    "wrong text",
    "wrong number",
    "wrong boolean",
    "wrong list or object",
)


def mistake(text: str, target: str, tools: list[dict]) -> str | None:
    """One of KINDS, or None where nothing is wrong. Calls are compared with those of the same name, in their order.

    Args:
        text: a completion, `target`: the text it should have been, `tools`: those of the prompt.
    """
    expected = parse_target(target, strict=False)
    try:
        predicted = parse_completion(text)
    except FormatError:
        return "bad format"
    return _of_names(predicted, expected, tools) or _of_arguments(predicted, expected)


def _of_names(predicted: Completion, expected: Completion, tools: list[dict]) -> str | None:
    parameters = tool_parameters(tools)
    made, wanted = (Counter(call["name"] for call in completion.tool_calls) for completion in (predicted, expected))
    if made.keys() - parameters.keys():
        return "unknown tool"
    if any(call["arguments"].keys() - parameters[call["name"]].keys() for call in predicted.tool_calls):
        return "unknown argument"
    if made and not wanted:
        return "call instead of reply"
    if wanted and not made:
        return "reply instead of call"
    if made != wanted:
        missing, extra = wanted - made, made - wanted
        return "wrong tool" if missing and extra else "too few calls" if missing else "too many calls"
    return None


def _of_arguments(predicted: Completion, expected: Completion) -> str | None:
    waiting = list(expected.tool_calls)
    for call in predicted.tool_calls:
        same_name = [other for other in waiting if other["name"] == call["name"]]
        match = next((o for o in same_name if _differs(call["arguments"], o["arguments"]) is None), same_name[0])
        waiting.remove(match)
        if found := _differs(call["arguments"], match["arguments"]):
            return found
    return None


def _differs(made: dict, wanted: dict) -> str | None:
    if wanted.keys() - made.keys():
        return "missing argument"
    if made.keys() - wanted.keys():
        return "extra argument"
    for key, value in wanted.items():
        if isinstance(value, bool) != isinstance(made[key], bool) or made[key] != value:
            kinds = {str: "wrong text", bool: "wrong boolean", int: "wrong number", float: "wrong number"}
            return kinds.get(type(value), "wrong list or object")
    return None
