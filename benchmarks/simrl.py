"""Sim-RL on the tiny profile, three ways beside each other: filtered, not filtered, and filtered on the binary reward.

Every arm trains the run's distilled student with the profile's `refine` settings but for the number of steps and of prompts a step.
At the start and every few steps the policy answers held-out rows at temperature 1, as it does in training; what is drawn is the
mean similarity reward of those answers, which no arm was trained on. More held-out rows than the run has come with --heldout:

    star synthesize --config more.yaml --out build/heldout             # the tiny profile with another seed and 1,000 held-out rows
    python benchmarks/simrl.py runs/latest --work build/simrl --heldout build/heldout      # about an hour on one core
    python benchmarks/simrl.py runs/latest --work build/simrl --heldout build/heldout --plot docs/simrl.svg

Finished arms are kept in the work folder, a killed one goes on from its last checkpoint.
"""

import argparse
import json
import shutil
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
SAMPLES = 2  # answers a row
T_95 = 4.303  # Student's t for the mean of three values, 95%


class Evaluation(TrainerCallback):
    """Mean reward on held-out prompts every few steps, in a file that a resumed arm goes on with."""

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
            limits = {"samples": SAMPLES, "temperature": 1.0, "max_new_tokens": 72, "seed": start}
            answers = generate(self.model, self.tokenizer, [prompt.text for prompt in batch], **limits)
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
    """The curve of one arm: held-out mean reward by step."""
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
        trainer.add_callback(Evaluation(model, tokenizer, unseen, every=every, file=file))
        train(trainer, phase="simrl", label=folder.name, state=folder, log_metrics=lambda values, step: None)
        shutil.rmtree(folder / "checkpoints")
        finished.touch()
    return {int(step): reward for step, reward in json.loads(file.read_text(encoding="utf-8")).items()}


def interval(values: list[float]) -> str:
    """Mean and 95% interval over the seeds."""
    return f"{fmean(values):.3f} ± {T_95 * stdev(values) / len(values) ** 0.5:.3f}"


def steps_to(curve: dict[int, float], reward: float) -> int | None:
    """The first evaluated step from which the mean of two evaluations is at least `reward`."""
    steps = sorted(curve)
    pairs = zip(steps, steps[1:], strict=False)
    return next((step for step, after in pairs if (curve[step] + curve[after]) / 2 >= reward), None)


def report(curves: dict[str, list[dict[int, float]]]) -> str:
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


def sampling(work: Path) -> str:
    """How much each arm sampled: from the trainings' own curves."""
    lines = ["| arm | groups kept | refill rounds a step | groups not filled a step |", "|---|---:|---:|---:|"]
    for arm in ARMS:
        entries = [
            entry
            for seed in SEEDS
            for entry in json.loads((folder_of(work, arm, seed) / "simrl_curve.json").read_text(encoding="utf-8"))
            if "kept_fraction" in entry
        ]
        kept, rounds, unfilled = (
            fmean(entry[name] for entry in entries) for name in ("kept_fraction", "refill_rounds", "unfilled_groups")
        )
        lines.append(f"| {arm} | {kept:.0%} | {rounds:.1f} | {unfilled:.1f} |")
    return "\n".join(lines)


def folder_of(work: Path, arm: str, seed: int) -> Path:
    return work / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def draw(curves: dict[str, list[dict[int, float]]], file: Path) -> None:
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
    axes.set_ylabel("held-out mean similarity reward, temperature 1")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished tiny run's stages, as runs/latest")
    parser.add_argument("--work", type=Path, required=True, help="folder for the arms")
    parser.add_argument("--heldout", type=Path, help="folder of `star synthesize` with other held-out rows")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument(
        "--prompts", type=int, default=32, help="prompts a step, each with the profile's number of rollouts"
    )
    parser.add_argument("--every", type=int, default=8, help="steps between two evaluations")
    parser.add_argument("--plot", type=Path, help="where the figure is written, as SVG")
    options = parser.parse_args()
    changes = {"steps": options.steps, "prompts_per_step": options.prompts, "save_steps": options.every}
    base = load_config("tiny").refine.model_copy(update=changes)
    # By seed first: a study that is cut short has whole comparisons.
    curves: dict[str, list[dict[int, float]]] = {arm: [] for arm in ARMS}
    for seed in SEEDS:
        for arm, changes in ARMS.items():
            curve = train_arm(
                folder_of(options.work, arm, seed),
                settings=base.model_copy(update=changes),
                seed=seed,
                student=options.run / "distill",
                data=options.run / "synthesize",
                heldout=options.heldout or options.run / "synthesize",
                every=options.every,
            )
            curves[arm].append(curve)
            print(f"{arm}, seed {seed}: " + " ".join(f"{curve[step]:.3f}" for step in sorted(curve)), flush=True)
    print(report(curves), sampling(options.work), sep="\n\n")
    write_json(options.work / "curves.json", curves)
    if options.plot:
        draw(curves, options.plot)


if __name__ == "__main__":
    main()
