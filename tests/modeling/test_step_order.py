"""Tests that rows of similar length come together, and that no optimiser step gets other rows by it."""

from itertools import groupby

import numpy as np
import pytest
from accelerate.data_loader import DataLoaderShard, SeedableRandomSampler, prepare_data_loader, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import TrainerControl, TrainerState

from star.modeling.step_order import SortedSteps, TellEpoch


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


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    step_rows=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_rows_of_a_prompt_are_parted_by_the_border_of_a_step_only(sizes: list[int], step_rows: int, seed: int) -> None:
    starts = np.cumsum([0, *sizes[:-1]])
    prompt_of = np.repeat(np.arange(len(sizes)), sizes)
    lengths = np.array(sizes)[prompt_of]
    order = list(SortedSteps(lengths, step_rows=step_rows, seed=seed, starts=starts))
    assert sorted(order) == list(range(len(prompt_of)))
    steps_of: dict[int, list[int]] = {}
    for number, start in enumerate(range(0, len(order), step_rows)):
        prompts = prompt_of[order[start : start + step_rows]].tolist()
        assert len([prompt for prompt, _ in groupby(prompts)]) == len(set(prompts))
        for prompt in set(prompts):
            steps_of.setdefault(prompt, []).append(number)
    for prompt, steps in steps_of.items():
        assert steps == list(range(steps[0], steps[-1] + 1))
        assert len(steps) <= max(0, sizes[prompt] - 2) // step_rows + 2


def test_padding_falls() -> None:
    lengths = np.random.default_rng(0).lognormal(6, 0.4, 512).astype(int)

    def padded(order: list[int]) -> float:
        batches = lengths[np.array(order)].reshape(-1, 8)
        return batches.max(1).sum() * 8 / lengths.sum()

    shuffled = padded(list(SeedableRandomSampler(range(512), data_seed=7)))
    assert shuffled > 1.5 and padded(list(SortedSteps(lengths, step_rows=64, seed=7))) == pytest.approx(1.1, abs=0.08)


def test_a_rank_of_two_that_resumes_within_an_epoch_goes_on_with_its_order() -> None:
    def loader_of_rank() -> tuple[SortedSteps, DataLoaderShard]:
        sampler = SortedSteps(np.arange(24), step_rows=8, seed=3)
        loader = DataLoader(list(range(24)), batch_size=2, sampler=sampler)
        return sampler, prepare_data_loader(loader, num_processes=2, process_index=1, put_on_device=False)

    _, loader = loader_of_rank()
    loader.set_epoch(1)
    whole = [rows.tolist() for rows in loader]
    sampler, loader = loader_of_rank()
    rest = skip_first_batches(loader, 2)
    TellEpoch(sampler).on_epoch_begin(None, TrainerState(epoch=1 + 2 / 6), TrainerControl())
    rest.set_epoch(1)
    assert [rows.tolist() for rows in rest] == whole[2:]
