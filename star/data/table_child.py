"""Reads a Parquet file or a folder of `save_to_disk` under limits of memory and time: the child process of tables.py.

A kilobyte of Parquet can mean terabytes, and the libraries that decode it cannot be stopped from inside their process. The child is started
as a file and imports nothing of STAR. Its standard output is an Arrow stream of small batches; an empty one stands for a row that is over a
bound, and its metadata says which.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import types

OUT_OF_MEMORY, UNREADABLE = 3, 4


def main() -> None:
    """Streams the table that the request on standard input names."""
    request = json.load(sys.stdin)
    # What libraries say there is not for the reader, and could fill the pipe.
    messages = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    path = Path(request["path"])
    if path.is_dir():
        import datasets  # noqa: F401 - before the limits, because it needs room of its own
    pa.set_memory_pool(pa.system_memory_pool())  # the others reserve more than they use
    _limit_memory(request["memory"])
    try:
        _stream(path, request)
    except MemoryError:  # Arrow's is one
        os._exit(OUT_OF_MEMORY)  # an ordinary exit could need memory
    except Exception as error:  # whatever the libraries make of a damaged file
        print((str(error) or type(error).__name__)[:300], file=messages)
        messages.flush()
        os._exit(UNREADABLE)


def _limit_memory(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":  # elsewhere memory cannot be limited
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + size, used + size))


def _limit_time(seconds: int) -> None:
    """Gives the next batch its own processor time."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    end = int(spent.ru_utime + spent.ru_stime) + seconds + 1
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _stream(path: Path, request: dict[str, Any]) -> None:
    _limit_time(request["seconds"])
    read = _saved_set(path, request["rows"]) if path.is_dir() else _parquet(path, request["rows"])
    schema = _plain(next(read), "")
    stream = pa.ipc.new_stream(sys.stdout.buffer, schema)
    for batch in read:
        for part in _bounded(batch.cast(schema), request):
            if isinstance(part, str):
                stream.write_batch(pa.RecordBatch.from_pylist([], schema=schema), custom_metadata={"fault": part})
            else:
                stream.write_batch(part)
        sys.stdout.buffer.flush()
        _limit_time(request["seconds"])
    # Only here: the mark of its end says that nothing is missing.
    stream.close()
    sys.stdout.buffer.flush()


def _parquet(path: Path, rows: int) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    # Buffered, because otherwise whole columns of a row group are read.
    with ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        yield file.schema_arrow
        yield from file.iter_batches(batch_size=rows, use_threads=False)


def _saved_set(path: Path, rows: int) -> Iterator[Any]:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(path))
    parts = list(loaded.values()) if isinstance(loaded, DatasetDict) else [loaded]
    yield parts[0].with_format("arrow")[:0].schema
    for part in parts:
        for table in part.with_format("arrow").iter(batch_size=rows):
            yield from table.to_batches()


def _plain(kind: Any, where: str) -> Any:
    """Returns a schema or a type without dictionaries: an entry of one may stand for any number of texts.

    Raises:
        ValueError: it is a type that is not read.
    """
    if isinstance(kind, pa.Schema):
        return pa.schema([field.with_type(_plain(field.type, field.name)) for field in kind])
    if where.count(".") > 200:
        raise ValueError(f"column {where[:80]!r} nests too deeply")
    if types.is_dictionary(kind):
        return _plain(kind.value_type, where)
    if types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type, f"{where}.{field.name}")) for field in kind])
    if types.is_map(kind):
        return pa.map_(kind.key_type, _plain(kind.item_type, f"{where}.item"))
    if types.is_nested(kind):
        for make, has in ((pa.list_, types.is_list), (pa.large_list, types.is_large_list)):
            if has(kind):
                return make(kind.value_field.with_type(_plain(kind.value_type, f"{where}.item")))
        if types.is_fixed_size_list(kind):
            return pa.list_(kind.value_field.with_type(_plain(kind.value_type, f"{where}.item")), kind.list_size)
    if types.is_nested(kind) or types.is_run_end_encoded(kind):
        raise ValueError(f"column {where[:80]!r} has the type {str(kind)[:80]}, which is not read")
    return kind


def _bounded(batch: pa.RecordBatch, request: dict[str, Any]) -> Iterator[pa.RecordBatch | str]:
    """Yields the batch in parts that are within the bounds, and the bound for a row that is over one."""
    parts = sum(map(_values, batch.columns))
    if batch.nbytes <= request["bytes"] and parts <= request["values"]:
        yield batch
    elif batch.num_rows > 1:
        for place in range(batch.num_rows):
            yield from _bounded(batch.slice(place, 1), request)
    else:
        yield "bytes" if batch.nbytes > request["bytes"] else "values"


def _values(array: Any) -> int:
    """The number of values of an array, with those inside lists and objects."""
    if types.is_struct(array.type):
        return len(array) + sum(map(_values, array.flatten()))
    return len(array) + (_values(array.flatten()) if types.is_nested(array.type) else 0)


if __name__ == "__main__":
    main()
