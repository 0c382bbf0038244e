"""Measures the entropy of a model's next-token distributions while it samples, so that no second pass over its answers is needed."""

import torch
from torch import Tensor

from star.modeling.decoding import FollowsRows


class EntropyMeter(FollowsRows):
    """Keeps the entropy of every token's distribution before the temperature. It changes no score.

    B rows of the batch at its start, R rows that are still decoded, V vocabulary.
    """

    def __init__(self) -> None:
        self._row_R: Tensor | None = None  # where the rows that are still decoded lie in the batch
        self._steps: list[tuple[Tensor, Tensor]] = []  # of each token: the rows, and their entropies

    def __call__(self, input_ids: Tensor, scores_RV: Tensor) -> Tensor:
        """Called by `generate` before each token."""
        if self._row_R is None:
            self._row_R = torch.arange(len(scores_RV))
        # In float32, because bf16 has too few digits for a sum over the vocabulary.
        entropy_R = torch.special.entr(scores_RV.float().softmax(-1)).sum(-1)
        self._steps.append((self._row_R, entropy_R.cpu()))
        return scores_RV

    def keep_rows(self, rows_R: Tensor) -> None:
        """Goes on with these rows only."""
        assert self._row_R is not None  # noqa: S101 - rows leave after a token
        self._row_R = self._row_R[rows_R.cpu()]

    def means(self, lengths: list[int]) -> list[float]:
        """The entropy in nats of each row, averaged over its first tokens.

        Args:
            lengths: the number of tokens of each row, its end token included [B].
        """
        length_B, total_B = torch.tensor(lengths), torch.zeros(len(lengths))
        for number, (row_R, entropy_R) in enumerate(self._steps):
            total_B[row_R] += entropy_R.masked_fill(number >= length_B[row_R], 0.0)
        return (total_B / length_B).tolist()
