r"""Says which regular expressions of schemas Python reads as their author meant them. JSON Schema's are JavaScript's.

    fault_of_pattern(r"^\p{L}+$")    # "bad escape \\p at position 1"
    fault_of_pattern(r"^[a-z]+$")    # None

What Python reads, it may still read a little differently: its digits are those of all scripts.
"""

import re
import warnings
from functools import lru_cache

# /^[a-z]+$/i is a literal of JavaScript: as a pattern it would ask for the slashes, and could never match.
LITERAL = re.compile(r"/\^.*/[a-z]*|/.*\$/[a-z]*", re.DOTALL)
# Python reads \z from 3.14 on, JavaScript never: the same file must give the same tools everywhere.
END_OF_TEXT = re.compile(r"(?<!\\)(?:\\\\)*\\z")


@lru_cache(maxsize=4096)
def fault_of_pattern(pattern: str) -> str | None:
    """Returns why a pattern cannot be used, or None."""
    if LITERAL.fullmatch(pattern):
        return "it is written with slashes around it"
    if END_OF_TEXT.search(pattern):
        return r"\z is no part of it"
    try:
        with warnings.catch_warnings():
            # A set inside a set, for one, is read as JavaScript reads it, and Python only warns.
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return None
