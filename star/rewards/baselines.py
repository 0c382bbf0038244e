"""Computes the two rewards that the paper compares ours with; REWARDS has all rewards by name.

Each reward is a function (completion, target, tools) -> Reward, as `star.rewards.similarity.similarity_reward`.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from star.chat import FormatError, parse_completion, parse_target, validate_calls
from star.rewards.similarity import FORMAT_ERROR, Reward, exact_match, similarity_reward, similarity_typed_reward

ToolCalls = list[dict[str, Any]]


def binary_reward(completion: str, target: str, tools: list[dict[str, Any]]) -> Reward:
    """-1 for a format error; 1 for the target's calls in any order, or for a reply with the target's words; else 0."""
    similarity = similarity_reward(completion, target, tools)
    if similarity.format < 0:
        return FORMAT_ERROR
    # `exact_match` accepts any reply where a reply is expected; a similarity of 1 means that it has the same words.
    content = float(similarity.content == 1.0 and exact_match(completion, target, tools))
    return Reward(total=content, format=1.0, content=content)


def toolrl_reward(completion: str, target: str, tools: list[dict[str, Any]]) -> Reward:
    """ToolRL's reward (Qian et al., arXiv 2504.13958, section 3.3): format in {0, 1} plus correctness in [-3, 3].

    Correctness is 6 * S / S_max - 3. S sums the overlap of the tool names and, per expected call, the overlap of its
    parameter names and the number of its equal values. A format error has correctness -3, and where a reply is expected
    correctness is 0. `content` is S / S_max; where a reply is expected it is 1 if no call is made.
    """
    try:
        expected, predicted = parse_target(target, strict=False), parse_completion(completion, strict=False)
        validate_calls(predicted, tools)
    except FormatError:
        # Format 0 plus the lowest correctness.
        return Reward(total=-3.0, format=-1.0, content=0.0)
    if not expected.tool_calls:
        return Reward(total=1.0, format=1.0, content=float(not predicted.tool_calls))
    content = _correctness(predicted.tool_calls, expected.tool_calls) if predicted.tool_calls else 0.0
    return Reward(total=1.0 + 6.0 * content - 3.0, format=1.0, content=content)


def _correctness(predicted: ToolCalls, expected: ToolCalls) -> float:
    """S / S_max, each expected call paired with the best call that is left.

    With `f(a=2)` made and `f(a=1)` expected, S = 1 (tool names) + 1 (parameter names) + 0 (values), and S_max = 3.
    """
    score = _overlap([call["name"] for call in predicted], [call["name"] for call in expected])
    # Each made call is paired once at most, so that repeating a right call earns nothing.
    left = list(predicted)
    for call in expected:
        scores = [_call_overlap(other, call) for other in left]
        if scores and (best := max(scores)) > 0:
            left.pop(scores.index(best))
            score += best
    return score / (1 + sum(1 + len(call["arguments"]) for call in expected))


def _call_overlap(predicted: dict[str, Any], expected: dict[str, Any]) -> float:
    """Overlap of the parameter names plus the number of equal values; 0 for calls of different tools."""
    if predicted["name"] != expected["name"]:
        return 0.0
    given, wanted = predicted["arguments"], expected["arguments"]
    return _overlap(list(given), list(wanted)) + sum(key in given and given[key] == wanted[key] for key in wanted)


def _overlap(first: list[str], second: list[str]) -> float:
    """Intersection over union of two multisets; 1 when both are empty."""
    both, either = Counter(first) & Counter(second), Counter(first) | Counter(second)
    return both.total() / either.total() if either else 1.0


REWARDS: dict[str, Callable[[str, str, list[dict[str, Any]]], Reward]] = {
    "similarity": similarity_reward,
    "similarity-typed": similarity_typed_reward,
    "binary": binary_reward,
    "toolrl": toolrl_reward,
}
