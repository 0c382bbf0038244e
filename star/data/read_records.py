"""Reads raw records one at a time from JSON Lines, a JSON list, Parquet, or a folder of Hugging Face's `save_to_disk`.

Only a few records are in memory, whatever the size of the file. A record that cannot be read, or that is over a bound of `star.limits`, is
yielded as the ValueError that says why, so that one bad line does not stop the others.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.data.rows import is_too_deep, parse_line, read_lines
from star.errors import InputError
from star.limits import DEPTH, PARQUET_BATCH_ROWS, PARQUET_COMPRESSION, PARQUET_EXPANSION, PARQUET_VALUES, RECORD_BYTES

CHUNK_CHARACTERS = 2**20
TOO_DEEP = f"its objects and lists nest deeper than {DEPTH}"
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
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = size = 0
    try:
        # Small batches, because a page of a kilobyte may hold one long text for each of many rows.
        with ParquetFile(path) as file:
            _require_bounded_columns(path, file.metadata)
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                size += batch.nbytes
                if size > max(2**30, PARQUET_EXPANSION * path.stat().st_size):
                    why = f"the records have more than {PARQUET_EXPANSION} times the file's bytes; what follows was not read"
                    yield number + 1, ValueError(why)
                    return
                for record in _records_of(batch):
                    number += 1
                    yield number, record
    except (ArrowException, OSError, MemoryError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {str(error)[:200] or type(error).__name__}") from error


def _require_bounded_columns(path: Path, metadata: Any) -> None:
    """Raises InputError for a row group that would not fit into memory: what repeats takes no space in the file."""
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            if column.path_in_schema.count(".") > DEPTH:
                raise InputError(f"{path}: a column is nested deeper than {DEPTH}: give flatter records")
            size, stored = column.total_uncompressed_size, column.total_compressed_size
            expands = size > 4 * RECORD_BYTES and size > PARQUET_COMPRESSION * stored
            if column.num_values > PARQUET_VALUES or expands:
                raise InputError(
                    f"{path}: column {column.path_in_schema[:80]!r} of row group {group} has {column.num_values:,} values and "
                    f"{size:,} bytes, from {stored:,} in the file; at most {PARQUET_VALUES:,} values and {PARQUET_COMPRESSION} "
                    "bytes for one are read: write smaller row groups, without compression"
                )


def _records_of(batch: Any) -> list:
    """Returns the records of a batch. One that cannot be read is the ValueError that says why."""
    if batch.nbytes > RECORD_BYTES and batch.num_rows == 1:
        return [ValueError(f"{TOO_LONG}, so it is no row")]
    if batch.nbytes <= RECORD_BYTES:
        try:
            return batch.to_pylist()
        except (ValueError, OverflowError) as error:  # texts that are not UTF-8, dates beyond Python's
            if batch.num_rows == 1:
                return [ValueError(f"not readable: {str(error)[:200]}")]
    return [record for place in range(batch.num_rows) for record in _records_of(batch.slice(place, 1))]


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
            problem: object = "the list has no end"
            try:
                value, end = decoder.raw_decode(text) if text else (None, 0)
            except (ValueError, RecursionError) as error:
                value, end, problem = None, 0, error
            if isinstance(value, dict | list) and text.count("{", 0, end) + text.count("[", 0, end) > DEPTH:
                value = ValueError(TOO_DEEP) if is_too_deep(value) else value
            # A number at the end of the chunk may continue in the next one, so an element counts only when something follows it.
            if 0 < end < len(text):
                number += 1
                yield number, value
                text = text[end:]
                continue
            # Doubles each time, so that an element of any size is decoded in linear time.
            more = file.read(max(CHUNK_CHARACTERS, len(text)))
            if not more or len(text) > RECORD_BYTES:
                why = TOO_LONG if more else f"not JSON: {problem}"
                yield number + 1, ValueError(f"{why}; what follows was not read")
                return
            text += more
