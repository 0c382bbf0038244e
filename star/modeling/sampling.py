"""Samples each rollout from its own random numbers.

The random numbers of a rollout come from its key (seed, step, row, sample). So what is sampled depends neither on the
rest of the batch nor on the number of processes, and a resumed training samples what the uninterrupted one would have
sampled.

B rows of a batch, T new tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedModel

from star.modeling.decoding import FollowsRows, decode

RolloutKey = tuple[int, ...]  # identifies a rollout: seed, step, row, sample


class SeededSampling(FollowsRows):
    """Draws one token per row at `temperature`, and masks all other tokens so that `generate` can only take it.

    The draw inverts the cumulative distribution: with probabilities 0.5, 0.3, 0.2 and the row's next uniform number 0.6
    the second token is drawn, because 0.5 <= 0.6 < 0.8.

    Args:
        excluded_ids: ids that are never drawn, such as rows of the head that are no token.
        moves_generator: whether torch's own generator moves on as if `torch.multinomial` had drawn the tokens. TRL
            shuffles the rollouts with it.
    """

    draws = True

    def __init__(
        self,
        keys: Sequence[RolloutKey],
        *,
        temperature: float,
        max_new_tokens: int,
        excluded_ids: Sequence[int] = (),
        moves_generator: bool = False,
    ) -> None:
        # Drawn by numpy on the CPU, whose streams are the same whatever the device.
        uniforms = [np.random.default_rng(key).random(max_new_tokens, dtype=np.float32) for key in keys]
        self.uniforms_TB = torch.from_numpy(np.stack(uniforms, axis=1))
        self.temperature, self.position = temperature, 0
        self.moved_rows = len(keys) if moves_generator else 0
        self.excluded_ids = torch.tensor(excluded_ids, dtype=torch.int64)

    def __call__(self, input_ids: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        """Returns [B, V] scores: 0 for each row's drawn token, minus infinity for all others."""
        if len(self.excluded_ids):
            scores_BV = scores_BV.index_fill(-1, self.excluded_ids.to(scores_BV.device), -torch.inf)
        if self.moved_rows:
            torch.empty(self.moved_rows, scores_BV.shape[-1], device=scores_BV.device).exponential_()
        cumulative_BV = (scores_BV.float() / self.temperature).softmax(-1).cumsum(-1)
        uniforms_B1 = self.uniforms_TB[self.position].to(scores_BV.device)[:, None]
        self.position += 1
        # Scaled by the last sum, which rounding keeps from being exactly 1.
        drawn_B1 = torch.searchsorted(cumulative_BV, uniforms_B1 * cumulative_BV[:, -1:], right=True)
        drawn_B1 = drawn_B1.clamp(max=scores_BV.shape[-1] - 1)
        return torch.full_like(scores_BV, -torch.inf).scatter_(-1, drawn_B1, 0.0)

    def keep_rows(self, rows_R: torch.Tensor) -> None:
        """Keeps the random numbers of these rows: the others have left the batch."""
        self.uniforms_TB = self.uniforms_TB[:, rows_R.cpu()]


@contextmanager
def use_sampling(model: PreTrainedModel, sampling: SeededSampling) -> Iterator[None]:
    """Context manager in which the model's `generate` draws its tokens with `sampling`."""
    causal_model: Any = model  # the type PreTrainedModel lacks `generate`, which every causal language model has
    # Set on the instance, over the class's method, so that deleting it restores the original.
    causal_model.generate = partial(
        causal_model.generate, logits_processor=LogitsProcessorList([sampling]), custom_generate=decode
    )
    try:
        yield
    finally:
        del causal_model.generate
