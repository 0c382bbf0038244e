"""Reads, checks and writes rows: one prompt with its tools and the assistant's answer per line (JSON Lines), as all stages use them.

    {"id": "gen-7-3-a41c", "messages": [{"role": "user", "content": "Book a hotel in Rome for 22 nights"},
     {"role": "assistant", "content": "", "tool_calls": [{"name": "book_hotel", "arguments": {"city": "Rome", "nights": 22}}]}],
     "tools": [{"name": "book_hotel", "description": ..., "parameters": {...}}], "source": "generated", "kind": "simple"}

The last message is the assistant's target, the others are the prompt. Fields are written in a fixed order, so that equal rows are equal
bytes. The arguments of a call keep their order, because it shows in the text that the model learns.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from star.errors import InputError
from star.limits import DEPTH, RECORD_BYTES, RECORD_PARTS

REFUSAL = "None of the given tools can do that."  # the answer of a made row whose tools cannot do what the user asks
UNANSWERED = "unanswered"  # field of a row whose origin says that no tool is called, and not what is answered


class Call(BaseModel):
    """A call of a tool."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    arguments: dict[str, Any]


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[Call] | None = None
    reasoning_content: str | None = None


class Parameters(BaseModel):
    """The parameters of a tool: a JSON Schema object."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["object"]
    properties: dict[str, Any]
    required: list[str] = []


class Tool(BaseModel):
    """A tool in the normal form of `star.data.tools`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    description: str
    parameters: Parameters


class Row(BaseModel):
    """The form of a row. A stage may add fields of its own; they follow these, sorted."""

    model_config = ConfigDict(extra="allow", strict=True)
    id: str = Field(min_length=1)
    messages: list[Message]
    tools: list[Tool]
    source: str
    kind: str

    @field_validator("messages")
    @classmethod
    def _ends_with_the_target(cls, messages: list[Message]) -> list[Message]:
        if not messages or messages[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's")
        return messages


@dataclass(frozen=True)
class Reject:
    """A row that was left out.

    Attributes:
        reason: a fixed word to count by, such as near_duplicate.
        detail: one line for a person.
        row: what was read.
        source: name of the set that it was read from, where a run reads several.
    """

    id: str
    reason: str
    detail: str
    row: object
    source: str | None = None


def ordered_row(row: dict) -> dict:
    """Returns the row with its fields in the fixed order.

    Raises:
        InputError: it is not in row form; the message names the field.
    """
    try:
        # Without the fields that were not given: otherwise a row that is read and written again would be other bytes.
        dumped = Row.model_validate(row).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"not a row: {where or 'it'}: {first['msg']}") from error
    extras = dumped.keys() - Row.model_fields.keys()
    return {key: dumped[key] for key in [*Row.model_fields, *sorted(extras)]}


def read_rows(path: Path) -> Iterator[dict]:
    """Yields the rows of a JSON Lines file, one at a time.

    Raises:
        InputError: there is no such file, or a line is not JSON or not a row; the message names the file and the line.
    """
    for number, row in read_json_lines(path):
        try:
            yield ordered_row(row)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (line number from 1, value) for every line that is not blank.

    Raises:
        InputError: there is no such file, or a line is not JSON; the message names the file and the line.
    """
    for number, line in read_lines(path):
        try:
            yield number, parse_line(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yields (line number from 1, line) for every line that is not blank. A line longer than RECORD_BYTES is yielded as None.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    with file:
        number = 0
        # One byte more than allowed tells a line that is too long, without reading all of it.
        while line := file.readline(RECORD_BYTES + 1):
            number += 1
            if len(line) <= RECORD_BYTES:
                if line.strip():
                    yield number, line
                continue
            # Skipped in pieces, because a file without line breaks may be larger than the memory.
            while line and not line.endswith(b"\n"):
                line = file.readline(2**20)
            yield number, None


def parse_line(line: bytes | None) -> Any:
    """Returns the JSON value of a line.

    Raises:
        ValueError: the line is too long, is not JSON, nests too deeply, or has too many values.
    """
    if line is None:
        raise ValueError(f"longer than {RECORD_BYTES // 2**20} MiB, so it is no row")
    try:
        # The decoder raises RecursionError for a line that nests too deeply.
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    # Counting the brackets is cheaper than looking, and few records have so many. A value takes a character or more.
    if line.count(b"{") + line.count(b"[") > DEPTH or len(line) > RECORD_PARTS:
        require_bounded(value)
    return value


def require_bounded(value: Any) -> None:
    """Raises ValueError for a record that nests too deeply or has too many values."""
    parts = 1
    for depth, level in enumerate(_levels(value)):
        if depth > DEPTH:
            raise ValueError(f"its objects and lists nest deeper than {DEPTH}")
        if (parts := parts + sum(map(len, level))) > RECORD_PARTS:
            raise ValueError(f"it has more than {RECORD_PARTS:,} values")


def is_too_deep(value: Any) -> bool:
    """Whether objects and lists nest deeper than a record's may."""
    return any(depth > DEPTH for depth, _ in enumerate(_levels(value)))


def _levels(value: Any) -> Iterator[list[dict | list]]:
    """Yields the objects and lists of each depth, the outermost first. Without recursion, which would end in an error itself."""
    level = [value] if isinstance(value, dict | list) else []
    while level:
        yield level
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]


def write_json_lines(path: Path, values: Iterable[Any]) -> int:
    """Writes one JSON value per line and returns their number.

    Raises:
        InputError: a value cannot be written as JSON; the message names the file and the line.
    """
    count = 0
    with path.open("wb") as file:
        for count, value in enumerate(values, start=1):
            try:
                file.write(json_line(value))
            except ValueError as error:
                raise InputError(f"{path}, line {count}: cannot be written as JSON: {error}") from error
    return count


def json_line(value: Any) -> bytes:
    """Returns the value as one line of UTF-8 JSON.

    Raises:
        ValueError: it contains nan, infinity or a lone surrogate.
    """
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def is_answered(row: dict) -> bool:
    """Whether the row has an answer: calls, or words. Without one, the teacher gives it."""
    target = row["messages"][-1]
    return bool(target.get("tool_calls") or (target.get("content") or "").strip())


def query_of(row: dict) -> str:
    """Returns all messages before the target as one text for comparing rows, without case, spacing and system messages."""
    said = []
    for message in row["messages"][:-1]:
        if message["role"] != "system":
            said.append(message.get("content") or "")
            said += [_canonical(call) for call in message.get("tool_calls") or []]
    return " ".join(" ".join(said).casefold().split())


def target_of(row: dict) -> str:
    """Returns the target as one text for comparing rows: its calls, whatever their order, or else its content."""
    target = row["messages"][-1]
    if calls := target.get("tool_calls"):
        return "\n".join(sorted(_canonical(call) for call in calls))
    return " ".join((target.get("content") or "").casefold().split())


def _canonical(call: dict) -> str:
    return json.dumps([call["name"], call["arguments"]], sort_keys=True, ensure_ascii=False)
