"""What watches a Sim-RL training: tables of sampled completions, a stop before a collapse, and a check against reward hacking.

All three are callbacks of the trainer and keep what they know in the stage's state folder or in the trainer's own history,
so that a resumed training goes on as if it had never stopped.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from math import inf, sqrt
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from star.config.experiment import SimRL
from star.errors import PipelineError
from star.hashing import digest_of
from star.json_file import write_json
from star.modeling.generation import generate
from star.modeling.prompts import Prompt
from star.rewards.similarity import exact_match
from star.simrl.completions_page import completions_page

if TYPE_CHECKING:
    from star.simrl.trainer import SimRLTrainer

log = logging.getLogger(__name__)

WINDOW = 5  # logged values a mean reward is taken over
TABLE_GROUPS = 8  # groups a table shows, each with its best and its worst completion
GOOD = "good-"  # before the step, in the name of the folder of the last good model
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")


class CompletionTables(TrainerCallback):
    """Tables of what was sampled at the first step, every `table_steps` steps and the last: one page, sent with `show` as it grows."""

    def __init__(self, trainer: "SimRLTrainer", *, state: Path, page: Path, show: Callable[[Path], None]) -> None:
        self.trainer, self.state, self.page, self.show = trainer, state, page, show

    def on_step_end(self, args, state, control, **kwargs) -> None:
        step = state.global_step
        wanted = step in (1, state.max_steps) or step % self.trainer.settings.table_steps == 0
        if state.is_world_process_zero and wanted:
            self.state.mkdir(parents=True, exist_ok=True)
            write_json(self.state / f"{step:06d}.json", table_of(self.trainer))
            self.write_page()
            self.show(self.page)

    def write_page(self) -> None:
        """The page of all steps so far."""
        tables = {int(file.stem): json.loads(file.read_text(encoding="utf-8")) for file in self.state.glob("*.json")}
        self.page.write_text(completions_page(tables), encoding="utf-8")


def table_of(trainer: "SimRLTrainer") -> list[dict]:
    """The best and the worst completion of the first groups of the last step, with their scores."""
    chosen = []
    for group in trainer.sampled[:TABLE_GROUPS]:
        ranked = sorted(group.rollouts, key=lambda rollout: -rollout.score.trained.total)
        for rollout in {rollout.completion: rollout for rollout in (ranked[0], ranked[-1])}.values():
            prompt = trainer.prompts[group.row["row"]]
            chosen.append(
                {
                    "prompt": prompt.text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0],
                    "target": prompt.target,
                    "completion": rollout.completion,
                    "rewards": {name: reward.total for name, reward in rollout.score.rewards.items()},
                    "format": rollout.score.parts.format,
                    "content": rollout.score.trained.content,
                    "kept": trainer.teaches(group),
                }
            )
    return chosen


class Guard(TrainerCallback):
    """Stops a training whose reward collapses or whose KL blows up, and keeps the model of the last good checkpoint."""

    def __init__(self, settings: SimRL) -> None:
        self.settings = settings

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and not self._trouble(state.log_history, share=0.5):
            _keep_model(Path(args.output_dir) / f"checkpoint-{state.global_step}", step=state.global_step)

    def on_log(self, args, state, control, **kwargs) -> None:
        if not (trouble := self._trouble(state.log_history, share=1.0)):
            return
        kept = sorted(Path(args.output_dir).glob(f"{GOOD}*"))
        where = (
            f"the last good model is {kept[-1].resolve()}" if kept else "no checkpoint was good, the start was the best"
        )
        raise PipelineError(
            f"Sim-RL was stopped at step {state.global_step}: {trouble}; {where} (copy it before the next run). "
            "Lower learning_rate or raise beta; max_reward_drop and max_kl say when training stops",
            input_fault=False,
        )

    def _trouble(self, history: list[dict], *, share: float) -> str | None:
        """What is wrong, where the reward fell by `share` of what is allowed, or the KL reached it."""
        settings = self.settings
        # TRL logs None where a whole step was NaN.
        kls = [inf if entry["kl"] is None else entry["kl"] for entry in history if "kl" in entry]
        if settings.max_kl and kls and not kls[-1] <= settings.max_kl * share:
            return f"the KL to the start is {kls[-1]:.3g} nats a token"
        rewards = [entry["sampled_reward"] for entry in history if "sampled_reward" in entry]
        means = [fmean(rewards[end - WINDOW : end]) for end in range(WINDOW, len(rewards) + 1)]
        if settings.max_reward_drop and means and means[-1] < max(means) - settings.max_reward_drop * share:
            return f"the mean reward fell from {max(means):.3f} to {means[-1]:.3f}"
        return None


def _keep_model(checkpoint: Path, *, step: int) -> None:
    """The checkpoint's model without the optimiser, hard-linked where the file system can; older ones go."""
    kept = checkpoint.with_name(f"{GOOD}{step:06d}")
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for file in (file for pattern in MODEL_FILES for file in checkpoint.glob(pattern)):
        try:
            os.link(file, kept / file.name)
        except OSError:
            shutil.copyfile(file, kept / file.name)
    for older in set(checkpoint.parent.glob(f"{GOOD}*")) - {kept}:
        shutil.rmtree(older)


def hold_back(prompts: list[Prompt], *, settings: SimRL, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those kept back for the checks: none where no check will be made or too few would be left."""
    count = settings.check_prompts
    if settings.check_steps is None or settings.check_steps > settings.steps:
        return prompts, []
    if len(prompts) - count < settings.prompts_per_step:
        log.warning("%d prompts are too few to keep %d back: no check of exact match is made", len(prompts), count)
        return prompts, []
    back = set(sorted(range(len(prompts)), key=lambda i: digest_of(["check", seed, prompts[i].row_id]))[:count])
    trained_on = [prompt for index, prompt in enumerate(prompts) if index not in back]
    return trained_on, [prompts[index] for index in sorted(back)]


class HeldoutCheck(TrainerCallback):
    """Every `check_steps` steps: exact match of greedy answers to prompts kept back from training.

    Warns when the reward rose since the best check while answers were lost: what the reward counts is then no longer what was
    meant.
    """

    def __init__(self, trainer: "SimRLTrainer", prompts: list[Prompt], *, file: Path) -> None:
        self.trainer, self.prompts, self.file = trainer, prompts, file

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if not self.prompts or state.global_step % self.trainer.settings.check_steps:
            return
        exact = self._answers()
        self.trainer._metrics["train"]["heldout_exact_match"].append(fmean(exact))
        rewards = [rollout.score.trained.total for group in self.trainer.sampled for rollout in group.rollouts]
        if state.is_world_process_zero:
            earlier = {} if not self.file.is_file() else json.loads(self.file.read_text(encoding="utf-8"))
            checks = {step: check for step, check in earlier.items() if int(step) < state.global_step}
            checks[str(state.global_step)] = {"exact": exact, "reward": fmean(rewards)}
            write_json(self.file, checks)
            if warning := hacking(list(checks.values())):
                log.warning("step %d: %s", state.global_step, warning)

    def _answers(self) -> list[int]:
        model, settings = self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer.settings
        size = settings.prompts_per_step * settings.num_generations  # as many sequences as a step samples at once
        exact = []
        for start in range(0, len(self.prompts), size):
            batch = self.prompts[start : start + size]
            texts = [prompt.text for prompt in batch]
            limits = {"max_new_tokens": settings.max_new_tokens, "seed": self.trainer.args.seed}
            answers = generate(model, self.trainer.processing_class, texts, samples=1, temperature=0.0, **limits)
            exact += [
                int(exact_match(answer[0].text, prompt.target, prompt.tools))
                for answer, prompt in zip(answers, batch, strict=True)
            ]
        model.train()
        return exact


def hacking(checks: list[dict]) -> str | None:
    """The warning where the last check has a higher reward and clearly fewer exact answers than the best one before it.

    Clearly: of the prompts whose answer changed, more were lost than gained by two standard deviations of a fair coin.
    """
    if len(checks) < 2:
        return None
    *before, last = checks
    best = max(before, key=lambda check: sum(check["exact"]))
    lost = sum(was > now for was, now in zip(best["exact"], last["exact"], strict=True))
    gained = sum(was < now for was, now in zip(best["exact"], last["exact"], strict=True))
    if last["reward"] <= best["reward"] or lost - gained < max(2 * sqrt(lost + gained), 1):
        return None
    return (
        f"the reward rose from {best['reward']:.3f} to {last['reward']:.3f} while exact match on prompts kept back fell "
        f"from {fmean(best['exact']):.1%} to {fmean(last['exact']):.1%}: the model may have found a way around the reward; "
        "look at completions.html, raise beta or stop earlier"
    )
