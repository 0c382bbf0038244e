"""Measures a step of Sim-RL on any model, part by part, for this checkout and another one side by side.

    git worktree add ../before COMMIT
    python benchmarks/simrl_step.py MODEL --against ../before       # 512 tokens, 4 prompts of 8 rollouts each

Every turn runs each checkout in a process of its own. A process takes one step to warm up and one that counts:

- sampling: the rollouts of the step's prompts.
- reference: the log-probs of the starting model, and the advantages.
- training: forward and backward pass of all micro batches.
- optimiser: the update of the weights.

The table has medians over the turns, in seconds of wall time and of CPU time (all threads), and tokens per second. A
token counts once per rollout that it is in, however often it is computed. The prompts are random words, and every rollout
is as long as allowed, for a model that seldom ends an answer to such a prompt.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTS = ("sampling", "reference", "training", "optimiser")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("--against", type=Path, help="another checkout of STAR, shown beside this one")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts of a prompt")
    parser.add_argument("--micro-batch", type=int, default=8, help="rollouts of a forward pass")
    parser.add_argument("--prompt-tokens", type=int, default=448, help="tokens of the longest prompt")
    parser.add_argument("--completion-tokens", type=int, default=64)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    checkouts = {"before": arguments.against, "after": Path(__file__).resolve().parents[1]}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name, folder in checkouts.items() if folder}
    for turn in range(arguments.turns):
        for name in results:
            results[name].append(run_checkout(checkouts[name]))
            print(f"turn {turn + 1}, {name}: {json.dumps(results[name][-1])}", file=sys.stderr, flush=True)
    print(table(results))


def run_checkout(folder: Path) -> dict[str, Any]:
    """Measures in a process that imports STAR from this checkout."""
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--measure"]
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part of one step: `<part>` of wall time, `<part>_cpu` of CPU time; `tokens` of all rollouts."""
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
        trainer.create_optimizer_and_scheduler(2)
        trainer.accelerator.prepare_model(trainer.model)  # as a training does, for its autocast
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        for first in (0, arguments.prompts):
            seconds = take_step(trainer, range(first, first + arguments.prompts))
    rollouts = [rollout for group in trainer.batch_groups for rollout in group.rollouts]
    tokens = sum(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in rollouts)
    return {**seconds, "tokens": tokens}


def random_prompts(tokenizer: Any, *, count: int, tokens: int) -> list[Any]:
    """Prompts of random words with 60% to 100% of so many tokens."""
    from star.modeling.prompts import Prompt

    rng = random.Random(7)  # noqa: S311 - a benchmark
    words = [word for word in (tokenizer.decode([index]) for index in range(1000, 9000)) if word[1:].isalpha()]
    answer = "<think>\n\n</think>\n\nno"
    prompts = []
    for number in range(count):
        wanted = round(tokens * (0.6 + 0.4 * rng.random()))
        text = " ".join(rng.choice(words).strip() for _ in range(wanted))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:wanted]
        prompts.append(Prompt(str(number), tokenizer.decode(ids), answer, []))
    return prompts


def take_step(trainer: Any, rows: range) -> dict[str, float]:
    """Takes one optimiser step on these rows; returns the seconds of its parts."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        seconds[part], seconds[f"{part}_cpu"] = time.perf_counter() - wall, time.process_time() - cpu

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
        seconds[part] -= seconds[part.replace("reference", "sampling")]
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
    return seconds


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    names = list(results)
    lines = [
        "| part | "
        + " | ".join(f"{name}: wall s | CPU s | tokens/s" for name in names)
        + " | times faster (wall, CPU) |",
        "|---|" + "---:|" * (3 * len(names) + 1),
    ]
    for part in (*PARTS, "all but sampling", "all"):
        chosen = [each for each in PARTS if part == "all" or (each != "sampling" and part != each) or part == each]
        chosen = chosen if part.startswith("all") else [part]
        cells, totals = [], []
        for name in names:
            wall, cpu_seconds = (
                statistics.median(sum(turn[each + suffix] for each in chosen) for turn in results[name])
                for suffix in ("", "_cpu")
            )
            cells.append(f"{wall:.2f} | {cpu_seconds:.2f} | {results[name][0]['tokens'] / wall:,.0f}")
            totals.append((wall, cpu_seconds))
        faster = ", ".join(f"{before / after:.2f}" for before, after in zip(totals[0], totals[-1], strict=True))
        lines.append(f"| {part} | " + " | ".join(cells) + f" | {faster} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
