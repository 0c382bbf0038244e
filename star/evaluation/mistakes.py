"""Classifies a wrong answer by the first thing that keeps it from being an exact match."""

from collections import Counter

from star.chat import Completion, FormatError, parse_completion, parse_target, tool_parameters

BAD_FORMAT = "bad format"  # the only mistake that counts as a format error
MISTAKE_KINDS = (
    BAD_FORMAT,
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


def classify_mistake(completion: str, target: str, tools: list[dict]) -> str | None:
    """The first mistake in a completion: one of MISTAKE_KINDS, or None where nothing is wrong.

    Calls are compared with the expected calls of the same name, in their order.

    Args:
        completion: what the model wrote.
        target: what it should have written.
        tools: the tools of the prompt.

    Raises:
        FormatError: the target or the tools are invalid, so that no answer can be right. `star.evaluation.heldout` leaves
            such rows out of the scores and names them.
    """
    expected = parse_target(target)
    try:
        predicted = parse_completion(completion)
    except FormatError:
        return BAD_FORMAT
    return _mistake_in_names(predicted, expected, tools) or _mistake_in_arguments(predicted, expected)


def _mistake_in_names(predicted: Completion, expected: Completion, tools: list[dict]) -> str | None:
    parameters = tool_parameters(tools)
    made = Counter(call["name"] for call in predicted.tool_calls)
    wanted = Counter(call["name"] for call in expected.tool_calls)
    # First, because the arguments of an unknown tool cannot be compared with anything.
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


def _mistake_in_arguments(predicted: Completion, expected: Completion) -> str | None:
    unmatched = list(expected.tool_calls)
    for call in predicted.tool_calls:
        same_name = [other for other in unmatched if other["name"] == call["name"]]
        # An equal call first, so that the order of calls of one name does not matter.
        match = next(
            (other for other in same_name if _differing_argument(call["arguments"], other["arguments"]) is None),
            same_name[0],
        )
        unmatched.remove(match)
        if found := _differing_argument(call["arguments"], match["arguments"]):
            return found
    return None


def _differing_argument(made: dict, wanted: dict) -> str | None:
    if wanted.keys() - made.keys():
        return "missing argument"
    if made.keys() - wanted.keys():
        return "extra argument"
    for key, value in wanted.items():
        # True == 1 in Python, but not in JSON.
        if isinstance(value, bool) != isinstance(made[key], bool) or made[key] != value:
            kinds = {str: "wrong text", bool: "wrong boolean", int: "wrong number", float: "wrong number"}
            return kinds.get(type(value), "wrong list or object")
    return None
