"""Reads the sequences that a rollout wrote, and names the files that lie beside a top-k store.

sequences.parquet   written by rollout: one row per sequence, sorted by id: id, row_id, prompt_ids, completion_ids,
                    completion, reward. The text `completion` begins with the opening that the prompt holds, where it
                    holds one; `completion_ids` are what was sampled, up to `rollout.cut_at`. `reward` is null where the
                    row has no answer. `prompt_ids` is null where it is that of the row
                    above (star/topk/row_files.py).
sequences.arrow     written by extract-topk: the same columns of the sequences in the store, mapped into memory by
                    readers. Folders of older versions have sequences.parquet with `prompt_ids` in every row.
tokenizer/          the tokenizer of the ids; written by extract-topk
"""

from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from star.modeling.generation import Sequence
from star.topk.row_files import (
    PROMPT,
    Rows,
    RowWriter,
    one_chunk,
    read_groups,
    require_prompt,
    rows_with_prompt,
)

SEQUENCES = "sequences.parquet"
MAPPED_SEQUENCES = "sequences.arrow"
TOKENIZER = "tokenizer"
COMPLETION = "completion_ids"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("row_id", pa.string()),
        (PROMPT, pa.list_(pa.int32())),
        (COMPLETION, pa.list_(pa.int32())),
        ("completion", pa.string()),
        ("reward", pa.float32()),
    ]
)


class StoredSequences(AbstractSequence[Sequence]):
    """The sequences of a rollout by their place in the file.

    An `.arrow` file is mapped into memory, and a sequence is read from it when it is asked for. From `.parquet`, ids and
    tokens are in memory.
    """

    def __init__(self, file: Path) -> None:
        self._groups = [_columns(group) for group in _map_or_read(file)]
        self._starts = np.cumsum([0, *(len(ids) for ids, _, _ in self._groups)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Sequence:  # type: ignore[override]
        return Sequence(*(tokens.tolist() for tokens in self.arrays(index)))

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of prompt and completion as arrays, without making lists of them."""
        (_, prompts, completions), row = self._find(index)
        completion = completions[row]
        while not (prompt := prompts[row]).is_valid:
            row -= 1
        return prompt.values.to_numpy(), completion.values.to_numpy()

    def sequence_id(self, index: int) -> str:
        """The id of a sequence."""
        (ids, _, _), row = self._find(index)
        return ids[row].as_py()

    def completion_lengths(self) -> np.ndarray:
        """The number of completion tokens of every sequence."""
        lengths = [pc.list_value_length(completions).to_numpy() for _, _, completions in self._groups]
        return np.concatenate([np.zeros(0, np.int32), *lengths])

    def _find(self, index: int) -> tuple[tuple[pa.Array, pa.Array, pa.Array], int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._groups[number], int(index - self._starts[number])


class SequenceIds(AbstractSequence[str]):
    """The ids of stored sequences, read when they are asked for."""

    def __init__(self, sequences: StoredSequences) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self._sequences.sequence_id(index)


def read_sequences(folder: Path) -> tuple[SequenceIds, StoredSequences]:
    """Opens the ids and the tokens of all sequences, in the order of the file."""
    sequences = StoredSequences(sequences_file(folder))
    return SequenceIds(sequences), sequences


def sequences_file(folder: Path) -> Path:
    """The file of the sequences in the folder of a rollout or of a top-k store."""
    mapped = folder / MAPPED_SEQUENCES
    return mapped if mapped.exists() else folder / SEQUENCES


class Lengths(NamedTuple):
    """Tokens of every sequence S, and whether its prompt is another one than that of the sequence before."""

    prompts_S: np.ndarray
    completions_S: np.ndarray
    is_new_S: np.ndarray

    def by_prompt(self) -> tuple[np.ndarray, np.ndarray]:
        """The place of the first sequence of each prompt, and the prompt's tokens with those of all of its completions.

        The last token of a completion predicts nothing, and does not count.
        """
        starts = np.flatnonzero(self.is_new_S)
        if not len(starts):
            return starts, np.zeros(0, np.int64)
        return starts, self.prompts_S[starts] + np.add.reduceat(np.maximum(self.completions_S - 1, 0), starts)


def read_lengths(folder: Path) -> Lengths:
    """Reads the number of tokens of every sequence, group by group."""
    prompts_S, completions_S, is_new_S = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for group in read_groups(sequences_file(folder), columns=["id", PROMPT, COMPLETION]):
        if not len(group):
            continue
        _, prompts, completions = _columns(group)
        lengths = pc.fill_null(pc.list_value_length(prompts), 0).to_numpy()
        prompts_S.append(lengths[rows_with_prompt(prompts)].astype(np.int64))
        completions_S.append(pc.list_value_length(completions).to_numpy().astype(np.int64))
        # A prompt is null where it is that of the row above; the first of a group is always written.
        is_new_S.append(prompts.is_valid().to_numpy(zero_copy_only=False))
    return Lengths(np.concatenate(prompts_S), np.concatenate(completions_S), np.concatenate(is_new_S))


def copy_sequences(folder: Path, out: Path, *, taken: np.ndarray) -> None:
    """Copies sequences of a rollout into a top-k store's folder, in their order.

    Args:
        taken: per sequence of the rollout, whether it is copied.
    """
    start = 0
    with RowWriter(out / MAPPED_SEQUENCES, SCHEMA) as writer:
        for group in read_groups(sequences_file(folder)):
            rows = np.flatnonzero(taken[start : start + len(group)])
            start += len(group)
            if len(rows):
                writer.write(Rows(group).take(rows))


def _map_or_read(file: Path) -> Iterator[pa.Table]:
    if file.suffix == ".parquet":
        # Without the texts, which no caller needs.
        yield from read_groups(file, columns=["id", PROMPT, COMPLETION])
        return
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    for number in range(reader.num_record_batches):
        yield pa.Table.from_batches([reader.get_batch(number)])


def _columns(group: pa.Table) -> tuple[pa.Array, pa.Array, pa.Array]:
    ids, prompts, completions = (one_chunk(group[name]) for name in ("id", PROMPT, COMPLETION))
    if len(prompts):
        require_prompt(prompts)
    return ids, prompts, completions
