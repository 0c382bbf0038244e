"""Sorts and merges rows by their first column, an id, in memory that does not grow with the rows.

    tables ─► runs of RUN_BYTES, each sorted ─► merged, FAN_IN files at a time ─► one file

A merge has one group of each file in memory. All rows up to the smallest last id among these groups can be written,
because no file has a smaller id to come. So in each round at least one group is used up.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from star.topk.row_files import ROWS_PER_GROUP, Rows, RowWriter, read_groups

RUN_BYTES = 96 * 2**20
FAN_IN = 32


def sort_rows(
    tables: Iterable[pa.Table], file: Path, schema: pa.Schema, *, scratch: Path, rows_per_group: int = ROWS_PER_GROUP
) -> None:
    """Writes the rows of all tables to `file`, sorted by their first column. The ids are unique.

    Args:
        tables: each begins with a row that has its prompt.
        scratch: folder for sorted runs, which are removed again.
    """
    key = schema.names[0]
    runs: list[Path] = []
    for rows in _gather(tables):
        run = scratch / f"run-{len(runs):05d}.parquet"
        with RowWriter(run, schema, rows_per_group=rows_per_group) as writer:
            _write_sorted(rows, writer, key=key)
        runs.append(run)
    # A single run is the sorted file already.
    if len(runs) == 1:
        runs[0].replace(file)
        return
    merge_sorted(runs, file, schema, scratch=scratch, rows_per_group=rows_per_group)
    for run in runs:
        run.unlink()


def merge_sorted(
    files: list[Path], file: Path, schema: pa.Schema, *, scratch: Path, rows_per_group: int = ROWS_PER_GROUP
) -> None:
    """Merges files whose rows are sorted by their first column into one such file.

    Args:
        scratch: folder for the results of partial merges of more than FAN_IN files, which are removed again.
    """
    names = (scratch / f"merged-{number:05d}{file.suffix}" for number in count())
    partial: list[Path] = []
    # The last pass writes `file` itself.
    while len(files) > FAN_IN:
        groups = [files[start : start + FAN_IN] for start in range(0, len(files), FAN_IN)]
        made = [next(names) for _ in groups]
        for target, group in zip(made, groups, strict=True):
            _merge(group, target, schema, rows_per_group=rows_per_group)
        for path in partial:
            path.unlink()
        files = partial = made
    _merge(files, file, schema, rows_per_group=rows_per_group)
    for path in partial:
        path.unlink()


def _gather(tables: Iterable[pa.Table]) -> Iterator[Rows]:
    """Joins tables until they have RUN_BYTES."""
    gathered: list[pa.Table] = []
    size = 0
    for table in tables:
        gathered.append(table)
        size += table.nbytes
        if size >= RUN_BYTES:
            yield Rows(*gathered)
            gathered, size = [], 0
    if gathered:
        yield Rows(*gathered)


class _Input:
    """One of the sorted files of a merge: its current group, and how many rows of it are merged."""

    def __init__(self, file: Path, *, key: str) -> None:
        self._groups = read_groups(file)
        self._key = key
        self._ids: list[str] = []
        self._merged = 0

    def has_rows(self) -> bool:
        """Whether rows are left. Reads the next group when the current one is used up."""
        while self._merged == len(self._ids):
            group = next(self._groups, None)
            if group is None:
                return False
            self._rows = Rows(group)
            self._ids, self._merged = group[self._key].to_pylist(), 0
        return True

    @property
    def last_id(self) -> str:
        return self._ids[-1]

    def take_until(self, last_id: str) -> pa.Table:
        """The rows of the current group up to this id, as a group."""
        start = self._merged
        self._merged = bisect_right(self._ids, last_id, lo=start)
        return self._rows.slice(start, self._merged)


def _merge(files: list[Path], file: Path, schema: pa.Schema, *, rows_per_group: int) -> None:
    key = schema.names[0]
    inputs = [_Input(path, key=key) for path in files]
    with RowWriter(file, schema, rows_per_group=rows_per_group) as writer:
        while inputs := [source for source in inputs if source.has_rows()]:
            last_id = min(source.last_id for source in inputs)
            _write_sorted(Rows(*(source.take_until(last_id) for source in inputs)), writer, key=key)


def _write_sorted(rows: Rows, writer: RowWriter, *, key: str) -> None:
    order = pc.sort_indices(rows.table[key]).to_numpy()
    # In slices, because `take` repeats the prompt for every row.
    for start in range(0, len(order), ROWS_PER_GROUP):
        writer.write(rows.take(order[start : start + ROWS_PER_GROUP]))
