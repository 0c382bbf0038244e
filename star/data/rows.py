"""The row: one prompt with its tools and the assistant's answer, as every stage reads and writes it (JSON Lines).

{"id", "messages", "tools", "source", "kind"}: the last message is the assistant's target, the others are the prompt.
Fields are written in a fixed order, so that equal rows are equal bytes; a call's arguments keep the order they came in,
because the target's text shows it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from star.errors import InputError

MAX_LINE_BYTES = 16 * 2**20  # bytes: no model is trained on a row of that size, and a line must fit into memory


class Call(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    arguments: dict[str, Any]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[Call] | None = None
    reasoning_content: str | None = None


class Parameters(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["object"]
    properties: dict[str, Any]
    required: list[str] = []


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    description: str
    parameters: Parameters


class Row(BaseModel):
    """The form of a row. A stage may add fields of its own; they are kept, sorted, behind these."""

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
    """A row left out: `reason` is a fixed word to count by, `detail` one line for a person, `row` what was read."""

    id: str
    reason: str
    detail: str
    row: object


def ordered_row(row: dict) -> dict:
    """The row with its fields in the fixed order.

    Raises:
        InputError: it is not in row form; names the field.
    """
    try:
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
        InputError: no such file, or a line that is not JSON or not a row; names the file and the line.
    """
    for number, row in read_json_lines(path):
        try:
            yield ordered_row(row)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (line number from 1, value) for every line that is not blank; InputError names the file and the line."""
    for number, line in read_lines(path):
        try:
            yield number, parse_line(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yields (line number from 1, line) for every line that is not blank; None stands for one longer than MAX_LINE_BYTES.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    with file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) <= MAX_LINE_BYTES:
                if line.strip():
                    yield number, line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(2**20)
            yield number, None


def parse_line(line: bytes | None) -> Any:
    """The JSON value of a line; ValueError says what is wrong with it."""
    if line is None:
        raise ValueError(f"longer than {MAX_LINE_BYTES // 2**20} MiB, so it is no row")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error


def write_json_lines(path: Path, values: Iterable[Any]) -> int:
    """Writes one JSON value a line and returns how many; InputError names the file and the line that cannot be JSON."""
    count = 0
    with path.open("wb") as file:
        for count, value in enumerate(values, start=1):
            try:
                file.write(json_line(value))
            except ValueError as error:
                raise InputError(f"{path}, line {count}: cannot be written as JSON: {error}") from error
    return count


def json_line(value: Any) -> bytes:
    """The value as one line of UTF-8 JSON; ValueError for nan, infinity and lone surrogates."""
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode()


def query_of(row: dict) -> str:
    """All that the target answers, as one text for comparing rows: case, spacing and system messages do not count."""
    said = []
    for message in row["messages"][:-1]:
        if message["role"] != "system":
            said.append(message.get("content") or "")
            said += [_canonical(call) for call in message.get("tool_calls") or []]
    return " ".join(" ".join(said).casefold().split())


def target_of(row: dict) -> str:
    """The answer as one text for comparing rows: its calls in any order, or, where it makes none, what it says."""
    target = row["messages"][-1]
    if calls := target.get("tool_calls"):
        return "\n".join(sorted(_canonical(call) for call in calls))
    return " ".join((target.get("content") or "").casefold().split())


def _canonical(call: dict) -> str:
    return json.dumps([call["name"], call["arguments"]], sort_keys=True, ensure_ascii=False)
