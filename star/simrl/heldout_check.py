"""Checks during a Sim-RL training, on prompts held out of it, that a rising reward means better answers.

A model may learn to raise the reward without answering better (reward hacking). Exact match cannot be raised that way,
and on prompts that are never trained on it cannot be memorised. These prompts are taken from the training rows; the
held-out split, on which the evaluation measures, is not touched.
"""

import json
import logging
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from star.config.training import SimRL
from star.hashing import digest_of
from star.json_file import write_json
from star.modeling.generation import generate
from star.modeling.prompts import Prompt
from star.rewards.similarity import exact_match

if TYPE_CHECKING:
    from star.simrl.trainer import SimRLTrainer

logger = logging.getLogger(__name__)


def hold_out_prompts(prompts: list[Prompt], *, settings: SimRL, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Splits prompts into those to train on and those for the checks.

    The choice depends on the seed and the row ids only. Nothing is held out where no check is due within the training,
    or where too few prompts would be left to train on.

    Returns:
        (training prompts, check prompts), both in the given order.
    """
    count = settings.check_prompts
    if settings.check_steps is None or settings.check_steps > settings.count_steps(len(prompts)):
        return prompts, []
    if len(prompts) - count < settings.prompts_per_rollout:
        logger.warning("%d prompts are too few to hold %d out: exact match is not checked", len(prompts), count)
        return prompts, []
    # By a hash of the row id, so that the order of the rows does not matter.
    held_out = set(sorted(range(len(prompts)), key=lambda i: digest_of(["check", seed, prompts[i].row_id]))[:count])
    training_prompts = [prompt for index, prompt in enumerate(prompts) if index not in held_out]
    return training_prompts, [prompts[index] for index in sorted(held_out)]


class HeldoutCheck(TrainerCallback):
    """Measures exact match of greedy answers to the check prompts every `check_steps` steps; warns of reward hacking.

    Args:
        prompts: the check prompts; without any, nothing is done.
        file: JSON file of all checks by step. A resumed training reads it, and drops the checks from after its
            checkpoint.
    """

    def __init__(self, trainer: "SimRLTrainer", prompts: list[Prompt], *, file: Path) -> None:
        self.trainer, self.prompts, self.file = trainer, prompts, file

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Runs the check when it is due, on every rank; rank 0 writes the file."""
        if not self.prompts or state.global_step % self.trainer.settings.check_steps:
            return
        # On every rank: under FSDP a forward pass needs all of them. Only rank 0 writes.
        exact = self._exact_matches()
        # TRL averages and logs these values at the next logged step.
        self.trainer._metrics["train"]["heldout_exact_match"].append(fmean(exact))
        rewards = [rollout.score.trained.total for group in self.trainer.sampled_groups for rollout in group.rollouts]
        if state.is_world_process_zero:
            earlier = {} if not self.file.is_file() else json.loads(self.file.read_text(encoding="utf-8"))
            checks = {step: check for step, check in earlier.items() if int(step) < state.global_step}
            checks[str(state.global_step)] = {"exact": exact, "reward": fmean(rewards)}
            write_json(self.file, checks)
            if warning := describe_reward_hacking(list(checks.values())):
                logger.warning("step %d: %s", state.global_step, warning)

    def _exact_matches(self) -> list[int]:
        """1 per check prompt whose greedy answer is exact, else 0."""
        model, settings = self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer.settings
        # As many sequences as are trained on at once: a rollout of several updates may have too many.
        batch_size = settings.micro_batch_size or settings.prompts_per_step * settings.num_generations
        exact = []
        for start in range(0, len(self.prompts), batch_size):
            batch = self.prompts[start : start + batch_size]
            # Around the whole sampling, so that bf16 weights are made of the trained ones once and not for every token.
            with self.trainer.accelerator.autocast():
                answers = generate(
                    model,
                    self.trainer.processing_class,
                    [prompt.text for prompt in batch],
                    samples=1,
                    temperature=0.0,
                    max_new_tokens=settings.max_new_tokens,
                    seed=self.trainer.args.seed,
                )
            exact += [
                int(exact_match(answer[0].text, prompt.target, prompt.tools))
                for answer, prompt in zip(answers, batch, strict=True)
            ]
        model.train()  # `generate` switched it to evaluation
        return exact


def describe_reward_hacking(checks: list[dict[str, Any]]) -> str | None:
    """The warning where the last check has a higher reward and clearly fewer exact answers than the best one before.

    "Clearly" is a sign test: among the prompts whose answer changed, the losses exceed the gains by at least two
    standard deviations of a fair coin. With 9 lost and 1 gained it warns, because 9 - 1 = 8 >= 2 * sqrt(10) = 6.3.

    Args:
        checks: per check, `exact` (1 or 0 per prompt) and the mean `reward` of its step, in the order of steps.
    """
    if len(checks) < 2:
        return None
    *before, last = checks
    # Against the best check and not the one before: a slow decline would pass every such comparison.
    best = max(before, key=lambda check: sum(check["exact"]))
    lost = sum(was > now for was, now in zip(best["exact"], last["exact"], strict=True))
    gained = sum(was < now for was, now in zip(best["exact"], last["exact"], strict=True))
    if last["reward"] <= best["reward"] or lost - gained < max(2 * sqrt(lost + gained), 1):
        return None
    return (
        f"the reward (official reading) rose from {best['reward']:.3f} to {last['reward']:.3f} while exact match on "
        f"held-out prompts fell from {fmean(best['exact']):.1%} to {fmean(last['exact']):.1%}: the model may be exploiting the reward; "
        "read completions.html, raise beta or stop earlier"
    )
