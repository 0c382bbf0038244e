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
from pathlib import Path
from typing import Any

from star.data.cached_by_text import cached_by_text
from star.data.calls import calls_of_value
from star.data.chat_texts import split_glaive, split_hammer
from star.data.conversations import assistant_message, conversation_of, text_of
from star.data.listed_tools import (
    list_field,
    repeats_tools,
    require_no_other_tools,
    text_before_tools,
    tools_in_system,
    tools_of_record,
)
from star.data.read_records import read_records
from star.data.rows import UNANSWERED, Reject, is_answered, json_line, ordered_row
from star.data.tools import normalize_tool
from star.data.turn_labels import label_turn
from star.errors import InputError
from star.time_limit import TookTooLong, record_limit

# Licences under which the known sets are published, by the source's name.
LICENCES = {"xlam": "CC-BY-4.0", "hammer": "CC-BY-4.0", "toolace": "Apache-2.0", "toolmind": "Apache-2.0"}
PROVENANCE = ("source", "licence", "generator", "seed", "parents")


def import_rows(
    path: Path,
    *,
    source: str,
    licence: str | None = None,
    every_turn: bool = False,
    label: str | None = None,
    among_others: bool = False,
) -> Iterator[dict | Reject]:
    """Yields a row or a Reject for each record of a JSON Lines, JSON or Parquet file, or of a data set's folder.

    Forms: {"messages" or "conversations", "tools"}, with calls as {"function": {"name", "arguments": text or object}}, as {"name",
    "arguments"}, in `<tool_call>` tags or as ToolACE's text; xLAM's and Hammer's {"query", "answers", "tools"}. Lists may be JSON text. A
    record's own `id` is kept (behind the source where it is a number); without one, the id is the source and a hash of the content.

    A row that STAR wrote keeps its source, licence, generator, seed and parents.

    Args:
        source: name of the origin of all other rows.
        licence: written on every row; without it the row's own licence, that of a known source, or `unknown`.
        every_turn: one row per assistant turn instead of one per record; ids end in the turn's number.
        label: what rejects without an id are named by, with their number; by default the name of the file or folder.
        among_others: several sets are read, whose ids may be the same: all ids begin with the source, and all rejects are named by
            label and number.

    Raises:
        InputError: the file is missing, or no record in it is JSON; the message names the file.
    """
    broken, read = None, False
    for number, record in read_records(path):
        name = f"{label or path.name}:{number}"
        if isinstance(record, ValueError):
            broken = broken or f"{path}, record {number}: {record}"
            yield Reject(name, "unreadable", str(record), None)
            continue
        read = True
        try:
            # All rows before the first is yielded, so that a record becomes rows or a reject and never both.
            with record_limit():
                rows = [
                    ordered_row(row | _provenance(record, source=source, licence=licence))
                    for row in _rows(record, source=source, every_turn=every_turn, among_others=among_others)
                ]
                for row in rows:
                    # Raises ValueError for what cannot be written later, such as nan, while the record is still known.
                    json_line(row)
        # Tables may hold dates or bytes, which are no JSON (TypeError), and JSON may nest too deeply to be checked.
        except (InputError, ValueError, TypeError, RecursionError, TookTooLong) as error:
            identity = record.get("id") if isinstance(record, dict) and not among_others else None
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


def _rows(record: Any, *, source: str, every_turn: bool, among_others: bool) -> list[dict]:
    if not isinstance(record, dict):
        raise InputError(f"a record must be an object, got {str(record)[:80]}")
    messages, tools, unanswered = _conversation(record)
    if not messages:
        raise InputError("a record must have a message of the assistant")
    identity = _identity(record.get("id"), {"messages": messages, "tools": tools}, source)
    if among_others and not identity.startswith(f"{source}-"):
        identity = f"{source}-{identity}"
    if not every_turn:
        kind = record.get("kind") or kind_of(messages)
        return [_row(identity, messages, tools, kind=kind, unanswered=unanswered)]
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant" and place]
    if not turns:
        raise InputError("a record must have an assistant turn that answers something")
    return [
        _row(
            f"{identity}#{place}",
            (turn := messages[: place + 1]),
            tools,
            kind=kind_of(turn),
            unanswered=unanswered and len(turn) == len(messages),
        )
        for place in turns
    ]


def _row(identity: str, messages: list[dict], tools: list[dict], *, kind: str, unanswered: bool) -> dict:
    turn = label_turn(messages)
    labels = {"labels": list(turn.labels), "number": turn.number, "calls": turn.calls}
    row = {"id": identity, "messages": messages, "tools": tools, "kind": kind, "turn": labels}
    return row | {UNANSWERED: True} if unanswered and not is_answered(row) else row


def _conversation(record: dict) -> tuple[list[dict], list[dict], bool]:
    """Returns (messages, tools in normal form, whether the record has no answer) of a record in any of the forms."""
    written, answer, listed = _written_conversation(record)
    tools = [_tool(json.dumps(tool)) for tool in listed]
    properties = {tool["name"]: tool["parameters"]["properties"] for tool in tools}
    messages = conversation_of(written, properties)
    if answer is not None:
        messages.append(assistant_message(None, calls_of_value(answer), None))
    # Without calls, xLAM and Hammer mean that no tool can help, and do not say what a good reply is.
    return messages, tools, answer == [] or record.get(UNANSWERED) is True


def _written_conversation(record: dict) -> tuple[list, list | None, list]:
    """Returns (messages, the answer's calls where they stand apart, tools), all as they are written."""
    if (field := next((key for key in ("messages", "conversations") if record.get(key) is not None), None)) is not None:
        written = list_field(record, field)
    elif isinstance(record.get("chat"), str):
        written = split_glaive(record["chat"])
    elif record.get("query") is not None:
        query = record["query"]
        # API-Bank's conversations in Hammer's files are a list of messages.
        written = query if isinstance(query, list) else [{"role": "user", "content": query}]
        answer = _answer(record)
        if (tools := tools_of_record(record)) is None:
            raise InputError("a record with `query` must have `tools`; those of Seal-Tools are in its tool.jsonl")
        return written, answer, tools
    elif isinstance(record.get("instruction"), str):
        written, listed = split_hammer(record["instruction"])
        return written, _fenced_answer(record), tools_of_record({"tools": listed}) or []
    else:
        found = ", ".join(f"`{key}`" for key in record)[:120]
        raise InputError(
            f"a record must have `messages` or `conversations`, `query` and `answers`, or `chat`; it has {found or 'nothing'}"
        )
    return _with_system(record, written)


def _with_system(record: dict, written: list) -> tuple[list, None, list]:
    """Adds the record's system message to the conversation, or reads the tools that a system message lists."""
    above = text_of(record.get("system"))
    if above and "chat" in record:  # glaive's begins with its role
        above = above.strip().removeprefix("SYSTEM:").strip()
    if above and above.strip():
        written = [{"role": "system", "content": above}, *written]
    first = written[0] if written and isinstance(written[0], dict) else {}
    is_system = first.get("role", first.get("from")) == "system"
    system = text_of(first.get("content", first.get("value"))) if is_system else None
    # Some sets write the tools into the first message.
    if tools := tools_of_record(record) or tools_of_record(first):
        # Hermes repeats the tools in its system message. Every prompt shows them anyway.
        return _without_listed_tools(written) if system and repeats_tools(system, tools) else written, None, tools
    if system and (listed := tools_in_system(system)):
        return _without_listed_tools(written), None, listed
    require_no_other_tools(record)
    return written, None, []


def _without_listed_tools(written: list) -> list:
    """Returns the conversation without its system message, of which only the text before the template's list of tools stays."""
    first = written[0]
    before = text_before_tools(text_of(first.get("content", first.get("value"))) or "")
    return [{"role": "system", "content": before}, *written[1:]] if before else written[1:]


def _answer(record: dict) -> list:
    """Returns the calls of xLAM's `answers` or Seal-Tools' `calling`, as they are written."""
    field = next((key for key in ("answers", "calling") if record.get(key) is not None), None)
    if field is None:
        raise InputError("a record with `query` must have `answers`: an empty list where no tool is to be called")
    if isinstance(record[field], str) and not record[field].strip():
        raise InputError(f"`{field}` is blank: write [] where no tool is to be called")
    return list_field(record, field)


def _fenced_answer(record: dict) -> list:
    """Returns the calls of Hammer's `output`, a list between two lines of three backticks."""
    output = record.get("output")
    if not isinstance(output, str) or not (text := output.strip().strip("`").strip()):
        raise InputError("a record with `instruction` must have its calls, or [], as text under `output`")
    return list_field({"output": text}, "output")


@cached_by_text
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
            found: list[dict] = []
            try:
                with record_limit():
                    for written in _written_conversation(record)[2]:
                        found += _new_tool(written, seen)
            # The record is a reject with this reason, and its tools that were read are still tools.
            except (InputError, ValueError, TypeError, AttributeError, RecursionError, TookTooLong):
                pass
            yield from found


def _new_tool(written: Any, seen: set[bytes]) -> list[dict]:
    text = json.dumps(written, sort_keys=True)
    if (mark := hashlib.blake2b(text.encode(), digest_size=8).digest()) in seen:
        return []
    seen.add(mark)
    try:
        entry = {"original": written, "tool": _tool(json.dumps(written))}
        # Raises ValueError for what cannot be written, such as nan.
        json_line(entry)
    except (InputError, ValueError):
        return []
    return [entry]


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
