"""Measures fine-tuning and distillation steps of a real model, beside those of another checkout of this repository.

    python benchmarks/real_training.py MODEL                               # this checkout: two minutes for 135M parameters
    python benchmarks/real_training.py MODEL --against ../before           # both, in turns, and the ratio
    python benchmarks/real_training.py MODEL --against ../before --same    # in fp32 and with the final weights compared

MODEL is a model folder. Each measurement is a process of its own, which trains on drawn rows: 14% of the tokens are
completions, and the lengths are spread as those of xLAM's rows, cut at 512 tokens. The time is that of the optimiser steps
after the first, and a token is one of a row: padding counts as no token. The CPU time of both checkouts is comparable also
while other processes run. The peak memory is that of the process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

LENGTH, SPREAD = 480, 0.4  # median length of a row, and the standard deviation of its logarithm
TARGETS = 0.14  # share of a row's tokens that are its completion
K = 100
PHASES = ("sft", "ckd")


def draw_rows(count: int, *, most: int, vocab: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and completions of random ids; rows that would be longer than `most` are drawn again."""
    import numpy as np

    draw = np.random.default_rng(0)
    median = LENGTH * min(1.0, most / 512)  # with a lower limit all lengths shrink
    lengths = draw.lognormal(np.log(median), SPREAD, 100 * count).astype(int)
    lengths = lengths[(lengths >= 32) & (lengths <= most)][:count]
    rows = [draw.integers(10, vocab - 10, length).tolist() for length in lengths]
    return [(row[: (cut := int(len(row) * (1 - TARGETS)))], row[cut:]) for row in rows]


def write_store(folder: Path, rows: list[tuple[list[int], list[int]]], *, vocab: int) -> None:
    """A top-k store of random distributions over the rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from star.topk.sequences import SEQUENCES
    from star.topk.store import TopKWriter

    draw = np.random.default_rng(1)
    names = [f"row-{number}#0" for number in range(len(rows))]
    with TopKWriter(folder, K, vocab_size=vocab) as writer:
        for name, (_, completion) in zip(names, rows, strict=True):
            ids = np.stack([draw.choice(vocab, K, replace=False) for _ in completion])
            logprobs = -draw.exponential(1, (len(completion), K)).cumsum(1) * 0.1 - 0.5
            writer.add(name, ids, logprobs.astype(np.float32))
    prompts, completions = (pa.array(column, pa.list_(pa.int32())) for column in zip(*rows, strict=True))
    pq.write_table(pa.table({"id": names, "prompt_ids": prompts, "completion_ids": completions}), folder / SEQUENCES)


def make_trainer(phase: str, model: Any, folder: Path, options: argparse.Namespace) -> Any:
    """The trainer of a phase, as the stage of this or an earlier checkout makes it."""
    from star.ckd.trainer import CKDTrainer
    from star.config.training import Distill, Training
    from star.modeling.training import collate_completions, supervised_arguments

    vocab = model.get_output_embeddings().weight.shape[0]
    rows = draw_rows(options.batch * options.steps, most=options.most, vocab=vocab)
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
    if phase == "ckd":
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
    from transformers import PrinterCallback, TrainerCallback

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
            tokens.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
            return batch

        return counting

    tokens: list[tuple[int, int]] = []
    model, ends = load_model(options.model, training=True), Ends()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options.phase, model, Path(folder), options)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ends)
        trainer.data_collator = count_tokens(trainer.data_collator)
        trainer.args.save_strategy = "no"
        trainer.train()
    micro_batches = options.batch // (options.micro or options.batch)
    # The first step pays for what is set up once.
    begin, end = ends.times[1], ends.times[-1]
    real, padded = (sum(column) for column in zip(*tokens[micro_batches:], strict=True))
    if options.weights:
        torch.save([parameter.detach() for parameter in model.parameters()], options.weights)
    return {
        "tokens": real,
        "padding": padded / real,
        "seconds": end[0] - begin[0],
        "cpu": end[1] - begin[1],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def run_in(checkout: Path, phase: str, options: argparse.Namespace, *, weights: Path | None) -> dict[str, Any]:
    """`train_once` in a process that imports the code of a checkout."""
    child = [sys.executable, __file__, str(options.model), "--phase", phase, "--precision", options.precision]
    for name in ("steps", "batch", "micro", "most"):
        child += [f"--{name}", str(getattr(options, name))]
    child += ["--weights", str(weights)] if weights else []
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(child, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def largest_difference(first: Path, second: Path) -> float:
    """The largest absolute difference between the weights of two files."""
    import torch

    pairs = zip(torch.load(first), torch.load(second), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def compare(options: argparse.Namespace) -> None:
    """Measures the checkouts in turns and prints a table."""
    here = Path(__file__).resolve().parents[1]
    checkouts = {**({"before": options.against.resolve()} if options.against else {}), "after": here}
    print("| phase | code | tokens per second | per CPU second | padded by | peak memory | last loss |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for phase in options.phases:
        with tempfile.TemporaryDirectory() as scratch:
            files = {name: Path(scratch) / name for name in checkouts}
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
            for _ in range(options.turns):
                for name, checkout in checkouts.items():
                    weights = files[name] if options.same else None
                    found[name].append(run_in(checkout, phase, options, weights=weights))
            speeds = {}
            for name, runs in found.items():
                clock, cpu = (statistics.median(run["tokens"] / run[key] for run in runs) for key in ("seconds", "cpu"))
                speeds[name] = (clock, cpu)
                print(
                    f"| {phase} | {name} | {clock:.0f} | {cpu:.0f} | {runs[0]['padding']:.2f} | "
                    f"{max(run['peak_gib'] for run in runs):.1f} GiB | {runs[0]['losses'][-1]:.4f} |",
                    flush=True,
                )
            if options.against:
                ratios = [after / before for before, after in zip(speeds["before"], speeds["after"], strict=True)]
                print(f"| {phase} | after / before | {ratios[0]:.2f} | {ratios[1]:.2f} | | | |", flush=True)
                if options.same:
                    print(f"\n{phase}: weights differ by at most {largest_difference(*files.values()):.1e}\n")


def main() -> None:
    """Compares checkouts, or with --phase trains once and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--against", type=Path, help="checkout of this repository to compare with")
    parser.add_argument("--same", action="store_true", help="compute in fp32 and compare the final weights")
    parser.add_argument("--precision", default="auto", help="the setting, for this checkout")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="sequences per step")
    parser.add_argument("--micro", type=int, default=4, help="sequences per forward pass")
    parser.add_argument("--most", type=int, default=512, help="tokens of the longest row")
    parser.add_argument("--turns", type=int, default=1, help="measurements per checkout; the median counts")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.same:
        options.precision = "fp32"
    if options.phase:
        warnings.simplefilter("ignore")
        print(json.dumps(train_once(options)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
