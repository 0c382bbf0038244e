"""Reads raw records one at a time from JSON Lines, a JSON list, Parquet, or a folder of Hugging Face's `save_to_disk`.

Only one record is in memory, whatever the size of the file. A record that cannot be read is yielded as the ValueError that says why, so
that one bad line does not stop the others.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.data.rows import MAX_LINE_BYTES, parse_line, read_lines
from star.errors import InputError

CHUNK_CHARACTERS = 2**20
PARQUET_BATCH_ROWS = 256


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
        yield from _read_parquet(path)
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


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=PARQUET_BATCH_ROWS):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (ArrowInvalid, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {str(error)[:200]}") from error


def _read_folder(path: Path) -> Iterator[tuple[int, Any]]:
    """Reads a folder of `datasets.save_to_disk`, or one with Parquet, JSON Lines or JSON lists, such as a clone of a data set."""
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import DatasetDict, load_from_disk

        loaded = load_from_disk(str(path))
        parts = loaded.values() if isinstance(loaded, DatasetDict) else [loaded]
        yield from enumerate((record for part in parts for record in part), start=1)
        return
    lists = [file for file in path.rglob("*.json") if _first_character(file) == b"["]
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
        text, number = file.read(CHUNK_CHARACTERS).lstrip()[1:], 0
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(text) if text else (None, 0)
            except (ValueError, RecursionError) as error:
                value, end, problem = None, 0, error
            # A number at the end of the chunk may continue in the next one, so an element counts only when something follows it.
            if 0 < end < len(text):
                number += 1
                yield number, value
                text = text[end:]
                continue
            # Doubles each time, so that an element of any size is decoded in linear time.
            more = file.read(max(CHUNK_CHARACTERS, len(text)))
            if not more or len(text) > MAX_LINE_BYTES:
                why = (
                    f"longer than {MAX_LINE_BYTES // 2**20} MiB"
                    if more
                    else f"not JSON: {problem if text else 'the list has no end'}"
                )
                yield number + 1, ValueError(f"{why}; what follows was not read")
                return
            text += more
