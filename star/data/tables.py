"""Reads Parquet files and folders of Hugging Face's `save_to_disk`, decoded by a child process with limits of memory and time.

What a few bytes of a table mean is known only when they are decoded, and the libraries that do it can be stopped neither by an exception
nor by a signal's handler. What comes from the child is within the bounds of a record.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from star.errors import InputError
from star.limits import (
    RECORD_BYTES,
    RECORD_PARTS,
    TABLE_BATCH_ROWS,
    TABLE_EXPANSION,
    TABLE_MEMORY,
    TABLE_SECONDS,
)

CHILD = Path(__file__).with_name("table_child.py")
# No secrets among them.
PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "HF_HOME")
OUT_OF_MEMORY, UNREADABLE = 3, 4  # the child's
EXPANSION_FROM = 2**28  # bytes of all records; a table with less is read whatever its file's size
FAULTS = {
    "bytes": f"longer than {RECORD_BYTES // 2**20} MiB, so it is no row",
    "values": f"it has more than {RECORD_PARTS:,} values",
}


def read_table(path: Path) -> Iterator[Any]:
    """Yields the records of a file or folder; for one that cannot be read the ValueError that says why.

    Raises:
        InputError: it is no such table, or decoding it takes more memory or time than it may.
    """
    from pyarrow import ArrowException, ipc

    request = {
        "path": str(path.resolve()), "rows": TABLE_BATCH_ROWS, "bytes": RECORD_BYTES, "values": RECORD_PARTS,
        "memory": TABLE_MEMORY, "seconds": TABLE_SECONDS,
    }  # fmt: skip
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"HF_HUB_OFFLINE": "1"}
    # -P: what lies beside the child is not imported.
    command = [sys.executable, "-P", str(CHILD)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=environment, **pipes) as child:  # type: ignore[call-overload]
        try:
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
            yield from _records(ipc.open_stream(child.stdout), most=max(EXPANSION_FROM, TABLE_EXPANSION * _size(path)))
        except (ArrowException, OSError) as error:
            reason = _reason(child.wait(), child.stderr.read().decode(errors="replace")) or str(error)[:200]
            raise InputError(f"{path} cannot be read as {_format(path)}: {reason}") from error
        finally:
            # Who has seen enough does not read the rest.
            child.kill()


def _records(stream: Any, *, most: int) -> Iterator[Any]:
    size = 0
    while True:
        try:
            batch, said = stream.read_next_batch_with_custom_metadata()
        except StopIteration:
            return
        if said:
            yield ValueError(FAULTS[said[b"fault"].decode()])
            continue
        size += batch.nbytes
        if size > most:
            yield ValueError(
                f"the records have more than {TABLE_EXPANSION} times the file's bytes; what follows was not read"
            )
            return
        yield from _records_of(batch)


def _records_of(batch: Any) -> list:
    """Returns the records of a batch. One that cannot be read is the ValueError that says why."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:  # texts that are not UTF-8, dates beyond Python's
        if batch.num_rows == 1:
            return [ValueError(f"not readable: {str(error)[:200]}")]
    return [record for place in range(batch.num_rows) for record in _records_of(batch.slice(place, 1))]


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _format(path: Path) -> str:
    return "a saved data set" if path.is_dir() else "Parquet"


def _reason(status: int, said: str) -> str:
    """Why the child ended before its table."""
    if status == OUT_OF_MEMORY:
        return f"{TABLE_BATCH_ROWS} rows of it take more than {TABLE_MEMORY // 2**20} MiB to decode: write smaller pages and row groups"
    if status == -signal.SIGXCPU:
        return f"{TABLE_BATCH_ROWS} rows of it take more than {TABLE_SECONDS} s of processor time to decode"
    if status == UNREADABLE:
        return said.strip()
    return "the library that decodes it failed, so it is damaged" if status < 0 else said.strip()[-200:]
