r"""Reads regular expressions of schemas, and searches texts for them, in time linear in the text. JSON Schema's are JavaScript's.

    fault_of_pattern(r"^\p{L}+$")    # "bad escape \\p at position 1"
    fault_of_pattern(r"^[a-z]+$")    # None
    matches(r"^(a|a)*$", "aaaa!")    # False, at once

The expression is somebody else's, and Python's own engine backtracks: `^(a|a)*$` and forty letters take it for ever. RE2 does not. What
it lacks (looking around, references to groups, more than a thousand repetitions) runs under a deadline. An expression means what it means
in Python: its digits, letters and blanks are those of all scripts.
"""

import re
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

from star.limits import PATTERN_CHARACTERS, PATTERN_REPETITIONS, PATTERN_SECONDS, PATTERN_SECONDS_IN_ALL

# /^[a-z]+$/i is a literal of JavaScript: as a pattern it would ask for the slashes, and could never match.
LITERAL = re.compile(r"/\^.*/[a-z]*|/.*\$/[a-z]*", re.DOTALL)
# Python reads \z from 3.14 on, JavaScript never: the same file must give the same tools everywhere.
END_OF_TEXT = re.compile(r"(?<!\\)(?:\\\\)*\\z")
# What RE2 writes differently: an escape, a bracket of a set, a repetition that begins at zero.
_PART = re.compile(r"\\u[0-9a-fA-F]{4}|\\.|\{,(?=\d*\})|\[\^?\]?|\]", re.DOTALL)
# What Python counts as blank, and everything else, as parts of a set.
_BLANK = r"\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
_NOT_BLANK = (
    r"\x00-\x08\x0e-\x1b\x21-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}"
    r"\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff}"
)
_IN_A_SET = {r"\d": r"\p{Nd}", r"\D": r"\P{Nd}", r"\w": r"\p{L}\p{N}_", r"\s": _BLANK, r"\S": _NOT_BLANK}
_ALONE = {key: f"[{value}]" for key, value in _IN_A_SET.items()} | {r"\W": r"[^\p{L}\p{N}_]", r"\Z": r"\z"}

SLOW_SECONDS = 0.02  # processor time of one search; ordinary ones take microseconds


class SlowPattern(Exception):
    """A text cannot be searched for an expression within the time that it may take."""


def fault_of_pattern(pattern: str) -> str | None:
    """Returns why a pattern cannot be used, or None."""
    if len(pattern) > PATTERN_CHARACTERS:
        return f"it has more than {PATTERN_CHARACTERS:,} characters"
    return _fault_of_short_pattern(pattern)


@lru_cache(maxsize=4096)
def _fault_of_short_pattern(pattern: str) -> str | None:
    if LITERAL.fullmatch(pattern):
        return "it is written with slashes around it"
    if END_OF_TEXT.search(pattern):
        return r"\z is no part of it"
    try:
        with warnings.catch_warnings():
            # A set inside a set, for one, is read as JavaScript reads it, and Python only warns.
            warnings.simplefilter("ignore")
            re.compile(pattern)
            if _re2(pattern) is None and (found := repetitions(pattern)) > PATTERN_REPETITIONS:
                return f"its repetitions inside each other are {found:,}, more than {PATTERN_REPETITIONS:,}"
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None


def matches(pattern: str, text: str) -> bool:
    """Whether the expression is found in the text.

    Raises:
        SlowPattern: it takes too long, or it cannot be used at all.
    """
    return _searcher(pattern)(text)


# Few, because one may take several megabytes.
@lru_cache(maxsize=64)
def _searcher(pattern: str) -> Callable[[str], bool]:
    if fault := fault_of_pattern(pattern):
        return _Refused(f"the pattern {pattern[:80]!r} cannot be used: {fault}")
    if (search := _re2(pattern)) is None:
        return _UnderDeadline(pattern)
    # In Python `$` also stands before a line break at the end.
    before_break = "$" in pattern

    def found(text: str) -> bool:
        # A lone surrogate has no UTF-8. A value with one is refused elsewhere.
        text = text if text.isascii() else text.encode("utf-8", "replace").decode()
        return search(text) is not None or (before_break and text[-1:] == "\n" and search(text[:-1]) is not None)

    return found


@lru_cache(maxsize=64)
def _re2(pattern: str) -> Callable[[str], Any] | None:
    """Returns the search of RE2's form of an expression, or None where RE2 cannot run it."""
    try:
        import re2
    except ImportError:  # not every platform has a wheel of it: then all expressions run under the deadline
        return None
    options = re2.Options()
    options.log_errors = False
    written = _in_re2(pattern)
    try:
        return None if written is None else re2.compile(written, options).search
    except (re2.error, UnicodeEncodeError):
        return None


def _in_re2(pattern: str) -> str | None:
    """Returns an expression of Python's in RE2's form; None for what the form lacks."""
    parts: list[str] = []
    end, in_set = 0, False
    for found in _PART.finditer(pattern):
        part = found[0]
        parts.append(pattern[end : found.start()])
        end = found.end()
        if part.startswith("["):
            # Inside a set a bracket is itself.
            parts.append(part if not in_set else "".join(f"\\{letter}" for letter in part))
            in_set = in_set and not part.endswith("]") if in_set else True
        elif part == "]":
            parts.append(part)
            in_set = False
        elif part == "{,":
            parts.append(part if in_set else "{0,")
        elif part[1] == "u" and len(part) == 6:
            parts.append(f"\\x{{{part[2:]}}}")
        elif part in (r"\b", r"\B") or (in_set and part == r"\W"):
            # The edge of a word is that of ASCII in RE2. Inside a set \b is a backspace.
            return None
        else:
            parts.append((_IN_A_SET if in_set else _ALONE).get(part, part))
    return "".join([*parts, pattern[end:]])


class _Refused:
    def __init__(self, why: str) -> None:
        self.why = why

    def __call__(self, text: str) -> bool:
        raise SlowPattern(self.why)


class _UnderDeadline:
    """Searches texts for an expression that backtracks. After it was too slow once, it is not tried again."""

    lost = 0.0  # seconds, by all of them

    def __init__(self, pattern: str) -> None:
        import regex

        self.name = f"the pattern {pattern[:80]!r}"
        self.slow = ""
        try:
            self.search = regex.compile(pattern).search
        except (regex.error, RecursionError) as error:
            self.slow = f"{self.name} cannot be used: {error}"

    def __call__(self, text: str) -> bool:
        if not self.slow and _UnderDeadline.lost > PATTERN_SECONDS_IN_ALL:
            self.slow = f"{self.name} is not tried: {PATTERN_SECONDS_IN_ALL:g} s were lost to slow patterns before it"
        if self.slow:
            raise SlowPattern(self.slow)
        start = time.thread_time()
        try:
            return self.search(text, timeout=PATTERN_SECONDS) is not None
        except TimeoutError:
            self.slow = (
                f"{self.name} takes more than {PATTERN_SECONDS:g} s to search a text of {len(text):,} characters"
            )
            raise SlowPattern(self.slow) from None
        finally:
            # Those that stay below the deadline are lost time, too.
            if (spent := time.thread_time() - start) > SLOW_SECONDS:
                _UnderDeadline.lost += spent


def repetitions(pattern: str) -> int:
    """Returns how many parts an expression has when its repetitions are written out as often as they must be.

    Raises:
        re.error: it is no expression of Python's.
    """
    # As rstr does: there is no public one, and mypy knows none.
    return _written_out(import_module("re._parser").parse(pattern))


def _written_out(part: Any) -> int:
    if isinstance(part, tuple) and len(part) == 2 and str(part[0]).endswith("_REPEAT"):
        least, _, inner = part[1]
        return max(1, int(least)) * _written_out(inner)
    if isinstance(part, tuple | list) or hasattr(part, "data"):
        return sum(map(_written_out, getattr(part, "data", part)))
    return 1
