"""Breaks a completion's score down into parts for the log: format, tool names, arguments, number of calls."""

from dataclasses import dataclass
from typing import Any

from star.chat import FormatError, parse_completion, parse_target, validate_calls
from star.rewards.similarity import Reward, arguments_similarity


@dataclass(frozen=True)
class ScoreParts:
    """The parts of one completion's score; None where a part does not apply, such as names where no call was made.

    Attributes:
        format: 1 when the format holds, else 0.
        name_accuracy: pairs of a made and an expected call with the same name, over all calls that were made or
            expected.
        argument_similarity: mean similarity of the arguments in these pairs.
        call_count_error: number of calls too few or too many.
    """

    format: float
    name_accuracy: float | None = None
    argument_similarity: float | None = None
    call_count_error: float | None = None


@dataclass(frozen=True)
class Score:
    """The score of a completion: the reward that is trained on, all rewards by name, and the parts."""

    trained: Reward
    rewards: dict[str, Reward]
    parts: ScoreParts


def score_parts(completion: str, target: str, tools: list[dict[str, Any]]) -> ScoreParts:
    """The parts of a completion's score. Never raises: what cannot be parsed is a format error.

    Each made call, in order, is paired with the first expected call of its name that is left. With `f(a=1)` made and
    `f(a=1, b=2)`, `g()` expected there is 1 pair: name_accuracy 1 / 2, argument_similarity 1 / 2, call_count_error 1.
    """
    try:
        expected, predicted = parse_target(target, strict=False), parse_completion(completion, strict=False)
        validate_calls(predicted, tools)
    except FormatError:
        return ScoreParts(format=0.0)
    # Parsed as leniently as the reward parses, so that the parts explain its value.
    error = abs(len(predicted.tool_calls) - len(expected.tool_calls))
    if not predicted.tool_calls and not expected.tool_calls:
        return ScoreParts(format=1.0, call_count_error=0.0)
    left, similarities = list(expected.tool_calls), []
    for call in predicted.tool_calls:
        if (match := next((other for other in left if other["name"] == call["name"]), None)) is not None:
            left.remove(match)
            similarities.append(arguments_similarity(call["arguments"], match["arguments"]))
    all_calls = len(predicted.tool_calls) + len(expected.tool_calls) - len(similarities)
    similarity = sum(similarities) / len(similarities) if similarities else None
    return ScoreParts(1.0, len(similarities) / all_calls, similarity, float(error))
