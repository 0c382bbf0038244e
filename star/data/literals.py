r"""Reads a value that a text writes as JSON or as a Python literal, which public data sets mix.

    >>> decode_value('{"city": "Oslo", "days": null} and more')
    ({'city': 'Oslo', 'days': None}, 30)
    >>> decode_value("{'city': 'Oslo', 'sure': True, 'days': null}")
    ({'city': 'Oslo', 'sure': True, 'days': None}, 44)

Nothing is executed: a Python literal is parsed, and anything but constants, lists, tuples and dicts is refused.
"""

import ast
import json
import re
import warnings
from typing import Any

from star.errors import InputError
from star.limits import LITERAL_CHARACTERS

_decode_json = json.JSONDecoder().raw_decode
# Accepts line breaks inside strings, which the strict decoder refuses.
_decode_loose_json = json.JSONDecoder(strict=False).raw_decode
# A string in either kind of quotes, or one bracket. Possessive, so that the time is linear.
_STRING = r"\"(?:[^\"\\]|\\.)*+\"|'(?:[^'\\]|\\.)*+'"
_STRING_OR_BRACKET = re.compile(rf"{_STRING}|[\"'()\[\]{{}}]", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_CONSTANTS = {"true": True, "false": False, "null": None}


def decode_value(text: str, start: int = 0) -> tuple[Any, int]:
    """Returns the value that begins at `start`, and the position behind it. A Python literal must be a dict, a list or a tuple.

    Raises:
        InputError: no value begins there.
    """
    for decode in (_decode_json, _decode_loose_json):
        try:
            return decode(text, start)
        except (ValueError, RecursionError) as error:
            fault = error
    end = closing_bracket(text, start) if text[start : start + 1] in ("{", "[") else None
    if end is None:
        raise InputError(f"not JSON: {fault}")
    return parse_literal(text[start : end + 1]), end + 1


def parse_value(text: str) -> Any:
    """Returns the value of a whole text.

    Raises:
        InputError: the text is neither JSON nor a Python literal.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return parse_literal(text.strip())


def parse_field(text: Any, what: str) -> Any:
    """Returns the value of the text in a field.

    Args:
        what: name of the field, for the error.

    Raises:
        InputError: the text is neither JSON nor a Python literal.
    """
    if not isinstance(text, str):
        raise InputError(f"`{what}` must be text, got {str(text)[:80]}")
    try:
        return parse_value(text)
    except InputError as error:
        raise InputError(f"`{what}` is text that is not JSON: {error}") from error


def closing_bracket(text: str, start: int) -> int | None:
    """Returns the position of the bracket that closes the one at `start`, or None. Brackets inside strings do not count."""
    open_brackets = []
    for found in _STRING_OR_BRACKET.finditer(text, start):
        mark = found[0]
        if mark in _CLOSING:
            open_brackets.append(_CLOSING[mark])
        elif mark in ")]}":
            if not open_brackets or open_brackets.pop() != mark:
                return None
            if not open_brackets:
                return found.start()
        elif len(mark) == 1:  # a quote that is never closed
            return None
    return None


def parse_literal(text: str) -> Any:
    """Returns the JSON value of a Python literal; `true`, `false` and `null` count, too. Tuples become lists.

    Raises:
        InputError: the text is anything else.
    """
    if len(text) > LITERAL_CHARACTERS:
        raise InputError(f"not JSON, and as a literal longer than {LITERAL_CHARACTERS:,} characters")
    try:
        # Line breaks inside strings are valid in neither language, but data sets have them.
        joined = _STRINGS.sub(lambda found: found[0].replace("\r", "\\r").replace("\n", "\\n"), text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as \d, which stay as they are
            return _value_of(ast.parse(joined, mode="eval").body)
    except SyntaxError as error:
        raise InputError(f"not a literal: {error.msg}") from error
    # Python's parser raises the last two for text that nests too deeply.
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"not a literal: {str(error)[:120] or type(error).__name__}") from error


def _value_of(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value_of(part) for part in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value_of(key) if key else None for key in node.keys]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("the keys of an object must be text")
        if len(set(keys)) < len(keys):
            raise ValueError("an object has a key twice")
        return dict(zip(keys, map(_value_of, node.values), strict=True))
    try:
        value = ast.literal_eval(node)
    except ValueError:
        # The parser's own message holds an address, and a reject's reason must be the same in every run.
        raise ValueError("only constants, lists and objects are read") from None
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a {type(value).__name__} is no JSON value")
