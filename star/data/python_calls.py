r"""Reads calls that a text writes like Python's, as ToolACE does: `[Get Weather(city="Oslo", max-days=3), Get Time(zone='CET')]`.

    >>> find_python_calls('Sure. [Get Weather(city="Oslo", max-days=3)]', {"Get Weather": {}})
    (['Sure.', ''], [{'name': 'Get Weather', 'arguments': {'city': 'Oslo', 'max-days': 3}}])

Names of tools and parameters may hold what Python's do not, such as blanks, hyphens, dots and keywords, so the text is read piece by
piece. The values are literals, and nothing is executed.
"""

import re
from collections.abc import Collection
from typing import Any

from star.data.literals import closing_bracket, parse_value
from star.errors import InputError

MAX_NAME_CHARACTERS = 300
_FIRST_ARGUMENT = r"\(\s*+[^\W\d][^\s=(){}\"',]*+\s*+=[^=]"
_NO_ARGUMENTS = r"\(\s*+\)"
# A list that begins with a call of any tool, known or not; and one that begins with a name to be looked up.
_ANY_LIST = re.compile(rf"\[\s*+[^\W\d][\w.\-/: ]*+(?:{_FIRST_ARGUMENT}|{_NO_ARGUMENTS})")
_ANY_NAME = re.compile(r"\[\s*+[^\W\d][\w.]*+\(")
# Words name a tool as `get_time()`, too. So without arguments, a call stands on a line of its own.
_ALONE = rf"{_NO_ARGUMENTS}[ \t;]*+$"
_BARE_CALL = re.compile(rf"{_FIRST_ARGUMENT}|{_ALONE}", re.MULTILINE)
_CALL_IN_PROSE = re.compile(
    rf"(?<![\w.\-/])(?P<name>[^\W\d][\w.\-/]*+){_FIRST_ARGUMENT}|^[ \t]*+(?P<alone>[^\W\d][\w.\-/]*+){_ALONE}",
    re.MULTILINE,
)
_OPEN_LIST = re.compile(r"\[\s*+([^\[\]()=\n\"']{1,200}+)\(")
_NAME = re.compile(r"[^\W\d][\w.\-/: ]*+(?=\()")
_KEY = re.compile(r"\s*+([^\s=(){}\"',][^=(){}\"',\n]*+)=\s*+")
_BREAK = re.compile(r"\"(?:[^\"\\]|\\.)*+\"|'(?:[^'\\]|\\.)*+'|[\"'(\[{)\]},]", re.DOTALL)


def find_python_calls(text: str, names: Collection[str]) -> tuple[list[str], list[dict]] | None:
    """Returns (texts around the calls, calls), or None where the text begins no such call.

    Args:
        names: of the tools. Lists at the start of the text are calls whatever their names; elsewhere and without brackets, a call
            begins with one of these.

    Raises:
        InputError: the text begins a call that cannot be read.
    """
    start = _find_start(text, 0, names)
    if start is None:
        mentions = _CALL_IN_PROSE.finditer(text)
        if found := next((found for found in mentions if (found["name"] or found["alone"]) in names), None):
            raise InputError(f"a message has a call within other text: {found[0][:80]}")
        return None
    try:
        calls, end = _read_lists(text, start, names) if text[start] == "[" else _read_bare_calls(text, start, names)
    except InputError as error:
        raise InputError(f"a message begins a call that cannot be read: {error}") from error
    if (again := _find_start(text, end, names)) is not None:
        raise InputError(f"a message has calls in two places: {text[again : again + 80]}")
    return [text[:start].strip(), text[end:].strip()], calls


def begins_with_list(text: str, names: Collection[str]) -> bool:
    """Whether the text begins with a list of calls."""
    return _begins_list(text, _skip(text, 0), names)


def read_python_list(text: str, start: int, names: Collection[str]) -> tuple[list[dict], int] | None:
    """Returns (calls, end) of the list at `start`; None where it does not begin one.

    Raises:
        InputError: it begins a call that cannot be read.
    """
    return _read_lists(text, start, names) if _begins_list(text, start, names) else None


def _find_start(text: str, start: int, names: Collection[str]) -> int | None:
    first = _skip(text, start)
    # A whole text of this form is meant as calls, even where no part of it is `parameter=value`.
    if _begins_list(text, first, names) or (_ANY_NAME.match(text, first) and text.rstrip().endswith(")]")):
        return first
    bare = _known_name(text, first, names)
    # Directly before its bracket, because a reply may begin with a word that is the name of a tool.
    if (
        bare
        and text.startswith(f"{bare}(", first)
        and (_BARE_CALL.match(text, first + len(bare)) or text.rstrip()[-1] == ")")
    ):
        return first
    places = (found.start() for found in _OPEN_LIST.finditer(text, first) if found[1].strip() in names)
    with_brackets = (text.find(f"[{name}(", first) for name in names if "(" in name)
    return next(places, next((place for place in with_brackets if place >= 0), None))


def _begins_list(text: str, at: int, names: Collection[str]) -> bool:
    if text[at : at + 1] != "[":
        return False
    return bool(_ANY_LIST.match(text, at)) or _known_name(text, _skip(text, at + 1), names) is not None


def _known_name(text: str, start: int, names: Collection[str]) -> str | None:
    """Returns the name of a tool that the text calls at `start`: the longest, where one is the beginning of another."""
    bracket = text.find("(", start, start + MAX_NAME_CHARACTERS)
    if bracket > 0 and (name := text[start:bracket].strip()) in names:
        return name
    # Only names with brackets of their own are left.
    return max((name for name in names if "(" in name and text.startswith(f"{name}(", start)), key=len, default=None)


def _read_lists(text: str, start: int, names: Collection[str]) -> tuple[list[dict], int]:
    """Reads `[call, call]`, also where several lists follow each other. Returns (calls, end)."""
    calls: list[dict] = []
    end = start
    while end < len(text) and text[end] == "[":
        at = _skip(text, end + 1)
        while True:
            call, at = _read_call(text, at, names)
            calls.append(call)
            at = _skip(text, at)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] not in (",", ";") and _known_name(text, at, names) is None:
                raise InputError(f"expected a comma or a closing bracket at {text[at : at + 40]!r}")
            at = _skip(text, at, ",; \n\t\r")
        end = at + 1
        if _begins_list(text, following := _skip(text, end), names):
            end = following
    return calls, end


def _read_bare_calls(text: str, start: int, names: Collection[str]) -> tuple[list[dict], int]:
    """Reads `call, call` without brackets around. Returns (calls, end)."""
    call, end = _read_call(text, start, names)
    calls = [call]
    while _known_name(text, following := _skip(text, end, ",; \n\t\r"), names):
        call, end = _read_call(text, following, names)
        calls.append(call)
    return calls, end


def _read_call(text: str, start: int, names: Collection[str]) -> tuple[dict, int]:
    name = _known_name(text, start, names)
    if name is None:
        if not (found := _NAME.match(text, start)):
            raise InputError(f"expected the name of a tool at {text[start : start + 40]!r}")
        name = found[0].strip()
    at = text.index("(", start + len(name)) + 1
    arguments: dict[str, Any] = {}
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == ")":
            return {"name": name, "arguments": arguments}, at + 1
        if not (key := _KEY.match(text, at)):
            raise InputError(f"{name}: expected `parameter=value` at {text[at : at + 40]!r}")
        end = _end_of_value(text, key.end())
        parameter = key[1].strip()
        if parameter in arguments:
            raise InputError(f"{name}: {parameter!r} is given twice")
        arguments[parameter] = parse_value(text[key.end() : end])
        at = end + 1 if text[end] == "," else end


def _end_of_value(text: str, start: int) -> int:
    """Returns the position of the comma or bracket that ends the value at `start`."""
    at = start
    while found := _BREAK.search(text, at):
        mark = found[0]
        if mark in ",)":
            return found.start()
        if mark in "([{":
            closing = closing_bracket(text, found.start())
            if closing is None:
                break
            at = closing + 1
        elif len(mark) > 1:
            at = found.end()
        else:
            break
    raise InputError(f"a value has no end: {text[start : start + 40]!r}")


def _skip(text: str, at: int, characters: str = " \n\t\r") -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
