"""Compares Sim-RL on the tiny profile three ways: with filtering, without, and with filtering on the binary reward.

    star synthesize --config more.yaml --out build/heldout       # the tiny profile, another seed, 1,000 held-out rows
    python benchmarks/simrl.py runs/latest --work build/simrl --heldout build/heldout      # about an hour on one core
    python benchmarks/simrl.py runs/latest --work build/simrl --heldout build/heldout --plot docs/simrl.svg

Every arm trains the distilled student of a run with the profile's `refine` settings, except for the numbers of steps
and of prompts per step. At the start and every few steps the policy answers held-out rows at temperature 1, as in
training. The curves show the mean similarity reward of these answers, on which no arm was trained.

Finished arms are kept in the work folder. A killed arm continues from its last checkpoint.
"""

import argparse
import json
import shutil
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

from transformers import TrainerCallback

from star.config.load import load_config
from star.config.training import SimRL
from star.data.rows import read_rows
from star.json_file import write_json
from star.modeling.generation import generate
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import Prompt, render_rows
from star.modeling.training import seed_everything, train
from star.rewards.similarity import similarity_reward
from star.simrl.trainer import build_trainer

ARMS: dict[str, dict[str, object]] = {
    "similarity, filtered": {},
    "similarity, not filtered": {"keep_between": None},
    "binary, filtered": {"reward": "binary"},
}
SEEDS = (1, 2, 3)
SAMPLES = 2  # answers per held-out row
T_95 = 4.303  # 95% quantile of Student's t for the mean of three values


class EvaluateHeldout(TrainerCallback):
    """Writes the mean reward on held-out prompts to a file every few steps. A resumed arm adds to it."""

    def __init__(self, model, tokenizer, prompts: list[Prompt], *, every: int, file: Path) -> None:
        self.model, self.tokenizer, self.prompts, self.every, self.file = model, tokenizer, prompts, every, file

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 0:
            self.evaluate(0)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.every == 0:
            self.evaluate(state.global_step)

    def evaluate(self, step: int) -> None:
        known = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        write_json(self.file, known | {str(step): self._mean_reward()})

    def _mean_reward(self) -> float:
        rewards = []
        for start in range(0, len(self.prompts), 100):
            batch = self.prompts[start : start + 100]
            # The same random numbers at every step and in every arm.
            answers = generate(
                self.model,
                self.tokenizer,
                [prompt.text for prompt in batch],
                samples=SAMPLES,
                temperature=1.0,
                max_new_tokens=72,
                seed=start,
            )
            rewards += [
                similarity_reward(answer.text, prompt.target, prompt.tools).total
                for answers_of_one, prompt in zip(answers, batch, strict=True)
                for answer in answers_of_one
            ]
        self.model.train()
        return fmean(rewards)


def train_arm(
    folder: Path, *, settings: SimRL, seed: int, student: Path, data: Path, heldout: Path, every: int
) -> dict[int, float]:
    """Trains one arm unless it is finished; returns its curve, the held-out mean reward by step."""
    file, finished = folder / "curve.json", folder / "finished"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        seed_everything(seed)
        tokenizer, model = load_tokenizer(student), load_model(student, training=True)
        prompts = render_rows(list(read_rows(data / "train.jsonl")), tokenizer)
        known = {prompt.text for prompt in prompts}
        unseen = [
            row for row in render_rows(list(read_rows(heldout / "heldout.jsonl")), tokenizer) if row.text not in known
        ]
        trainer = build_trainer(model, tokenizer, prompts, settings=settings, folder=folder / "checkpoints", seed=seed)
        trainer.add_callback(EvaluateHeldout(model, tokenizer, unseen, every=every, file=file))
        train(trainer, phase="simrl", label=folder.name, state=folder, log_metrics=lambda values, step: None)
        shutil.rmtree(folder / "checkpoints")
        finished.touch()
    return {int(step): reward for step, reward in json.loads(file.read_text(encoding="utf-8")).items()}


def interval(values: list[float]) -> str:
    """Formats the mean and the 95% interval over the seeds."""
    return f"{fmean(values):.3f} ± {T_95 * stdev(values) / len(values) ** 0.5:.3f}"


def steps_to(curve: dict[int, float], reward: float) -> int | None:
    """Returns the first evaluated step where the mean of this and the next evaluation is at least `reward`."""
    return next((step for step, after in pairwise(sorted(curve)) if (curve[step] + curve[after]) / 2 >= reward), None)


def reward_table(curves: dict[str, list[dict[int, float]]]) -> str:
    reference = fmean(curve[max(curve)] for curve in curves["similarity, not filtered"])
    lines = [
        f"| arm | reward at the start | at the end | rise | steps to {reference:.3f} (by seed) |",
        "|---|---:|---:|---:|---:|",
    ]
    for arm, of_seeds in curves.items():
        first, last = ([curve[end(curve)] for curve in of_seeds] for end in (min, max))
        rises = [after - before for before, after in zip(first, last, strict=True)]
        steps = [steps_to(curve, reference) for curve in of_seeds]
        shown = ", ".join("never" if step is None else str(step) for step in steps)
        lines.append(f"| {arm} | {fmean(first):.3f} | {interval(last)} | {interval(rises)} | {shown} |")
    return "\n".join(lines)


def sampling_table(work: Path) -> str:
    """Makes the table of how much each arm sampled, from the metrics of the trainings."""
    lines = ["| arm | groups kept | refill rounds per step | unfilled groups per step |", "|---|---:|---:|---:|"]
    for arm in ARMS:
        entries = [
            entry
            for seed in SEEDS
            for entry in json.loads((arm_folder(work, arm, seed) / "simrl_curve.json").read_text(encoding="utf-8"))
            if "kept_fraction" in entry
        ]
        kept, rounds, unfilled = (
            fmean(entry[name] for entry in entries) for name in ("kept_fraction", "refill_rounds", "unfilled_groups")
        )
        lines.append(f"| {arm} | {kept:.0%} | {rounds:.1f} | {unfilled:.1f} |")
    return "\n".join(lines)


def arm_folder(work: Path, arm: str, seed: int) -> Path:
    return work / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def plot(curves: dict[str, list[dict[int, float]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "simrl"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for number, (arm, of_seeds) in enumerate(curves.items()):
        steps = sorted(of_seeds[0])
        columns = [[curve[step] for curve in of_seeds] for step in steps]
        axes.plot(steps, [fmean(column) for column in columns], color=f"C{number}", label=arm, linewidth=2)
        for curve in of_seeds:
            axes.plot(steps, [curve[step] for step in steps], color=f"C{number}", linewidth=0.7, alpha=0.45)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out mean similarity reward (official reading), temperature 1")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished tiny run's stages, such as runs/latest")
    parser.add_argument("--work", type=Path, required=True, help="folder for the arms")
    parser.add_argument("--heldout", type=Path, help="folder of `star synthesize` with other held-out rows")
    parser.add_argument("--steps", type=int, default=24, help="training steps of an arm")
    parser.add_argument(
        "--prompts", type=int, default=32, help="prompts per step, each with the profile's number of rollouts"
    )
    parser.add_argument("--every", type=int, default=8, help="steps between two evaluations")
    parser.add_argument("--plot", type=Path, help="SVG file to write; needs matplotlib")
    arguments = parser.parse_args()
    changes = {"steps": arguments.steps, "prompts_per_step": arguments.prompts, "save_steps": arguments.every}
    base = load_config("tiny").refine.model_copy(update=changes)
    # Seeds in the outer loop, so that an interrupted study has complete comparisons.
    curves: dict[str, list[dict[int, float]]] = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        for arm, changes in ARMS.items():
            curve = train_arm(
                arm_folder(arguments.work, arm, seed),
                settings=base.model_copy(update=changes),
                seed=seed,
                student=arguments.run / "distill",
                data=arguments.run / "synthesize",
                heldout=arguments.heldout or arguments.run / "synthesize",
                every=arguments.every,
            )
            curves[arm].append(curve)
            print(f"{arm}, seed {seed}: " + " ".join(f"{curve[step]:.3f}" for step in sorted(curve)), flush=True)
    print(reward_table(curves), sampling_table(arguments.work), sep="\n\n")
    write_json(arguments.work / "curves.json", curves)
    if arguments.plot:
        plot(curves, arguments.plot)


if __name__ == "__main__":
    main()
