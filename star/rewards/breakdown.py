"""Breaks a completion's score down into parts for the log: format, tool names, arguments, number of calls.

The format is read strictly, as `star call` and the evaluation read it. The other parts explain the reward, so they read
the completion as the official reward does (`parse_completion(strict=False)`). An answer that ends inside a call has
format 0 and a reward of 0, not -1.
"""

from dataclasses import dataclass
from typing import Any

from star.chat import FormatError, parse_completion, parse_target, validate_calls
from star.rewards.similarity import Reward, arguments_similarity


@dataclass(frozen=True)
class ScoreParts:
    """The parts of one completion's score; None where a part does not apply, such as names where no call was made.

    Attributes:
        format: 1 when `parse_completion` reads the completion, else 0.
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
    """The parts of a completion's score. Never raises: what cannot be parsed has no parts but the format.

    Each made call, in order, is paired with the first expected call of its name that is left. With `f(a=1)` made and
    `f(a=1, b=2)`, `g()` expected there is 1 pair: name_accuracy 1 / 2, argument_similarity 1 / 2, call_count_error 1.
    """
    valid = _valid_format(completion)
    try:
        # Parsed as leniently as the reward parses, so that the parts explain its value.
        expected, predicted = parse_target(target, strict=False), parse_completion(completion, strict=False)
        validate_calls(predicted, tools)
    except FormatError:
        return ScoreParts(valid)
    error = abs(len(predicted.tool_calls) - len(expected.tool_calls))
    if not predicted.tool_calls and not expected.tool_calls:
        return ScoreParts(valid, call_count_error=0.0)
    left, similarities = list(expected.tool_calls), []
    for call in predicted.tool_calls:
        if (match := next((other for other in left if other["name"] == call["name"]), None)) is not None:
            left.remove(match)
            similarities.append(arguments_similarity(call["arguments"], match["arguments"]))
    all_calls = len(predicted.tool_calls) + len(expected.tool_calls) - len(similarities)
    similarity = sum(similarities) / len(similarities) if similarities else None
    return ScoreParts(valid, len(similarities) / all_calls, similarity, float(error))


def _valid_format(completion: str) -> float:
    """1 where the strict parser reads the completion, else 0."""
    try:
        parse_completion(completion)
    except FormatError:
        return 0.0
    return 1.0
