"""Says why completions break the format, and counts the reasons."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from star.chat import FormatError, parse_completion, validate_calls

SHOWN_REASONS = 3


def format_error(completion: str, tools: list[dict[str, Any]], *, strict: bool = True) -> str | None:
    """Returns why a completion is a format error; None for a valid one.

    Args:
        completion: the whole completion, with the opening that its prompt holds.
        tools: the tools of the prompt.
        strict: False for the official reading, by which the reward `similarity` is computed.
    """
    try:
        validate_calls(parse_completion(completion, strict=strict), tools)
    except FormatError as error:
        return str(error)
    return None


def describe_reasons(reasons: Iterable[str]) -> str:
    """Lists the most frequent reasons with their counts: `40 times "a <tool_call> block is not JSON", ...`."""
    counts = Counter(reasons)
    shown = [f'{count} times "{reason}"' for reason, count in counts.most_common(SHOWN_REASONS)]
    others = counts.total() - sum(count for _, count in counts.most_common(SHOWN_REASONS))
    return ", ".join([*shown, f"{others} times another reason"] if others else shown)
