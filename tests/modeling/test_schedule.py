"""The learning rate of each step, as the trainings' own arguments make it."""

from math import cos, pi
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from star.config.training import Schedule, SimRL, Training
from star.modeling.training import supervised_arguments
from star.simrl.grpo_config import grpo_config

STEPS = 100
RATE = 2e-3


def rates(arguments: TrainingArguments) -> list[float]:
    """The learning rate of each step, as a share of the peak."""
    trainer = Trainer(model=torch.nn.Linear(1, 1), args=arguments)
    trainer.create_optimizer_and_scheduler(STEPS)
    found = []
    for _ in range(STEPS):
        found.append(trainer.lr_scheduler.get_last_lr()[0] / RATE)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


def supervised(folder: Path, **settings: object) -> TrainingArguments:
    training = Training(steps=STEPS, learning_rate=RATE, **settings)
    return supervised_arguments(training, folder=folder, seed=1, bf16=False, sequences=1)


def test_the_default_is_the_official_schedule_in_both_kinds_of_training(tmp_path: Path) -> None:
    # OpenRLHF: a warm-up of 3% from 0, then a cosine to a tenth.
    expected = [step / 3 for step in range(3)] + [
        0.1 + 0.9 * (1 + cos(pi * (step - 3) / 97)) / 2 for step in range(3, 100)
    ]
    simrl = SimRL(steps=STEPS, learning_rate=RATE)
    arguments = grpo_config(simrl, folder=tmp_path, seed=1, bf16=False, prompts=100, longest_prompt=0)
    assert rates(supervised(tmp_path)) == rates(arguments) == pytest.approx(expected)
    for kind in (supervised(tmp_path), arguments):
        assert (kind.adam_beta2, kind.max_grad_norm) == (0.95, 1.0)
    assert (arguments.loss_type, arguments.epsilon, arguments.weight_decay) == ("dapo", 0.2, 0.0)


def test_a_plateau_ends_in_a_straight_decay(tmp_path: Path) -> None:
    schedule = Schedule(kind="stable-decay", warmup=0.1, final=0.25)
    found = rates(supervised(tmp_path, schedule=schedule, beta2=0.98))
    assert found[:10] == pytest.approx([0.25 + 0.75 * step / 10 for step in range(10)])
    assert found[10:71] == [1.0] * 61
    assert found[70:] == pytest.approx([1 - 0.75 * step / 30 for step in range(30)])
    assert supervised(tmp_path, beta2=0.98).adam_beta2 == 0.98


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.29, 29), (0.035, 3)])
def test_a_share_of_the_steps_is_rounded_down(warmup: float, steps: int, tmp_path: Path) -> None:
    assert supervised(tmp_path, schedule=Schedule(warmup=warmup)).warmup_steps == steps
