"""The distillation with a prompt computed once for its samples: the same loss, gradients and steps as with a row for each."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from star.ckd.trainer import CKDTrainer
from star.config.experiment import Config
from star.modeling import prompt_groups
from star.modeling.models import load_model
from star.topk.sequences import read_lengths


def trainer_of(
    finished: dict[str, Path], state: Path, config: Config, *, monkeypatch: pytest.MonkeyPatch, width: int, **settings
) -> CKDTrainer:
    """A distillation of models that count as wide from `width` on."""
    monkeypatch.setattr(prompt_groups, "MIN_WIDTH", width)
    return CKDTrainer(
        load_model(finished["distill"]),
        finished["extract-topk"],
        settings=config.distill.model_copy(update={"share_prompts": True, **settings}),
        state=state,
        pad_id=0,
        seed=1,
    )


def loss_and_gradients(trainer: CKDTrainer, batch: dict) -> tuple[float, torch.Tensor]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss.detach()), torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])


def test_a_batch_has_its_loss_and_gradients_with_fewer_tokens(
    micro: Config, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for width in (prompt_groups.MIN_WIDTH, 1):
        trainer = trainer_of(finished, tmp_path, micro, monkeypatch=monkeypatch, width=width)
        rows = [trainer.train_dataset[index] for index in range(6)]
        batch = trainer.data_collator(rows)
        counted = int((batch["labels"][:, 1:] != -100).sum())
        found.append((batch["input_ids"].numel(), counted, *loss_and_gradients(trainer, batch)))
    (plain_tokens, plain_counted, plain_loss, plain), (packed_tokens, packed_counted, packed_loss, packed) = found
    assert packed_tokens < 0.8 * plain_tokens and packed_counted == plain_counted
    assert packed_loss == pytest.approx(plain_loss, rel=1e-5)
    assert (packed - plain).abs().max() < 1e-4 * plain.abs().max()


def test_a_batch_without_a_prompt_to_share_is_laid_out_as_ever(
    micro: Config, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(finished, tmp_path, micro, monkeypatch=monkeypatch, width=1)
    first, *_, last = trainer.train_dataset.starts
    assert "attention_mask" in trainer.data_collator([trainer.train_dataset[row] for row in (first, last)])


def test_steps_are_those_of_a_row_per_sample(
    micro: Config, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, logged = [], []
    for width in (prompt_groups.MIN_WIDTH, 1):
        settings = {"steps": 3, "batch_size": 6, "micro_batch_size": 2}
        state = tmp_path / str(width)
        trainer = trainer_of(finished, state, micro, monkeypatch=monkeypatch, width=width, **settings)
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
        logged.append([entry for entry in trainer.state.log_history if "fkl" in entry])
    started = torch.cat([parameter.flatten() for parameter in load_model(finished["distill"]).parameters()])
    moved = (weights[0] - started).abs().max()
    assert moved > 1e-4 and (weights[0] - weights[1]).abs().max() < 0.02 * moved
    for plain, packed in zip(*logged, strict=True):
        assert packed["loss"] == pytest.approx(plain["loss"], rel=1e-3)
        assert packed["overlap"] == pytest.approx(plain["overlap"], rel=1e-2)


def test_the_samples_of_a_prompt_come_together_and_each_once_an_epoch(
    micro: Config, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(finished, tmp_path, micro, monkeypatch=monkeypatch, width=1, batch_size=4, micro_batch_size=4)
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(len(trainer.train_dataset))) and order != sorted(order)
    prompt_of = read_lengths(finished["extract-topk"]).is_new_S.cumsum()
    prompts = [prompt_of[row] for row in order]
    changes = sum(before != after for before, after in pairwise(prompts))
    # A step may begin within a prompt, whose other rows then stand at another place.
    assert changes + 1 <= len(set(prompts)) + len(order) // 4
