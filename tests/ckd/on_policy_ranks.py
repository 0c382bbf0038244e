"""One process of an on-policy distillation, alone or one rank of several; test_on_policy.py calls it, and starts it with torchrun.

torchrun --nproc-per-node 2 tests/ckd/on_policy_ranks.py STUDENT TEACHER DATA OUT
"""

import sys
from pathlib import Path

import torch

from star import distributed
from star.ckd.on_policy import build_on_policy_trainer
from star.config.training import Distill
from star.data.rows import read_rows
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import render_rows


def train_one_rank(student: Path, teacher: Path, data: Path, *, out: Path) -> None:
    """Trains two steps, and writes this rank's completions of the first step and the weights at the end to OUT/RANK.pt."""
    tokenizer = load_tokenizer(student)
    trainer = build_on_policy_trainer(
        load_model(student),
        load_model(teacher),
        tokenizer,
        render_rows(list(read_rows(data / "train.jsonl")), tokenizer),
        settings=Distill(kind="rkl", steps=2, batch_size=4, learning_rate=1e-3),
        max_new_tokens=24,
        folder=out / "state",
        seed=7,
    )
    rank, ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
    share = 4 // ranks
    rows = [trainer.train_dataset[rank * share + place] for place in range(share)]
    batch = trainer._generate_and_score_completions(rows)
    completions = [
        tuple(ids[mask.bool()].tolist())
        for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    trainer.train()
    weights = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"completions": completions, "weights": weights}, out / f"{rank}.pt")


if __name__ == "__main__":
    student, teacher, data, out = map(Path, sys.argv[1:])
    with distributed.process_group():
        train_one_rank(student, teacher, data, out=out)
