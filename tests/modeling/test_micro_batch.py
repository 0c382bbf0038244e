"""A task whose training step did not fit halves the micro batch and doubles the accumulation: the batch stays."""

from pathlib import Path

import pytest

from star.config.training import HALF_MICRO_BATCH, Training
from star.modeling.training import common_arguments


@pytest.mark.parametrize(
    ("micro_batch_size", "ranks", "halved"),
    [(None, 1, 12), (8, 1, 4), (8, 3, 4), (3, 1, 1), (12, 4, 3), (6, 4, 3), (1, 1, 1)],
)
def test_a_halved_micro_batch_fills_the_same_batch(
    micro_batch_size: int | None, ranks: int, halved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Training(steps=1, batch_size=24, micro_batch_size=micro_batch_size, learning_rate=1e-3)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv(HALF_MICRO_BATCH, "1")
    arguments = common_arguments(settings, folder=tmp_path, seed=7, batch_size=24)
    assert arguments["per_device_train_batch_size"] == halved
    assert halved * arguments["gradient_accumulation_steps"] * ranks == 24
