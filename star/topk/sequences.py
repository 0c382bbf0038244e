"""Reads the sequences that a rollout wrote, and names the files that lie beside a top-k store.

sequences.parquet   one row per sequence: id, row_id, prompt_ids, completion_ids, completion, reward. The text `completion`
                    begins with the opening that the prompt holds, where it holds one; `completion_ids` are what was
                    sampled.
tokenizer/          the tokenizer of the ids; written by extract-topk
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from star.modeling.generation import Sequence

SEQUENCES = "sequences.parquet"
TOKENIZER = "tokenizer"


class StoredSequences:
    """The sequences of a rollout by their place in the file.

    They stay in Arrow columns and become lists one at a time: as lists, all of them would take nine times the memory.
    """

    def __init__(self, table: pa.Table) -> None:
        self._prompts, self._completions = table["prompt_ids"], table["completion_ids"]

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Sequence:
        return Sequence(*(column[index].values.to_numpy().tolist() for column in (self._prompts, self._completions)))

    def __iter__(self) -> Iterator[Sequence]:
        return (self[index] for index in range(len(self)))


def read_sequences(folder: Path) -> tuple[list[str], StoredSequences]:
    """Reads the ids and the tokens of all sequences, in the order of the file."""
    # Without the texts, which no caller needs.
    table = pq.read_table(folder / SEQUENCES, columns=["id", "prompt_ids", "completion_ids"])
    return table["id"].to_pylist(), StoredSequences(table)
