"""Measures fine-tuning and distillation steps of a real model, beside those of another checkout of this repository.

    python benchmarks/real_training.py MODEL                               # this checkout: two minutes for 135M parameters
    git worktree add ../before COMMIT
    python benchmarks/real_training.py MODEL --against ../before           # both, in turns, and the ratio
    # In fp32 and at a constant rate, and the weights compared after one step, which takes all rows:
    python benchmarks/real_training.py MODEL --against ../before --same --steps 1

    # Distillation on 4 samples of each prompt, with a row for each, and with the prompt computed once (distill.share_prompts):
    python benchmarks/real_training.py MODEL --phases ckd ckd-shared --samples 4

MODEL is a model folder. Each measurement is a process of its own (side_by_side.py), which trains on drawn rows: 14% of
the tokens are completions, and the lengths are spread as those of xLAM's rows, cut at 512 tokens. The time is that of the
optimiser steps after the first. A token is one of a row: padding counts as no token, and a shared prompt once for each of
its rows. The column "computed" has the tokens that are computed, padding included, per token of a row. The CPU time of both checkouts is
comparable also while other processes run. The peak memory is that of the process.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from command_line import positive, run_main
from side_by_side import (
    SPEEDS,
    Column,
    add_options,
    answer,
    largest_peak,
    measure_in_turns,
    parse_options,
    peak_gib,
    print_head,
    print_rows,
)

LENGTH, SPREAD = 480, 0.4  # median length of a row, and the standard deviation of its logarithm
MIN_LENGTH = 32
TARGETS = 0.14  # share of a row's tokens that are its completion
K = 100
PHASES = ("sft", "ckd", "ckd-shared")
COLUMNS: dict[str, Column] = {
    **SPEEDS,
    "computed": lambda runs: f"{runs[0]['computed']:.2f}",
    "peak memory": largest_peak,
    "last loss": lambda runs: f"{runs[0]['losses'][-1]:.4f}",
}


def draw_rows(count: int, *, most: int, vocab: int, samples: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and completions of random ids, `samples` of each prompt; rows that would be longer than `most` are drawn again."""
    import numpy as np

    draw = np.random.default_rng(0)
    median = LENGTH * min(1.0, most / 512)  # with a lower limit all lengths shrink
    lengths = draw.lognormal(np.log(median), SPREAD, 100 * count).astype(int)
    lengths = lengths[(lengths >= MIN_LENGTH) & (lengths <= most)][: count // samples]
    rows = []
    for length in lengths:
        cut = int(length * (1 - TARGETS))
        prompt = draw.integers(10, vocab - 10, cut).tolist()
        rows += [(prompt, draw.integers(10, vocab - 10, length - cut).tolist()) for _ in range(samples)]
    return rows


def write_store(folder: Path, rows: list[tuple[list[int], list[int]]], *, vocab: int) -> None:
    """A top-k store of random distributions over the rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from star.topk.sequences import SEQUENCES
    from star.topk.store import TopKWriter

    draw = np.random.default_rng(1)
    names = [f"row-{number:06}#0" for number in range(len(rows))]
    with TopKWriter(folder, K, vocab_size=vocab) as writer:
        for name, (_, completion) in zip(names, rows, strict=True):
            ids = np.stack([draw.choice(vocab, K, replace=False) for _ in completion])
            logprobs = -draw.exponential(1, (len(completion), K)).cumsum(1) * 0.1 - 0.5
            writer.add(name, ids, logprobs.astype(np.float32))
    prompts, completions = zip(*rows, strict=True)
    # A prompt is left out where it is that of the row above.
    new = [
        prompt if number == 0 or prompt is not prompts[number - 1] else None for number, prompt in enumerate(prompts)
    ]
    prompts, completions = (pa.array(column, pa.list_(pa.int32())) for column in (new, completions))
    pq.write_table(pa.table({"id": names, "prompt_ids": prompts, "completion_ids": completions}), folder / SEQUENCES)


def make_trainer(phase: str, model: Any, folder: Path, options: argparse.Namespace) -> Any:
    """The trainer of a phase, as the stage of this or an earlier checkout makes it."""
    from star.ckd.trainer import CKDTrainer
    from star.config.training import Distill, Training
    from star.modeling.training import collate_completions, supervised_arguments

    vocab = model.get_output_embeddings().weight.shape[0]
    rows = draw_rows(options.batch * options.steps, most=options.most, vocab=vocab, samples=options.samples)
    sizes: dict[str, Any] = {
        "steps": options.steps,
        "batch_size": options.batch,
        "micro_batch_size": options.micro,
        "learning_rate": 1e-5,
        "save_steps": 1000,
    }
    try:
        from star.modeling.precision import computes_in_bf16

        precision: dict[str, Any] = {"precision": options.precision}
        bf16: dict[str, Any] = {"bf16": computes_in_bf16(options.precision, model.config)}
    except ImportError:  # before the setting
        precision, bf16 = {}, {}
    if phase == "ckd-shared" and "share_prompts" not in Distill.model_fields:
        sys.exit("this checkout has no distill.share_prompts: leave the phase ckd-shared out")
    if phase != "sft":
        sizes |= {"share_prompts": True} if phase == "ckd-shared" else {}
        write_store(folder, rows, vocab=vocab)
        state = folder / "state"
        return CKDTrainer(model, folder, settings=Distill(**sizes), state=state, pad_id=0, seed=1, **precision)
    try:
        from star.teacher.sft import SupervisedTrainer as TrainerOfRows
    except ImportError:
        from transformers import Trainer as TrainerOfRows
    counted = {"sequences": len(rows)} if hasattr(Training, "count_steps") else {}  # since epochs can be counted
    return TrainerOfRows(
        model=model,
        args=supervised_arguments(Training(**sizes), folder=folder / "state", seed=1, **bf16, **counted),
        train_dataset=Rows(rows),
        data_collator=partial(collate_completions, pad_id=0),
    )


class Rows:
    """The rows as fine-tuning has them."""

    starts = None

    def __init__(self, rows: list[tuple[list[int], list[int]]]) -> None:
        self.rows = rows
        self.lengths = [len(prompt) + len(completion) for prompt, completion in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        prompt, completion = self.rows[index]
        return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def train_once(options: argparse.Namespace) -> dict[str, Any]:
    """Trains in this process. Returns seconds and CPU seconds per step, tokens, losses and the peak memory."""
    import torch
    from transformers import PrinterCallback, SchedulerType, TrainerCallback

    from star.modeling.models import load_model

    class Ends(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []

        def on_step_begin(self, args, state, control, **kwargs) -> None:
            self.times.append((time.monotonic(), time.process_time()))

        on_step_end = on_step_begin

    def count_tokens(collate: Callable[[list], dict]) -> Callable[[list], dict]:
        def counting(rows: list) -> dict:
            batch = collate(rows)
            tokens.append((sum(len(row["input_ids"]) for row in rows), batch["input_ids"].numel()))
            return batch

        return counting

    tokens: list[tuple[int, int]] = []
    model, ends = load_model(options.model, training=True), Ends()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options.measure, model, Path(folder), options)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ends)
        trainer.data_collator = count_tokens(trainer.data_collator)
        trainer.args.save_strategy = "no"
        if options.same:  # the schedules of checkouts differ
            constant = {"lr_scheduler_type": SchedulerType.CONSTANT, "lr_scheduler_kwargs": {}, "warmup_steps": 0}
            vars(trainer.args).update(constant)
        trainer.train()
    # The first step pays for what is set up once.
    uncounted = min(1, options.steps - 1)
    begin, end = ends.times[uncounted], ends.times[-1]
    micro_batches = uncounted * options.batch // options.micro
    real, computed = (sum(column) for column in zip(*tokens[micro_batches:], strict=True))
    if options.weights:
        torch.save([parameter.detach() for parameter in model.parameters()], options.weights)
    return {
        "tokens": real,
        "computed": computed / real,
        "seconds": end[0] - begin[0],
        "cpu": end[1] - begin[1],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_gib": peak_gib(),
    }


def differences(first: Path, second: Path) -> tuple[float, float]:
    """The largest and the mean absolute difference between the weights of two files."""
    import torch

    pairs = zip(torch.load(first), torch.load(second), strict=True)
    apart = torch.cat([(one - other).abs().flatten() for one, other in pairs])
    return float(apart.max()), float(apart.mean(dtype=torch.float64))


def compare(phase: str, options: argparse.Namespace) -> None:
    """Measures the checkouts in turns and prints their rows."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch) / name for name in ("before", "after")}
        weights = {name: ["--weights", str(file)] if options.same else [] for name, file in files.items()}
        print_rows(phase, measure_in_turns(phase, options, more=lambda name: weights[name]), COLUMNS)
        if options.same:
            largest, mean = differences(*files.values())
            print(f"\n{phase}: weights differ by at most {largest:.1e}, by {mean:.1e} on average\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, turns=1, same="the final weights")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES[:2], help="what to measure (sft and ckd)")
    parser.add_argument("--steps", type=positive, default=4, help="optimiser steps; the first is not counted (4)")
    parser.add_argument("--batch", type=positive, default=16, help="sequences per step (16)")
    parser.add_argument("--micro", type=positive, default=4, help="sequences per forward pass (4)")
    parser.add_argument("--samples", type=positive, default=1, help="sequences of each prompt (1)")
    parser.add_argument("--most", type=positive, default=512, help="tokens of the longest row (512)")
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parse_options(parser)
    if options.steps < 2 and not options.same:
        parser.error("--steps 1 has only the first step, which pays for what is set up once: give 2 or more")
    if options.batch % options.micro:
        parser.error(f"--micro {options.micro} must divide --batch {options.batch}")
    if options.micro % options.samples:
        parser.error(f"--samples {options.samples} must divide --micro {options.micro}")
    if options.most < MIN_LENGTH:
        parser.error(f"--most {options.most} leaves no rows, which have {MIN_LENGTH} tokens or more")
    if options.measure:
        answer(train_once, options)
        return
    print_head(COLUMNS)
    for phase in options.phases:
        compare(phase, options)


if __name__ == "__main__":
    run_main(main)
