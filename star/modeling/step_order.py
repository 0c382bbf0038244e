"""Orders the rows of a training so that its micro batches have little padding.

The rows are shuffled per epoch, and each optimiser step takes the next `batch_size` of them. Within a step the order is
free, because the gradients of its rows are added up. So the rows of a step are sorted by length before they are cut
into micro batches: the step is the same up to rounding, and each micro batch holds rows of similar length.

    lengths of the 4 rows of a step    900  200  800  300
    micro batches of 2, as shuffled    (900 200) (800 300)     padded to 900 + 900 + 800 + 800 = 3,400 tokens
    micro batches of 2, sorted         (200 300) (800 900)     padded to 300 + 300 + 900 + 900 = 2,400 tokens

Several ranks take the micro batches in turn, so the ranks of a round have micro batches of similar length too.

Where rows share their prompts, whole prompts are shuffled, and the rows of a prompt follow each other; the border of a step may part them.
For sorting, each row has the length of its prompt with all completions.
"""

from collections.abc import Iterator

import numpy as np
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler
from transformers import TrainerCallback


class SortedSteps(Sampler[int]):
    """The indices of an epoch in the order that accelerate shuffles them, those of each step sorted by length.

    Args:
        lengths: by which the rows are sorted, in tokens; equal for the rows of a prompt that they share.
        step_rows: rows per optimiser step, over all ranks.
        seed: of the shuffles; epoch e is shuffled with seed + e.
        starts: index of the first row of each prompt, ascending; None where every row has a prompt of its own.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        step_rows: int,
        seed: int,
        starts: np.ndarray | None = None,
    ) -> None:
        self.lengths, self.step_rows, self.starts = lengths, step_rows, starts
        self.shuffled = SeedableRandomSampler(range(len(lengths if starts is None else starts)), data_seed=seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch: by accelerate's loader, and by `TellEpoch` where that does not."""
        self.shuffled.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = np.fromiter(self.shuffled, np.int64)
        if self.starts is not None:
            order = _rows_of(order, self.starts, count=len(self.lengths))
        for start in range(0, len(order), self.step_rows):
            step = order[start : start + self.step_rows]
            yield from step[np.argsort(self.lengths[step], kind="stable")].tolist()


def _rows_of(prompts: np.ndarray, starts: np.ndarray, *, count: int) -> np.ndarray:
    """The rows of the prompts, prompt by prompt.

    Args:
        starts: index of the first row of each prompt, ascending.
        count: of all rows.
    """
    sizes = np.diff(starts, append=count)[prompts]
    firsts = starts[prompts]
    return np.arange(count) + np.repeat(firsts - (sizes.cumsum() - sizes), sizes)


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
