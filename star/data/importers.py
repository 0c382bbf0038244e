"""Reads other people's data into rows: `messages` + `tools` files, and xLAM-60k as it is published.

One record becomes one row, whose target is the record's last message; the earlier assistant turns of a conversation
stay prompt. A record that cannot be a row is handed back as a Reject, so that what comes out counts up to what went in.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from star.data.rows import Reject, json_line, ordered_row, read_json_lines
from star.data.tools import normalize_tool
from star.errors import InputError


def import_rows(path: Path, *, source: str) -> Iterator[dict | Reject]:
    """Yields a row or a Reject for each record of a JSON Lines file, or of a JSON file that holds a list.

    Two forms: {"messages", "tools"}, with calls as {"function": {"name", "arguments": text or object}} or as {"name",
    "arguments"}; and xLAM's {"query", "answers", "tools"}, where answers and tools may be JSON text. A record's own
    `id` is kept (behind the source where it is a number); without one, the id is a hash of the content.

    Raises:
        InputError: the file is missing, or a line is not JSON; names the file and the line.
    """
    for number, record in _records(path):
        try:
            row = ordered_row(_row(record, source=source))
            json_line(row)
        except (InputError, ValueError) as error:
            identity = record.get("id") if isinstance(record, dict) else None
            yield Reject(str(identity or f"{path.name}:{number}"), "unreadable", str(error), record)
            continue
        yield row


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, record): the number is the line, or the place in the list."""
    if not path.is_file():
        raise InputError(f"cannot read {path}: there is no such file")
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start != b"[":
        yield from read_json_lines(path)
        return
    try:
        listed = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    yield from enumerate(listed, start=1)


def _row(record: Any, *, source: str) -> dict:
    if not isinstance(record, dict):
        raise InputError(f"a record must be an object, got {str(record)[:80]}")
    if "messages" in record:
        messages = [_message(message) for message in _list(record, "messages")]
    elif "query" in record:
        calls = [_call(call) for call in _list(record, "answers")]
        messages = [{"role": "user", "content": record["query"]}, _answer(None, calls, None)]
    else:
        raise InputError("a record must have `messages`, or `query` and `answers`")
    tools = [_tool(json.dumps(tool)) for tool in _list(record, "tools")]
    content = {"messages": messages, "tools": tools}
    identity = _identity(record.get("id"), content, source)
    return {"id": identity, **content, "source": source, "kind": record.get("kind") or _kind(messages)}


def _list(record: dict, key: str) -> list:
    value = [] if record.get(key) is None else record[key]
    if isinstance(value, str):
        value = _parsed(value, key)
    if not isinstance(value, list):
        raise InputError(f"`{key}` must be a list, got {str(value)[:80]}")
    return value


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"`{what}` is text that is not JSON: {error}") from error


def _message(message: Any) -> dict:
    if not isinstance(message, dict):
        raise InputError(f"a message must be an object, got {str(message)[:80]}")
    if message.get("role") != "assistant":
        return {"role": message.get("role"), "content": message.get("content")}
    calls = [_call(call) for call in _list(message, "tool_calls")]
    return _answer(message.get("content"), calls, message.get("reasoning_content"))


def _answer(content: str | None, calls: list[dict], reasoning: str | None) -> dict:
    return {"role": "assistant", "content": content, "tool_calls": calls, "reasoning_content": reasoning}


def _call(call: Any) -> dict:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict):
        raise InputError(f"a call must be an object, got {str(call)[:80]}")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, "arguments") if arguments.strip() else {}
    return {"name": inner.get("name"), "arguments": {} if arguments is None else arguments}


@lru_cache(maxsize=16384)
def _tool(text: str) -> dict:
    """The tool in normal form. Data sets repeat their tools and a check takes milliseconds, hence the cache."""
    tool = normalize_tool(json.loads(text))
    return {key: tool[key] for key in ("name", "description", "parameters")}


def _identity(given: Any, content: dict, source: str) -> str:
    if isinstance(given, str) and given:
        return given
    if isinstance(given, int):
        return f"{source}-{given}"
    return f"{source}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"


def _kind(messages: list[dict]) -> str:
    """simple is one call, parallel several, multi-step calls after results, response text after, else irrelevance."""
    calls = len(messages[-1].get("tool_calls") or []) if messages else 0
    if any(message["role"] == "tool" for message in messages):
        return "multi-step" if calls else "response"
    return {0: "irrelevance", 1: "simple"}.get(calls, "parallel")
