"""A task whose training step did not fit halves the micro batch and doubles the accumulation: the batch stays."""

from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from transformers import Trainer

from star.config.experiment import Config
from star.config.training import HALF_MICRO_BATCH, Training
from star.errors import GpuMemoryError
from star.modeling.training import common_arguments
from star.stages import distill


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
    arguments = common_arguments(settings, folder=tmp_path, seed=7, bf16=False, batch_size=24, steps=1)
    assert arguments["per_device_train_batch_size"] == halved
    assert halved * arguments["gradient_accumulation_steps"] * ranks == 24


@pytest.mark.slow
def test_a_training_goes_on_with_half_the_micro_batch_and_ends_with_the_same_weights_but_for_rounding(
    micro: Config,
    finished: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    step_of = Trainer.training_step

    def full_memory(self: Trainer, *arguments: object, **options: object) -> torch.Tensor:
        if Path(self.args.output_dir).name == "ckd" and self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step_of(self, *arguments, **options)

    given = {"topk": finished["extract-topk"], "out": tmp_path / "out"}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", full_memory)
        with pytest.raises(
            GpuMemoryError, match="too small for 4 sequences at a time: set its micro_batch_size to 2, "
        ):
            distill(micro, **given)
    capfd.readouterr()
    monkeypatch.setenv(HALF_MICRO_BATCH, "1")
    distill(micro, **given)
    assert "distil the student (CKD): 2/6\n" in capfd.readouterr().err  # from the checkpoint of the whole micro batch
    whole, halved = (load_file(folder / "model.safetensors") for folder in (finished["distill"], tmp_path / "out"))
    difference = max(float(abs(whole[name] - halved[name]).max()) for name in whole)
    assert 0 < difference < 2e-6  # of weights up to 1: sums in another order
