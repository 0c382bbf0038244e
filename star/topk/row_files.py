"""Writes and reads tables of any number of rows, in groups of a fixed number of rows, so that memory holds groups only.

    with RowWriter(file, schema) as writer:
        writer.write(table)                    # any number of rows; the writer cuts them into groups
    for group in read_groups(file): ...        # pa.Table

`.parquet` is compressed. `.arrow` is not, so a reader maps it into memory and reads any row without the others.

A column `prompt_ids` has the tokens of a prompt once for all samples of it that follow each other in a group:

    id      row_id   prompt_ids     in memory, from `Rows.take`
    a#0     a        [5, 6, 7]      [5, 6, 7]
    a#1     a        null           [5, 6, 7]
    b#0     b        [8, 9]         [8, 9]

The first row of every group has its prompt, so a group is read without the groups before it. No list in a group comes
near the 2^31 values that Arrow's 32-bit offsets allow, whatever the file has in all.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from star.errors import InputError

ROWS_PER_GROUP = 1024
PROMPT = "prompt_ids"


class RowWriter:
    """Writes rows in the order in which they come. As a context manager it closes the file.

    The groups depend on the rows alone, and not on how they were divided over the calls of `write`.

    Args:
        file: `.parquet` or `.arrow`; replaced when it exists.
        rows_per_group: only the last group of the file has fewer.
    """

    def __init__(self, file: Path, schema: pa.Schema, *, rows_per_group: int = ROWS_PER_GROUP) -> None:
        self._schema, self._rows_per_group = schema, rows_per_group
        self._file = pa.OSFile(str(file), "wb")
        is_parquet = file.suffix == ".parquet"
        self._writer = pq.ParquetWriter(self._file, schema) if is_parquet else pa.ipc.new_file(self._file, schema)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        # Closed here: on a network's file system a full disk may show only then.
        with self._file:
            try:
                if failure is None and self._pending_rows:
                    self._write_groups(self._pending_rows)
            finally:
                self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Adds rows, each with its prompt."""
        self._pending.append(table.select(self._schema.names).cast(self._schema))
        self._pending_rows += len(table)
        if self._pending_rows >= self._rows_per_group:
            self._write_groups(self._pending_rows - self._pending_rows % self._rows_per_group)

    def _write_groups(self, rows: int) -> None:
        table = pa.concat_tables(self._pending).combine_chunks()
        for start in range(0, rows, self._rows_per_group):
            # A copy and not a slice: the bytes of a file must not depend on what lay beside its rows in memory.
            group = table.take(pa.array(range(start, min(start + self._rows_per_group, rows))))
            self._writer.write_table(drop_repeated_prompts(group))
        self._pending = [table.slice(rows)]
        self._pending_rows -= rows


def read_groups(file: Path, *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Reads the groups of a file, one at a time."""
    if file.suffix == ".parquet":
        # Not read ahead: that would keep the groups to come in memory.
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            for number in range(parquet.num_row_groups):
                yield parquet.read_row_group(number, columns=columns)
    else:
        with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                group = pa.Table.from_batches([reader.get_batch(number)])
                yield group.select(columns) if columns else group


class Rows:
    """The rows of one or more groups.

    Raises:
        InputError: the first row has no prompt.
    """

    def __init__(self, *groups: pa.Table) -> None:
        self.table = pa.concat_tables(groups).combine_chunks()
        self._place = self.table.column_names.index(PROMPT) if PROMPT in self.table.column_names else None
        if self._place is not None and len(self.table):
            self._prompts = one_chunk(self.table[PROMPT])
            self._prompt_rows = rows_with_prompt(self._prompts)

    def __len__(self) -> int:
        return len(self.table)

    def slice(self, start: int, stop: int) -> pa.Table:
        """The rows from `start` to before `stop`, as a group: only the first row is sure to have its prompt."""
        table = self.table.slice(start, stop - start)
        if self._place is None or start == stop:
            return table
        first = self._prompts.slice(self._prompt_rows[start], 1)
        prompts = pa.chunked_array([first, self._prompts.slice(start + 1, stop - start - 1)])
        return table.set_column(self._place, self.table.schema.field(PROMPT), prompts)

    def take(self, rows: np.ndarray) -> pa.Table:
        """The rows with these indices, in their order, each with its prompt."""
        indices = pa.array(rows, pa.int64())
        if self._place is None or not len(self.table):
            return self.table.take(indices)
        others = self.table.remove_column(self._place).take(indices)
        prompts = self._prompts.take(pa.array(self._prompt_rows[rows], pa.int64()))
        return others.add_column(self._place, self.table.schema.field(PROMPT), prompts)


def rows_with_prompt(prompts: pa.Array) -> np.ndarray:
    """For each row of a group the index of the row that has its prompt: itself, or the nearest above with one."""
    require_prompt(prompts)
    has_prompt = prompts.is_valid().to_numpy(zero_copy_only=False)
    return np.maximum.accumulate(np.where(has_prompt, np.arange(len(prompts)), 0))


def require_prompt(prompts: pa.Array) -> None:
    """Raises InputError if the first row of a group has no prompt."""
    if not prompts[0].is_valid:
        raise InputError("the first sequence of a group has no prompt: the file is damaged, make its folder again")


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, without a copy where it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def drop_repeated_prompts(table: pa.Table) -> pa.Table:
    """Replaces a prompt by null where the row above is another sample of the same row."""
    if PROMPT not in table.column_names or not len(table):
        return table
    row_ids = one_chunk(table["row_id"])
    repeated = np.zeros(len(table), bool)
    repeated[1:] = pc.equal(row_ids[1:], row_ids[:-1]).to_numpy(zero_copy_only=False)
    prompts = one_chunk(table[PROMPT]).take(pa.array(np.arange(len(table)), mask=repeated))
    return table.set_column(table.column_names.index(PROMPT), table.schema.field(PROMPT), prompts)
