r"""Imports rows from public data sets and files of one's own: `messages` + `tools`, xLAM-60k, Hammer, ToolACE, ToolMind.

    import_rows(Path("xlam.json"), source="xlam")
    {"id": 1, "query": "Weather in Oslo?", "answers": "[...]", "tools": "[...]"}                          # a record of xLAM
    {"id": "xlam-1", "messages": [...], "tools": [...], "source": "xlam", "kind": "simple", ...}    # the row it becomes

One record becomes one row: the target is its last message, and earlier assistant turns are part of the prompt. With `every_turn`, each
assistant turn becomes a row. A record that cannot become a row is yielded as a Reject, so that none is lost.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from star.data.conversations import assistant_message, call_of, calls_in_text, list_field, message_of, tools_in_system
from star.data.read_records import read_records
from star.data.rows import REFUSAL, Reject, json_line, ordered_row
from star.data.tools import normalize_tool
from star.errors import InputError

# Licences under which the known sets are published, by the source's name.
LICENCES = {"xlam": "CC-BY-4.0", "hammer": "CC-BY-4.0", "toolace": "Apache-2.0", "toolmind": "Apache-2.0"}
PROVENANCE = ("source", "licence", "generator", "seed", "parents")


def import_rows(
    path: Path, *, source: str, licence: str | None = None, every_turn: bool = False
) -> Iterator[dict | Reject]:
    """Yields a row or a Reject for each record of a JSON Lines, JSON or Parquet file, or of a data set's folder.

    Forms: {"messages" or "conversations", "tools"}, with calls as {"function": {"name", "arguments": text or object}}, as {"name",
    "arguments"}, in `<tool_call>` tags or as ToolACE's text; xLAM's and Hammer's {"query", "answers", "tools"}. Lists may be JSON text. A
    record's own `id` is kept (behind the source where it is a number); without one, the id is a hash of the content.

    A row that STAR wrote keeps its source, licence, generator, seed and parents.

    Args:
        source: name of the origin of all other rows.
        licence: written on every row; without it the row's own licence, that of a known source, or `unknown`.
        every_turn: one row per assistant turn instead of one per record; ids end in the turn's number.

    Raises:
        InputError: the file is missing, or no record in it is JSON; the message names the file.
    """
    broken, read = None, False
    for number, record in read_records(path):
        name = f"{path.name}:{number}"
        if isinstance(record, ValueError):
            broken = broken or f"{path}, record {number}: {record}"
            yield Reject(name, "unreadable", str(record), None)
            continue
        read = True
        try:
            # All rows before the first is yielded, so that a record becomes rows or a reject and never both.
            rows = [
                ordered_row(row | _provenance(record, source=source, licence=licence))
                for row in _rows(record, source=source, every_turn=every_turn)
            ]
            for row in rows:
                # Raises ValueError for what cannot be written later, such as nan, while the record is still known.
                json_line(row)
        except (InputError, ValueError) as error:
            identity = record.get("id") if isinstance(record, dict) else None
            yield Reject(str(identity or name), "unreadable", str(error), record)
            continue
        yield from rows
    if broken and not read:
        raise InputError(f"{broken}: give JSON Lines, a JSON list or Parquet with `messages` and `tools`")


def _provenance(record: dict, *, source: str, licence: str | None) -> dict:
    # All five together mark a row that STAR wrote; a foreign record may have a `source` or `seed` of another meaning.
    if record.keys() >= set(PROVENANCE):
        kept = {key: record[key] for key in PROVENANCE}
        return {**kept, "licence": licence} if licence else kept
    known = licence or LICENCES.get(source, "unknown")
    return {"source": source, "licence": known, "generator": "import", "seed": None, "parents": []}


def _rows(record: Any, *, source: str, every_turn: bool) -> list[dict]:
    if not isinstance(record, dict):
        raise InputError(f"a record must be an object, got {str(record)[:80]}")
    if "messages" in record or "conversations" in record:
        messages, tools = _conversation(record)
    elif "query" in record:
        calls = [call_of(call) for call in list_field(record, "answers")]
        # Without answers, xLAM and Hammer mean that no tool can help. The row needs a text that says so.
        said = None if calls else REFUSAL
        messages = [{"role": "user", "content": record["query"]}, assistant_message(said, calls, None)]
        tools = list_field(record, "tools")
    else:
        raise InputError("a record must have `messages`, or `query` and `answers`")
    tools = [_tool(json.dumps(tool)) for tool in tools]
    whole = {"messages": messages, "tools": tools}
    identity = _identity(record.get("id"), whole, source)
    if not every_turn:
        return [{"id": identity, **whole, "kind": record.get("kind") or kind_of(messages)}]
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant" and place]
    if not turns:
        raise InputError("a record must have an assistant turn that answers something")
    return [
        {"id": f"{identity}#{place}", "messages": messages[: place + 1], "tools": tools, "kind": kind}
        for place in turns
        if (kind := kind_of(messages[: place + 1]))
    ]


def _conversation(record: dict) -> tuple[list[dict], list]:
    """Returns (messages, tools as written) of a conversation. ToolACE's tools and calls are read from its texts."""
    messages = [
        message_of(message) for message in list_field(record, "messages" if "messages" in record else "conversations")
    ]
    if isinstance(system := record.get("system"), str) and system.strip():
        messages.insert(0, {"role": "system", "content": system})
    if "tools" in record or "functions" in record:
        return messages, list_field(record, "tools" if "tools" in record else "functions")
    listed = tools_in_system(messages[0]["content"] or "") if messages and messages[0]["role"] == "system" else None
    if listed is None:
        return messages, []
    names = {str(tool.get("name") or (tool.get("function") or {}).get("name")) for tool in listed}
    with_calls = []
    for message in messages[1:]:  # without the system message that lists the tools: every prompt shows them anyway
        calls = (
            calls_in_text(message["content"], names)
            if message["role"] == "assistant" and not message["tool_calls"]
            else None
        )
        with_calls.append(message if calls is None else assistant_message(None, calls, None))
    return with_calls, listed


@lru_cache(maxsize=16384)
def _tool(text: str) -> dict:
    """Returns the tool in normal form. Cached, because data sets repeat their tools and a check takes milliseconds."""
    tool = normalize_tool(json.loads(text))
    return {key: tool[key] for key in ("name", "description", "parameters")}


def original_tools(paths: Iterable[Path]) -> Iterator[dict]:
    """Yields {"original", "tool"} for every distinct tool of the files' records: as it was written, and in normal form.

    A tool without a normal form is left out. The rows that show it are rejects with the reason.
    """
    seen: set[bytes] = set()
    for path in paths:
        for _, record in read_records(path):
            for written in _written_tools(record):
                text = json.dumps(written, sort_keys=True)
                if (mark := hashlib.blake2b(text.encode(), digest_size=8).digest()) in seen:
                    continue
                seen.add(mark)
                try:
                    yield {"original": written, "tool": _tool(json.dumps(written))}
                except InputError:
                    continue


def _written_tools(record: Any) -> list:
    try:
        if "conversations" in record or "messages" in record:
            return _conversation(record)[1]
        return list_field(record, "tools")
    except (InputError, TypeError, AttributeError):
        return []


def _identity(given: Any, content: dict, source: str) -> str:
    if isinstance(given, str) and given:
        return given
    # Numbers repeat from set to set, so the source keeps them apart.
    if isinstance(given, int):
        return f"{source}-{given}"
    return f"{source}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"


def kind_of(messages: list[dict]) -> str:
    """Returns the kind of a conversation by its last message.

    simple: one call. parallel: several calls of one tool. parallel-multiple: calls of several tools. multi-step: calls after results of the
    same request. multi-turn: calls after an earlier answer. response: text after a result. irrelevance: text without one.
    """
    calls = (messages[-1].get("tool_calls") or []) if messages else []
    asked = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=0)
    if not calls:
        return "response" if any(message["role"] == "tool" for message in messages) else "irrelevance"
    if any(message["role"] == "tool" for message in messages[asked:]):
        return "multi-step"
    if any(message["role"] == "assistant" for message in messages[:asked]):
        return "multi-turn"
    if len(calls) == 1:
        return "simple"
    return "parallel" if len({call["name"] for call in calls}) == 1 else "parallel-multiple"
