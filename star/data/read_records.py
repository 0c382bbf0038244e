"""Reads raw records one at a time from JSON Lines, a JSON list, Parquet, or a folder of Hugging Face's `save_to_disk`.

Only a few records are in memory, whatever the size of the file. A record that cannot be read, or that is over a bound of `star.limits`, is
yielded as the ValueError that says why, so that one bad line does not stop the others.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.data.rows import parse_line, read_lines, require_bounded
from star.data.tables import read_table
from star.errors import InputError
from star.limits import DEPTH, RECORD_BYTES, RECORD_PARTS

CHUNK_CHARACTERS = 2**20
_BETWEEN = re.compile(r"[ \t\r\n,]*+")
TOO_LONG = f"longer than {RECORD_BYTES // 2**20} MiB"


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields (number from 1, record or ValueError): the number is the line, or the place in the list or table.

    Raises:
        InputError: there is no such file, or it is in none of these formats.
    """
    if path.is_dir():
        yield from _read_folder(path)
    elif not path.is_file():
        raise InputError(f"cannot read {path}: there is no such file")
    elif path.suffix == ".parquet":
        yield from enumerate(read_table(path), start=1)
    elif _first_character(path) == b"[":
        yield from _read_json_list(path)
    else:
        for number, line in read_lines(path):
            try:
                yield number, parse_line(line)
            except ValueError as error:
                yield number, error


def _first_character(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]


def _read_folder(path: Path) -> Iterator[tuple[int, Any]]:
    """Reads a folder of `datasets.save_to_disk`, or one with Parquet, JSON Lines or JSON lists, such as a clone of a data set."""
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from enumerate(read_table(path), start=1)
        return
    lists = [file for file in path.rglob("*.json") if file.is_file() and _first_character(file) == b"["]
    # Sorted, because the order of a folder differs between machines and a resumed run skips records by their position.
    files = sorted([*path.rglob("*.parquet"), *path.rglob("*.jsonl"), *lists])
    if not files:
        raise InputError(
            f"{path} holds neither a saved data set nor .parquet, .jsonl or .json lists: give one of these"
        )
    yield from enumerate((record for file in files for _, record in read_records(file)), start=1)


def _read_json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Reads the elements of one JSON list as a stream. After an element that is not JSON, the others cannot be told apart."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        # Without the opening bracket; lone bytes that are not UTF-8 become surrogates, and the row with them is a reject.
        text, at, number = file.read(CHUNK_CHARACTERS).lstrip()[1:], 0, 0
        while True:
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if text.startswith("]", at):
                return
            problem: object = "the list has no end"
            try:
                value, end = decoder.raw_decode(text, at) if at < len(text) else (None, at)
            except (ValueError, RecursionError) as error:
                value, end, problem = None, at, error
            # A number at the end of the chunk may continue in the next one, so an element counts only when something follows it.
            if at < end < len(text):
                number += 1
                yield number, _fault_of_bounds(value, text, at, end) or value
                at = end
                continue
            if at:  # once for each chunk: cutting off each element would take quadratic time
                text, at = text[at:], 0
                continue
            # Doubles each time, so that an element of any size is decoded in linear time.
            more = file.read(max(CHUNK_CHARACTERS, len(text)))
            if not more or len(text) > RECORD_BYTES:
                why = TOO_LONG if more else f"not JSON: {problem}"
                yield number + 1, ValueError(f"{why}; what follows was not read")
                return
            text += more


def _fault_of_bounds(value: Any, text: str, start: int, end: int) -> ValueError | None:
    # As in `parse_line`: counting is cheaper than looking.
    if end - start <= RECORD_PARTS and text.count("{", start, end) + text.count("[", start, end) <= DEPTH:
        return None
    try:
        require_bounded(value)
    except ValueError as fault:
        return fault
    return None
