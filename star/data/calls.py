"""Reads calls that a data set writes as objects, whatever the set calls their fields.

    >>> call_of({"type": "function", "function": {"name": "play", "arguments": '{"song": "Help"}'}})      # OpenAI
    {'name': 'play', 'arguments': {'song': 'Help'}}
    >>> call_of({"name": "play", "args": {"song": "Help"}, "id": "c1"})                                   # LangChain
    {'name': 'play', 'arguments': {'song': 'Help'}}

The arguments stand under `arguments`, `parameters` (Llama, Seal-Tools), `args`, `kwargs`, `tool_input` or `action_input` (LangChain), or
`input` (Anthropic). A call with none of these has no arguments only if it has no other key of its own either.
"""

from collections.abc import Collection
from typing import Any

from star.call_blocks import ARGUMENT_KEYS, NAME_KEYS
from star.data.literals import parse_field
from star.errors import InputError

# Keys beside the arguments that say nothing about the call itself. `responses` is Seal-Tools'.
_SIDE_KEYS = {
    *NAME_KEYS,
    "id",
    "type",
    "index",
    "tool_call_id",
    "call_id",
    "responses",
    "function",
    "cache_control",
    "caller",
}


def call_of(call: Any) -> dict:
    """Returns {"name", "arguments"} of a call. The arguments may be JSON text; blank text and null are no arguments.

    Raises:
        InputError: it is not an object, its arguments cannot be read or are no object, or they stand under an unknown key.
    """
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict):
        raise InputError(f"a call must be an object, got {str(call)[:80]}")
    if isinstance(arguments := inner.get("arguments"), dict) and arguments and inner is call:
        return {"name": inner.get("name") or _name_in(inner), "arguments": arguments}
    written = _arguments_in(inner)
    if inner is not call and (beside := _arguments_in(call)):
        written = {**beside, **written}
    # An empty object beside another key is the default of a table's column.
    filled = {key: value for key, value in written.items() if value not in ({}, "{}")}
    if "arguments" not in filled and len(filled) > 1:
        raise InputError(f"a call has values under {', '.join(f'`{key}`' for key in filled)}, and one is its arguments")
    key, arguments = next(iter(filled.items()), ("arguments", {}))
    own = {key for key, value in inner.items() if value is not None} - _SIDE_KEYS - {*ARGUMENT_KEYS}
    if own and not written:
        raise InputError(f"a call has no `arguments`, and its `{min(own)}` is not read")
    if isinstance(arguments, str):
        arguments = parse_field(arguments, key)
        if isinstance(arguments, str):  # encoded twice
            arguments = parse_field(arguments, key)
        arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise InputError(f"the arguments of a call must be an object, got {str(arguments)[:80]}")
    return {"name": _name_in(inner), "arguments": arguments}


def _name_in(call: dict) -> Any:
    return next((call[key] for key in NAME_KEYS if call.get(key) is not None), None)


def _arguments_in(call: dict) -> dict:
    # A table has every key in every row, with null where a row does not use it.
    return {key: value for key in ARGUMENT_KEYS if not _is_blank(value := call.get(key))}


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def calls_of_value(value: Any) -> list[dict]:
    """Returns the calls of one call, a list of calls, or {"tool_calls": [...]}.

    Raises:
        InputError: one of them is not a call.
    """
    if isinstance(value, dict) and isinstance(value.get("tool_calls"), list):
        value = value["tool_calls"]
    return [call_of(call) for call in (value if isinstance(value, list) else [value])]


def is_call(value: Any, names: Collection[str] = ()) -> bool:
    """Whether a value that a text holds looks like a call or a list of calls, and not like any other object.

    Args:
        names: of the tools. A call of one of these may have its name under any of `NAME_KEYS`.
    """
    if isinstance(value, list):
        return bool(value) and all(isinstance(part, dict) and is_call(part, names) for part in value)
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("tool_calls"), list):
        return is_call(value["tool_calls"], names)
    inner = value.get("function", value)
    # With a description it is the definition of a tool, which has a name and parameters, too.
    if not isinstance(inner, dict) or "description" in inner or inner.keys().isdisjoint(ARGUMENT_KEYS):
        return False
    name = _name_in(inner)
    return isinstance(name, str) and ("name" in inner or "api" in inner or name in names)
