"""Tests that rows of similar length come together, and that no optimiser step gets other rows by it."""

import numpy as np
import pytest
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st

from star.modeling.step_order import SortedSteps


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    step_rows=st.integers(1, 12),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 3),
)
def test_every_step_has_the_rows_of_the_shuffle_in_order_of_length(
    lengths: list[int], step_rows: int, seed: int, epoch: int
) -> None:
    shuffled, ordered = (
        SeedableRandomSampler(range(len(lengths)), data_seed=seed),
        SortedSteps(np.array(lengths), step_rows=step_rows, seed=seed),
    )
    for sampler in (shuffled, ordered):
        sampler.set_epoch(epoch)
    before, after = list(shuffled), list(ordered)
    for start in range(0, len(lengths), step_rows):
        step = after[start : start + step_rows]
        assert sorted(step) == sorted(before[start : start + step_rows])
        assert [lengths[row] for row in step] == sorted(lengths[row] for row in step)


def test_padding_falls() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 0.4, 512).astype(int)

    def padded(order: list[int]) -> float:
        batches = lengths[np.array(order)].reshape(-1, 8)
        return batches.max(1).sum() * 8 / lengths.sum()

    shuffled = padded(list(SeedableRandomSampler(range(512), data_seed=7)))
    assert shuffled > 1.5 and padded(list(SortedSteps(lengths, step_rows=64, seed=7))) == pytest.approx(1.1, abs=0.08)
