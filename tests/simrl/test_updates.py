"""Several updates per rollout: what each trains on, and that a stopped training goes on to the same weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from star.config.training import SimRL
from star.data.rows import read_rows
from star.errors import InputError
from star.modeling import prompt_groups
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import render_rows
from star.modeling.sampling import RolloutKey, SeededSampling
from star.modeling.training import train
from star.simrl.trainer import SimRLTrainer, build_trainer

# The micro teacher's answers are of valid format about half of the time.
SETTINGS = {
    "prompts_per_step": 2,
    "num_generations": 4,
    "updates_per_rollout": 2,
    "learning_rate": 1e-3,
    "max_new_tokens": 48,
    "save_steps": 2,
    "max_refills": 2,
    "table_steps": 2,
    "check_steps": None,
    "max_reward_drop": None,
    "max_kl": None,
}


@pytest.fixture(params=["TRL's layout", "shared prompts"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "shared prompts":
        monkeypatch.setattr(prompt_groups, "MIN_WIDTH", 1)
    return request.param


def trainer_of(finished: dict[str, Path], folder: Path, *, prompts: int = 40, **settings) -> SimRLTrainer:
    teacher = finished["refine-teacher"]
    tokenizer = load_tokenizer(teacher)
    rows = render_rows(list(read_rows(finished["synthesize"] / "train.jsonl")), tokenizer)
    return build_trainer(
        load_model(teacher),
        tokenizer,
        rows[:prompts],
        settings=SimRL(**{**SETTINGS, **settings}),
        folder=folder,
        seed=7,
    )


def run(trainer: SimRLTrainer, state: Path) -> list[dict]:
    state.mkdir(exist_ok=True)
    train(trainer, phase="simrl", label="test", state=state, log_metrics=lambda values, step: None)
    return json.loads((state / "simrl_curve.json").read_text(encoding="utf-8"))


class Updates(TrainerCallback):
    """Records, for each step, the first row that was sampled for it and the completions of its forward pass."""

    def __init__(self, trainer: SimRLTrainer) -> None:
        self.trainer, self.sampled, self.trained = trainer, [], []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.sampled.append(tuple(group.row["row"] for group in self.trainer.batch_groups))
        [inputs] = self.trainer._buffered_inputs[(state.global_step - 1) % 2 :][:1]
        self.trained.append([tuple(ids.tolist()) for ids in inputs["completion_ids"]])


def test_each_update_trains_on_its_share_of_a_rollout(finished: dict[str, Path], tmp_path: Path, layout: str) -> None:
    trainer = trainer_of(finished, tmp_path / "simrl", steps=4, learning_rate=1e-2)
    assert trainer.shares_prompts == (layout == "shared prompts")
    updates = Updates(trainer)
    trainer.add_callback(updates)
    curve = run(trainer, tmp_path / "state")
    first, second, third, fourth = updates.sampled
    assert first == second != third == fourth
    assert all(len(rows) == 4 for rows in updates.sampled)  # prompts of two updates
    assert [entry["step"] for entry in curve] == [2, 4]
    assert {"sampled_reward", "clip_ratio/region_mean", "kl"} <= curve[0].keys()
    # The second update has gone away from the model that sampled.
    assert curve[0]["clip_ratio/region_mean"] > 0
    padding = trainer.processing_class.pad_token_id
    sampled = sorted(tuple(rollout.completion_ids) for group in trainer.batch_groups for rollout in group.rollouts)
    trained = [tuple(id_ for id_ in ids if id_ != padding) for step in updates.trained[2:] for ids in step]
    assert sorted(tuple(id_ for id_ in ids if id_ != padding) for ids in sampled) == sorted(trained)
    if trainer.shares_prompts:
        # Whole groups: every second one of the batch, by length.
        for update, step in enumerate(updates.trained[2:]):
            expected = {
                tuple(id_ for id_ in rollout.completion_ids if id_ != padding)
                for group in trainer.batch_groups[2 * update :][:2]
                for rollout in group.rollouts
            }
            assert {tuple(id_ for id_ in ids if id_ != padding) for ids in step} == expected


@pytest.mark.slow
def test_a_training_stopped_between_the_updates_of_a_rollout_ends_with_the_same_weights(
    finished: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    # Eight prompts are two rollouts of two updates: the second epoch has steps 5 to 8.
    settings = {"epochs": 2, "prompts": 8}
    whole = trainer_of(finished, tmp_path / "whole", **settings)
    updates = Updates(whole)
    whole.add_callback(updates)
    curve = run(whole, tmp_path / "state")
    assert [entry["step"] for entry in curve] == [2, 4, 6, 8]
    assert curve[-1]["frac_reward_zero_std"] < 1  # there is something to learn to the end

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 7:  # the first of two updates, after the checkpoint of step 6
                raise KeyboardInterrupt

    stopped = trainer_of(finished, tmp_path / "stopped", **settings)
    stopped.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path / "stopped_state")
    resumed = trainer_of(finished, tmp_path / "stopped", **settings)
    again = Updates(resumed)
    resumed.add_callback(again)
    assert run(resumed, tmp_path / "stopped_state") == curve
    assert again.trained == updates.trained[6:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(("loss", "micro_batch_size"), [("token", 2), ("sequence", None)])
def test_the_loss_is_a_mean_over_tokens_or_completions(
    loss: str, micro_batch_size: int | None, finished: dict[str, Path], tmp_path: Path
) -> None:
    settings = {
        "steps": 1,
        "updates_per_rollout": 1,
        "save_steps": 1,
        "loss": loss,
        "micro_batch_size": micro_batch_size,
    }
    trainer = trainer_of(finished, tmp_path / "simrl", prompts=8, **settings)
    [entry] = run(trainer, tmp_path / "state")
    losses, weights = [], []
    for group in trainer.batch_groups:
        rewards = [rollout.score.trained.total for rollout in group.rollouts]
        for rollout, reward in zip(group.rollouts, rewards, strict=True):
            # The ratio is 1 and the KL 0 in the first step, so each token's loss is minus the advantage.
            losses.append(-(reward - fmean(rewards)) / (stdev(rewards) + 1e-4))
            weights.append(len(rollout.completion_ids) if loss == "token" else 1)
    assert any(losses) and (len(set(weights)) > 1) == (loss == "token")
    expected = sum(value * weight for value, weight in zip(losses, weights, strict=True)) / sum(weights)
    assert entry["loss"] == pytest.approx(expected, abs=1e-4)


def test_each_update_divides_by_its_share_of_the_rollouts_tokens(
    finished: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    # With a rate that moves no weight, all ratios are 1 and the KL is 0 in both updates.
    trainer = trainer_of(finished, tmp_path / "simrl", steps=2, micro_batch_size=4, learning_rate=1e-30)
    trainer.args.logging_steps = 1
    curve = run(trainer, tmp_path / "state")
    tokens = [len(rollout.completion_ids) for group in trainer.batch_groups for rollout in group.rollouts]
    of_updates = []
    for update in range(2):
        passes = trainer._buffered_inputs[2 * update :][:2]
        assert sum(len(inputs["advantages"]) for inputs in passes) == 8
        losses = [-(inputs["advantages"] * inputs["completion_mask"].sum(1)).sum().item() for inputs in passes]
        assert curve[update]["loss"] == pytest.approx(sum(losses) / (sum(tokens) / 2), abs=1e-4)
        of_updates.append(sum(inputs["completion_mask"].sum().item() for inputs in passes))
    assert sum(of_updates) == sum(tokens) and of_updates[0] != of_updates[1]


def test_a_rollout_is_sampled_one_update_at_a_time_and_is_the_same(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled, sizes = [], list[list[int]]()

    class Counted(SeededSampling):
        def __init__(self, keys: Sequence[RolloutKey], **settings: Any) -> None:
            sizes[-1].append(len(keys))
            super().__init__(keys, **settings)

    monkeypatch.setattr("star.simrl.trainer.SeededSampling", Counted)
    for layout, width in (("TRL's layout", prompt_groups.MIN_WIDTH), ("shared prompts", 1)):
        monkeypatch.setattr(prompt_groups, "MIN_WIDTH", width)
        trainer = trainer_of(finished, tmp_path / layout, steps=2)
        sizes.append([])
        groups = trainer._sample_groups([trainer.rows[row] for row in range(4) for _ in range(4)])
        sampled.append([[rollout.completion_ids for rollout in group.rollouts] for group in groups])
    assert sizes == [[16], [8, 8]]
    assert sampled[0] == sampled[1]


def test_too_few_prompts_for_a_rollout_are_refused(finished: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 prompts cannot fill a step of prompts_per_step = 2 for 2 updates"):
        trainer_of(finished, tmp_path, prompts=3, steps=2)
