"""How many steps a training has: epochs of sequences, and of prompts in whole rollouts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.config.training import SimRL, Training


@given(epochs=st.integers(1, 5), sequences=st.integers(1, 10_000), batch_size=st.integers(1, 256))
def test_an_epoch_reads_every_sequence(epochs: int, sequences: int, batch_size: int) -> None:
    training = Training(epochs=epochs, batch_size=batch_size, learning_rate=1e-3)
    steps = training.count_steps(sequences)
    assert steps % epochs == 0
    assert (steps // epochs - 1) * batch_size < sequences <= steps // epochs * batch_size


@given(epochs=st.floats(0.01, 3), prompts=st.integers(1, 2000), per_step=st.integers(1, 16), updates=st.integers(1, 8))
def test_an_epoch_of_prompts_has_whole_rollouts(epochs: float, prompts: int, per_step: int, updates: int) -> None:
    training = SimRL(epochs=epochs, prompts_per_step=per_step, updates_per_rollout=updates, save_steps=updates)
    steps = training.count_steps(prompts)
    assert steps >= updates and steps % updates == 0
    # Of one epoch, at most the last, incomplete rollout is left out; a started rollout is whole.
    assert steps * per_step <= epochs * prompts + training.prompts_per_rollout


@pytest.mark.parametrize("epochs", [float("inf"), float("nan"), 0, -1])
def test_epochs_are_a_positive_number(epochs: float) -> None:
    with pytest.raises(ValueError, match="epochs"):
        SimRL(epochs=epochs)


def test_epochs_count_as_they_are_written() -> None:
    assert (
        Training(epochs=0.1, batch_size=10, learning_rate=1e-3).count_steps(300) == 3
    )  # 0.1 * 30 is more than 3 in binary
    assert Training(steps=5, learning_rate=1e-3).count_steps(300) == 5
    # The official training: 128 prompts a rollout, 8 updates on them, 3 episodes.
    official = SimRL(epochs=3, prompts_per_step=16, updates_per_rollout=8, save_steps=24)
    assert (official.prompts_per_rollout, official.count_steps(128_000)) == (128, 24_000)
