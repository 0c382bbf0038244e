r"""Draws texts that match a regular expression, the same ones for the same random generator.

    draw_by_pattern(r"^[A-Z]{2}\d{4}$", random.Random(0))    # "YW0480"

The package rstr does the work. Its gaps are closed here: what it draws from sets such as `[^/]` depends on the process, it cannot repeat
more than a hundred times, and for some expressions it raises.
"""

import random
import re
import string
from itertools import chain
from typing import Any

from rstr import Rstr

from star.data.schema_patterns import SlowPattern, matches
from star.limits import DRAWN_CHARACTERS

TRIES = 20


def draw_by_pattern(pattern: str, rng: random.Random, *, least: float, most: float) -> str | None:
    """Returns a text that matches, of an allowed length where one is found; None where nothing can be drawn."""
    # An unbounded repetition of a dot would give line breaks and noise; a person would write letters.
    plain = re.sub(r"(?<!\\)\.(?=[*+])", "[a-z]", pattern).replace(r"\S", "[a-z]")
    text = None
    for attempt in range(TRIES):
        try:
            # What a look ahead asks for is drawn in every other attempt only: it may have to come later in the text.
            drawn = _Drawer(rng, looks=attempt % 2 == 0).xeger(plain)
            text = drawn if text is None or _fits(drawn, pattern, least, most) else text
            if _fits(text, pattern, least, most):
                break
        # What rstr has no rule for, such as a reference to a group that was not drawn; and what is too long to draw or slow to check.
        except (KeyError, IndexError, ValueError, RecursionError, SlowPattern):
            return text
    return text


def _fits(text: str, pattern: str, least: float, most: float) -> bool:
    # A text may fail what looks ahead or behind ask for.
    return least <= len(text) <= most and matches(pattern, text)


class _Drawer(Rstr):
    """rstr's drawer of texts for regular expressions, with the same draws where rstr's are right.

    Args:
        looks: whether to draw what looks ahead and behind ask for, at their place.
    """

    def __init__(self, rng: random.Random, *, looks: bool) -> None:
        super().__init__(rng)
        self._left = DRAWN_CHARACTERS
        more: dict[str, Any] = {
            "atomic_group": lambda parts: "".join(self._handle_state(part) for part in parts),
            "possessive_repeat": lambda parts: self._handle_repeat(*parts),
        }
        self._cases = {**self._cases, **more, **({} if looks else {"assert": lambda _: ""})}

    def _handle_state(self, state: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"its texts have more than {DRAWN_CHARACTERS:,} characters")
        return super()._handle_state(state)

    def _handle_in(self, value: Any) -> Any:
        candidates: list[Any] = list(chain(*(self._handle_state(part) for part in value)))
        if candidates[0] is False:
            # In order: a set of texts has another one in each process.
            rest = sorted(set(string.printable).difference(candidates[1:]))
            # A person writes no control characters, and letters of other scripts where ASCII is excluded.
            candidates = [letter for letter in rest if letter.isprintable()] or rest or list("äöüéñ")
        return self._random.choice(candidates)

    def _handle_repeat(self, start_range: int, end_range: int, value: Any) -> str:
        if start_range <= 100:
            return str(super()._handle_repeat(start_range, end_range, value))
        # Above a hundred repetitions rstr would ask for a number from an empty range.
        return "".join(self._handle_state(part) for _ in range(start_range) for part in value)
