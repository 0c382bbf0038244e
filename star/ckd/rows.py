"""Reads the rows of a distillation: the sequences of a rollout, and the teacher's top-k for them in a thread.

A batch is made in two parts. Its tokens are there at once, because Trainer counts the labels of a whole step first. The
teacher's rows are decoded by one thread, in the order of the batches, and are waited for where the loss needs them.
accelerate's loader fetches each batch one before it is used, so a batch is decoded while the step before it runs.

A thread and not worker processes: decoding is numpy, which releases the GIL, and a process would cost a copy of every
batch, shared memory (64 MiB in a container by default) and a start-up of its own on systems that do not fork.

Shapes: T completion tokens of a batch, K teacher ids per token.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from star.ckd.objectives import draw_shares
from star.errors import InputError
from star.modeling.completion_trainer import PACKED
from star.modeling.prompt_groups import pack_groups
from star.modeling.training import IGNORE_INDEX, collate_completions
from star.topk.sequences import read_lengths, read_sequences
from star.topk.store import TopKStore

TEACHER_ROWS = "teacher_rows"  # key of a batch: the Future of what `DistillationRows.read_teacher` returns


class DistillationRows(Dataset):
    """A rollout's sequences, joined with the teacher's top-k by sequence id.

    Args:
        folder: the top-k store with its sequences.
        draw_seed: for RSKD: replaces the teacher's probabilities by shares that are drawn from them with this seed.
        keep_prompts_together: whether the sequences of a prompt stay together when the rows are shuffled.

    Attributes:
        lengths: tokens by which sequences are sorted: their own, or those of the prompt with all of its completions where these stay
            together.
        starts: index of the first sequence of each prompt where they stay together, else None. In stores of older versions, which have the
            prompt in every row, each sequence counts as the first.
    """

    def __init__(self, folder: Path, *, draw_seed: int | None = None, keep_prompts_together: bool = False) -> None:
        self.ids, self.sequences = read_sequences(folder)
        self.store = TopKStore(folder)
        self.folder, self.draw_seed = folder, draw_seed
        lengths = read_lengths(folder)
        self.lengths, self.starts = lengths.prompts_S + lengths.completions_S, None
        if keep_prompts_together:
            self.starts, tokens = lengths.by_prompt()
            self.lengths = np.repeat(tokens, np.diff(self.starts, append=len(self.lengths)))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The tokens of one sequence, the labels of its completion, and its index, by which the teacher is read."""
        prompt_ids, completion_ids = self.sequences.arrays(index)
        return {
            "index": index,
            "input_ids": np.concatenate([prompt_ids, completion_ids]),
            "labels": np.concatenate([np.full_like(prompt_ids, IGNORE_INDEX), completion_ids]),
        }

    def read_teacher(self, indices: Sequence[int], completion_lengths: Sequence[int]) -> dict[str, Tensor]:
        """Reads the teacher's rows for the completions of some sequences, one after the other.

        Args:
            completion_lengths: the number of completion tokens of each sequence.

        Returns:
            teacher_ids [T, K] as int32 and teacher_logprobs [T, K] as float32.

        Raises:
            InputError: the store does not have a sequence, or it is damaged or has another number of tokens.
        """
        ids = [self.ids[index] for index in indices]
        teacher_ids_TK, teacher_logprobs_TK, tokens = self.store.read(ids)
        # One stored row per token, or later tokens would be trained towards their neighbours' distributions.
        for sequence_id, stored, wanted in zip(ids, tokens, completion_lengths, strict=True):
            if stored != wanted:
                raise InputError(
                    f"{self.folder} holds {stored} tokens for sequence {sequence_id!r}, whose completion has {wanted}: "
                    "extract the top-k of these rollouts again"
                )
        if self.draw_seed is not None:
            for sequence_id, logprobs_TK in zip(
                ids, np.split(teacher_logprobs_TK, np.cumsum(tokens)[:-1]), strict=True
            ):
                logprobs_TK[:] = draw_shares(logprobs_TK, sequence_id=sequence_id, seed=self.draw_seed)
        return {
            "teacher_ids": torch.from_numpy(teacher_ids_TK),
            "teacher_logprobs": torch.from_numpy(teacher_logprobs_TK),
        }


class BatchCollator:
    """Makes batches of the rows of `rows`, and lets a thread read the teacher's part of each.

    Args:
        packs: whether neighbours with equal prompts share them, in batches that have any.
    """

    def __init__(self, rows: DistillationRows, *, pad_id: int, packs: bool = False) -> None:
        self.rows, self.pad_id, self.packs = rows, pad_id, packs
        # One thread: the store is read by one thread at a time. It starts with the first batch, and ends with the
        # collator or the process; an exit waits for the batches already asked for, which takes milliseconds.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="top-k reader")

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Makes a batch: what `collate_completions` makes, or prompts that are shared; and TEACHER_ROWS."""
        lengths = [int((row["labels"] != IGNORE_INDEX).sum()) for row in rows]
        batch = _packed(rows, lengths) if self.packs else None
        batch = batch or collate_completions(rows, pad_id=self.pad_id)
        reading = self._reader.submit(self.rows.read_teacher, [row["index"] for row in rows], lengths)
        return {**batch, TEACHER_ROWS: reading}


def _packed(rows: list[dict[str, Any]], completion_lengths: list[int]) -> dict[str, Any] | None:
    """A batch whose prompts are shared: PACKED, and the ids and labels that Trainer counts. None if no neighbours have equal prompts."""
    parts = [
        np.split(row["input_ids"], [len(row["input_ids"]) - count])
        for row, count in zip(rows, completion_lengths, strict=True)
    ]
    prompts, completions = ([ids.tolist() for ids in column] for column in zip(*parts, strict=True))
    if not any(before == after for before, after in pairwise(prompts)):
        return None
    packed = pack_groups(prompts, completions, device=torch.device("cpu"))
    # Trainer counts labels from the second on, because those of a language model are shifted.
    labels = torch.cat([torch.tensor([IGNORE_INDEX]), packed.targets_N])[None]
    return {"input_ids": packed.input_ids_GL, "labels": labels, PACKED: packed}
