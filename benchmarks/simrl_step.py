"""Measures a step of Sim-RL on any model, part by part, for this checkout and another one side by side.

    git worktree add ../before COMMIT
    python benchmarks/simrl_step.py MODEL --against ../before       # 512 tokens, 4 prompts of 8 rollouts each

    # The memory of eight rollouts with a shared prompt, and that of two sequences:
    python benchmarks/simrl_step.py MODEL --turns 1 --prompt-tokens 400
    python benchmarks/simrl_step.py MODEL --turns 1 --prompt-tokens 400 --micro-batch 2 --separate

Every turn runs each checkout in a process of its own (side_by_side.py). A process takes one step to warm up and one that
counts:

- sampling: the rollouts of the step's prompts.
- reference: the log-probs of the starting model, and the advantages.
- training: forward and backward pass of all micro batches.
- optimiser: the update of the weights.

The table has medians over the turns, in seconds of wall time and of CPU time (all threads), and tokens per second. A
token counts once per rollout that it is in, however often it is computed. The prompts are random words, and every rollout
is as long as allowed, for a model that seldom ends an answer to such a prompt. The peak memory is that of the process
during the part: with the weights and the optimiser's state. That of `training` is what micro_batch_size decides.
"""

import argparse
import random
import statistics
import string
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from command_line import positive, run_main
from side_by_side import (
    SPEEDS,
    Column,
    Results,
    add_options,
    answer,
    largest_peak,
    measure_in_turns,
    parse_options,
    peak_gib,
    print_head,
    print_rows,
    reset_peak,
)

PARTS = ("sampling", "reference", "training", "optimiser")
COLUMNS: dict[str, Column] = {
    "seconds": lambda runs: f"{statistics.median(run['seconds'] for run in runs):.2f}",
    "CPU seconds": lambda runs: f"{statistics.median(run['cpu'] for run in runs):.2f}",
    **SPEEDS,
    "peak memory": largest_peak,
}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each part of one step: `<part>` seconds, `<part>_cpu` seconds, `<part>_gib` of memory; `tokens` of all rollouts."""
    from star.config.training import SimRL
    from star.modeling.models import load_model, load_tokenizer
    from star.modeling.training import seed_everything
    from star.simrl.trainer import build_trainer

    seed_everything(7)
    tokenizer = load_tokenizer(arguments.model)
    settings = SimRL(
        steps=2,
        prompts_per_step=arguments.prompts,
        num_generations=arguments.rollouts,
        micro_batch_size=arguments.micro_batch,
        max_new_tokens=arguments.completion_tokens,
        keep_between=None,
    )
    prompts = random_prompts(tokenizer, count=2 * arguments.prompts, tokens=arguments.prompt_tokens)
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(arguments.model, training=True)
        trainer = build_trainer(model, tokenizer, prompts, settings=settings, folder=Path(folder), seed=7)
        if arguments.separate:
            trainer.shares_prompts = False  # as for a model that cannot share them
        trainer.create_optimizer_and_scheduler(2)
        trainer.accelerator.prepare_model(trainer.model)  # as a training does, for its autocast
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        for first in (0, arguments.prompts):
            costs = take_step(trainer, range(first, first + arguments.prompts))
    rollouts = [rollout for group in trainer.batch_groups for rollout in group.rollouts]
    tokens = sum(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in rollouts)
    return {**costs, "tokens": tokens}


def random_prompts(tokenizer: Any, *, count: int, tokens: int) -> list[Any]:
    """Prompts of random words with 60% to 100% of so many tokens."""
    from star.modeling.prompts import Prompt

    rng = random.Random(7)  # noqa: S311 - a benchmark
    words = [word for word in (tokenizer.decode([index]) for index in range(1000, 9000)) if word[1:].isalpha()]
    words = words or list(string.ascii_lowercase)  # of a small model's tokenizer
    answer = "<think>\n\n</think>\n\nno"
    prompts = []
    for number in range(count):
        wanted = round(tokens * (0.6 + 0.4 * rng.random()))
        text = " ".join(rng.choice(words).strip() for _ in range(wanted))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:wanted]
        prompts.append(Prompt(str(number), tokenizer.decode(ids), answer, []))
    return prompts


def take_step(trainer: Any, rows: range) -> dict[str, float]:
    """Takes one optimiser step on these rows; returns the seconds and the memory of its parts."""
    costs: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        reset_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        costs[part], costs[f"{part}_cpu"] = time.perf_counter() - wall, time.process_time() - cpu
        costs[f"{part}_gib"] = peak_gib()
        reset_peak()  # the sampling is done within the reference's part

    model, sample = trainer.model.train(), trainer._sample_batch

    def timed_sample(inputs: list[dict[str, Any]]) -> Any:
        with timed("sampling"):
            return sample(inputs)

    trainer._sample_batch = timed_sample
    inputs = [trainer.rows[row] for row in rows for _ in range(trainer.num_generations)]
    trainer._buffered_inputs = None
    with timed("reference"):
        batches = [trainer._prepare_inputs(inputs)]
    for part in ("reference", "reference_cpu"):
        costs[part] -= costs[part.replace("reference", "sampling")]
    for micro_batch in range(1, trainer.args.gradient_accumulation_steps):
        trainer._step = micro_batch
        batches.append(trainer._prepare_inputs(inputs))
    with timed("training"):
        for batch in batches:
            trainer.accelerator.backward(trainer.compute_loss(model, batch))
    with timed("optimiser"):
        trainer.optimizer.step()
    model.zero_grad()
    trainer._step, trainer._sample_batch = 0, sample
    return costs


def of_parts(results: Results, parts: list[str]) -> Results:
    """The measurements of several parts together: the sum of their times, and their largest memory."""
    return {
        name: [
            {
                "tokens": turn["tokens"],
                "seconds": sum(turn[part] for part in parts),
                "cpu": sum(turn[f"{part}_cpu"] for part in parts),
                "peak_gib": max(turn[f"{part}_gib"] for part in parts),
            }
            for turn in turns
        ]
        for name, turns in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, turns=3)
    parser.add_argument("--prompts", type=positive, default=4, help="prompts of a step (4)")
    parser.add_argument("--rollouts", type=positive, default=8, help="rollouts of a prompt (8)")
    parser.add_argument("--micro-batch", type=positive, default=8, help="rollouts of a forward pass (8)")
    parser.add_argument("--prompt-tokens", type=positive, default=448, help="tokens of the longest prompt (448)")
    parser.add_argument("--completion-tokens", type=positive, default=64, help="most tokens of a rollout (64)")
    parser.add_argument("--separate", action="store_true", help="train with a row per rollout, prompts not shared")
    options = parse_options(parser)
    if options.rollouts < 2:
        parser.error("--rollouts 1 leaves nothing to compare a rollout with: give 2 or more")
    if options.prompts * options.rollouts % options.micro_batch:
        parser.error(
            f"--micro-batch {options.micro_batch} must divide the {options.prompts * options.rollouts} rollouts"
        )
    if options.measure:
        answer(measure, options)
        return
    results = measure_in_turns("step", options)
    print_head(COLUMNS)
    not_sampling = [part for part in PARTS if part != "sampling"]
    groups = {**{part: [part] for part in PARTS}, "all but sampling": not_sampling, "all": list(PARTS)}
    for name, parts in groups.items():
        print_rows(name, of_parts(results, parts), COLUMNS)


if __name__ == "__main__":
    run_main(main)
