"""Orders the rows of a training so that its micro batches have little padding.

The rows are shuffled per epoch, and each optimiser step takes the next `batch_size` of them. Within a step the order is
free, because the gradients of its rows are added up. So the rows of a step are sorted by length before they are cut
into micro batches: the step is the same up to rounding, and each micro batch holds rows of similar length.

    lengths of the 4 rows of a step    900  200  800  300
    micro batches of 2, as shuffled    (900 200) (800 300)     padded to 900 + 900 + 800 + 800 = 3,400 tokens
    micro batches of 2, sorted         (200 300) (800 900)     padded to 300 + 300 + 900 + 900 = 2,400 tokens

Several ranks take the micro batches in turn, so the ranks of a round have micro batches of similar length too.

Where rows share their prompts, whole prompts are shuffled, each with its rows behind one another. The border of a step may part the rows
of a prompt. Each counts with the length that they have together.
"""

from collections.abc import Iterator

import numpy as np
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler
from transformers import TrainerCallback


class SortedSteps(Sampler[int]):
    """The indices of an epoch in the order that accelerate shuffles them, those of each step sorted by length.

    Args:
        lengths: of all rows, in tokens; equal for rows that stay together.
        step_rows: rows per optimiser step, over all ranks.
        seed: of the shuffles; epoch e is shuffled with seed + e.
        starts: the first of each rows that stay together, rising; by default every row is alone.
    """

    def __init__(self, lengths: np.ndarray, *, step_rows: int, seed: int, starts: np.ndarray | None = None) -> None:
        self.lengths, self.step_rows = lengths, step_rows
        self.together = None if starts is None else np.split(np.arange(len(lengths)), starts[1:])
        self.shuffled = SeedableRandomSampler(range(len(self.together or lengths)), data_seed=seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch: by accelerate's loader, and by `TellEpoch` where that does not."""
        self.shuffled.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = np.fromiter(self.shuffled, np.int64)
        if self.together:
            order = np.concatenate([self.together[place] for place in order])
        for start in range(0, len(order), self.step_rows):
            step = order[start : start + self.step_rows]
            yield from step[np.argsort(self.lengths[step], kind="stable")].tolist()


class TellEpoch(TrainerCallback):
    """Tells a sampler which epoch begins.

    Of several ranks that resume within an epoch, accelerate's loaders do not: they skip batches of a wrapper that hides
    the sampler, and the rest of the epoch would have the order of the first one.
    """

    def __init__(self, sampler: SortedSteps) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Sets the sampler's epoch."""
        self.sampler.set_epoch(int(state.epoch or 0))  # within an epoch it is a fraction
