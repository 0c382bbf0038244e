"""Run by test_trainer.py under torchrun: two updates on each of two rollouts. Writes which groups each process saw and trained on.

A prompt is computed once for its rollouts. Arguments: the model's folder, the data's folder, the folder for
`groups-<rank>.json` and the trained weights `weights-<rank>.pt`.
"""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from star.config.training import SimRL
from star.data.rows import read_rows
from star.modeling import prompt_groups
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import render_rows
from star.simrl.trainer import SimRLTrainer, build_trainer

SETTINGS = SimRL(
    steps=4,
    prompts_per_step=2,
    num_generations=4,
    updates_per_rollout=2,
    learning_rate=1e-4,
    max_new_tokens=48,
    save_steps=2,
    max_refills=3,
)


def main(model: Path, data: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(model)
    prompts = render_rows(list(read_rows(data / "train.jsonl")), tokenizer)
    # In double precision: a product's last bit depends on how many rows it has, and in single precision that draws another
    # token once in some thousand steps.
    policy = load_model(model).double()
    prompt_groups.MIN_WIDTH = 1
    trainer: SimRLTrainer = build_trainer(policy, tokenizer, prompts, settings=SETTINGS, folder=out / "simrl", seed=7)
    steps: list[dict] = []

    class Record(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            sampled = [
                [group.row["row"], [rollout.completion for rollout in group.rollouts], trainer.is_kept(group)]
                for group in trainer.sampled_groups
            ]
            steps.append({"sampled": sampled, "batch": [group.row["row"] for group in trainer.batch_groups]})

    trainer.add_callback(Record())
    assert trainer.shares_prompts
    trainer.train()
    weights = torch.cat([value.flatten() for value in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    torch.save(weights.detach(), out / f"weights-{os.environ['RANK']}.pt")
    (out / f"groups-{os.environ['RANK']}.json").write_text(json.dumps(steps), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
