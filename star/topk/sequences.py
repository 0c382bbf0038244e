"""Reads the sequences that lie beside a top-k store."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from star.modeling.generation import Sequence

SEQUENCES = "sequences.parquet"
TOKENIZER = "tokenizer"


class StoredSequences:
    """A rollout's sequences, made from their columns one at a time: as lists all of them would take nine times the room."""

    def __init__(self, table: pa.Table) -> None:
        self._prompts, self._completions = table["prompt_ids"], table["completion_ids"]

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Sequence:
        return Sequence(*(column[index].values.to_numpy().tolist() for column in (self._prompts, self._completions)))


def read_sequences(folder: Path) -> tuple[list[str], StoredSequences]:
    """The ids and the tokens of a rollout's sequences, in the order of the file."""
    table = pq.read_table(folder / SEQUENCES, columns=["id", "prompt_ids", "completion_ids"])
    return table["id"].to_pylist(), StoredSequences(table)
