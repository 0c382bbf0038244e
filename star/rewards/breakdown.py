"""What a reward is made of, for the log: format, tool names, arguments, number of calls."""

from dataclasses import dataclass
from typing import Any

from star.chat import FormatError, parse_completion, parse_target, validate_calls
from star.rewards.similarity import Reward, arguments_similarity


@dataclass(frozen=True)
class Parts:
    """The parts of one completion's score; None where a part says nothing about it.

    Attributes:
        format: 1 when the format holds, else 0.
        name_accuracy: of the calls that were made or expected, the share whose name the other side has too.
        argument_similarity: of the calls paired by name, in their order, the mean similarity of their arguments.
        call_count_error: how many calls too few or too many.
    """

    format: float
    name_accuracy: float | None = None
    argument_similarity: float | None = None
    call_count_error: float | None = None


@dataclass(frozen=True)
class Score:
    """The trained reward of a completion, the rewards by name (the trained one among them), and its parts."""

    trained: Reward
    rewards: dict[str, Reward]
    parts: Parts


def score_parts(completion: str, target: str, tools: list[dict[str, Any]]) -> Parts:
    """The parts of a completion's score. Never raises: what cannot be parsed is a format error."""
    try:
        expected, predicted = parse_target(target, strict=False), parse_completion(completion, strict=False)
        validate_calls(predicted, tools)
    except FormatError:
        return Parts(format=0.0)
    error = abs(len(predicted.tool_calls) - len(expected.tool_calls))
    if not predicted.tool_calls and not expected.tool_calls:
        return Parts(format=1.0, call_count_error=0.0)
    left, pairs = list(expected.tool_calls), []
    for call in predicted.tool_calls:
        if (match := next((other for other in left if other["name"] == call["name"]), None)) is not None:
            left.remove(match)
            pairs.append(arguments_similarity(call["arguments"], match["arguments"]))
    together = len(predicted.tool_calls) + len(expected.tool_calls) - len(pairs)
    similarity = sum(pairs) / len(pairs) if pairs else None
    return Parts(1.0, len(pairs) / together, similarity, float(error))
