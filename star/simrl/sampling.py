"""Sampling whose draws belong to each rollout alone.

A rollout's random numbers come from (seed, step, row, sample). What is sampled then depends neither on what else is
in the batch nor on how many processes share the work, and a resumed training samples what the uninterrupted one would have.

B rows of a batch, T new tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

Key = tuple[int, ...]  # what a rollout is: seed, step, row, sample


class SeededSampling(LogitsProcessor):
    """Leaves of each row's scores only the token that the row's own next random number draws at `temperature`."""

    def __init__(self, keys: Sequence[Key], *, temperature: float, max_new_tokens: int) -> None:
        uniforms = [np.random.default_rng(key).random(max_new_tokens, dtype=np.float32) for key in keys]
        self.uniforms_TB = torch.from_numpy(np.stack(uniforms, axis=1))
        self.temperature, self.position = temperature, 0

    def __call__(self, input_ids: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        cumulative_BV = (scores_BV.float() / self.temperature).softmax(-1).cumsum(-1)
        uniforms_B1 = self.uniforms_TB[self.position].to(scores_BV.device)[:, None]
        self.position += 1
        drawn_B1 = torch.searchsorted(cumulative_BV, uniforms_B1 * cumulative_BV[:, -1:], right=True)
        drawn_B1 = drawn_B1.clamp(max=scores_BV.shape[-1] - 1)
        return torch.full_like(scores_BV, -torch.inf).scatter_(-1, drawn_B1, 0.0)


@contextmanager
def drawn_by(model, sampling: SeededSampling) -> Iterator[None]:
    """Has the model's `generate` draw its tokens with `sampling`."""
    model.generate = partial(model.generate, logits_processor=LogitsProcessorList([sampling]))
    try:
        yield
    finally:
        del model.generate
