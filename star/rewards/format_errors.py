"""Says why completions break the format, and counts the reasons."""

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from star.chat import SPECIAL_TOKENS, FormatError, parse_completion, validate_calls

SHOWN_REASONS = 3
SHOWN_CHARACTERS = 200  # of the example


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


def describe_format_errors(samples: Iterable[tuple[str, str, list[dict[str, Any]]]], *, strict: bool = True) -> str:
    r"""Names the most frequent reasons with their counts, and shows one completion with the end of its prompt.

    For example `"a <tool_call> block is not JSON" (40); the first is '<think>...' after the prompt's
    '<|im_start|>assistant\n'`.

    Args:
        samples: prompt, completion and tools of each format error; at least one.
    """
    samples = iter(samples)
    first = next(samples)
    # A reward also counts a completion as a format error where the row itself cannot be read.
    counts = Counter(
        format_error(completion, tools, strict=strict) or "the row's target is invalid"
        for _, completion, tools in chain([first], samples)
    )
    shown = [f'"{reason}" ({count})' for reason, count in counts.most_common(SHOWN_REASONS)]
    if others := sum(count for _, count in counts.most_common()[SHOWN_REASONS:]):
        shown.append(f"others ({others})")
    prompt, completion, _ = first
    _, header, after = prompt.rpartition(SPECIAL_TOKENS[1])
    # repr escapes control characters, which would otherwise reach the terminal.
    example = f"{completion[:SHOWN_CHARACTERS]!r} after the prompt's {(header + after)[-SHOWN_CHARACTERS:]!r}"
    return f"{', '.join(shown)}; the first is {example}"
