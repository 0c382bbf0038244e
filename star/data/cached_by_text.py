"""Keeps what a function made of a text, within a bound of memory: data sets repeat their tools, and some of them have megabytes."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from star.limits import CACHED_CHARACTERS

Made = TypeVar("Made")
# A short text's entry takes this space itself.
CHARACTERS_PER_ENTRY = 300


def cached_by_text(make: Callable[[str], Made]) -> Callable[[str], Made]:
    """Keeps the function's results until their texts have CACHED_CHARACTERS together, and then begins anew."""
    kept: dict[str, Made] = {}
    characters = 0

    @wraps(make)
    def look_up(text: str) -> Made:
        nonlocal characters
        if text in kept:
            return kept[text]
        made = make(text)
        characters += len(text) + CHARACTERS_PER_ENTRY
        if characters > CACHED_CHARACTERS:
            kept.clear()
            characters = len(text) + CHARACTERS_PER_ENTRY
        kept[text] = made
        return made

    return look_up
