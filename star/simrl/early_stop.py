"""Stops a Sim-RL training whose reward collapses or whose KL grows too large, and keeps the last good model.

The decision uses the trainer's log history only, which is part of every checkpoint, so a resumed training stops
at the same step.
"""

import shutil
from math import inf
from pathlib import Path
from statistics import fmean

from transformers import TrainerCallback

from star.config.training import SimRL
from star.errors import PipelineError
from star.folders.link import link_or_copy

REWARD_WINDOW = 5  # logged rewards per mean
GOOD_MODEL_PREFIX = "good-"  # name of the folder of the last good model, before its step
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")


class EarlyStop(TrainerCallback):
    """Raises PipelineError at the limits `max_reward_drop` and `max_kl`; keeps the last model within half of them."""

    def __init__(self, settings: SimRL) -> None:
        self.settings = settings

    def on_save(self, args, state, control, **kwargs) -> None:
        """Keeps the checkpoint's model if the training is well within the limits."""
        # Half of the limits: a model close to a collapse is not one to go back to.
        if state.is_world_process_zero and not self._find_collapse(state.log_history, limit_share=0.5):
            _keep_good_model(Path(args.output_dir) / f"checkpoint-{state.global_step}", step=state.global_step)

    def on_log(self, args, state, control, **kwargs) -> None:
        """Checks the limits at every logged step.

        Raises:
            PipelineError: a limit is exceeded; names the last good model.
        """
        if not (collapse := self._find_collapse(state.log_history, limit_share=1.0)):
            return
        # Steps are padded with zeros in the names, so the last name is the newest.
        kept = sorted(Path(args.output_dir).glob(f"{GOOD_MODEL_PREFIX}*"))
        where = (
            f"the last good model is {kept[-1].resolve()}"
            if kept
            else "no checkpoint was good, so the best model is the one it started from"
        )
        raise PipelineError(
            f"Sim-RL was stopped at step {state.global_step}: {collapse}; {where} (copy it before the next run). "
            "Lower learning_rate or raise beta; max_reward_drop and max_kl set when training stops",
            input_fault=False,
        )

    def _find_collapse(self, history: list[dict], *, limit_share: float) -> str | None:
        """What collapsed: the reward fell, or the KL rose, by more than `limit_share` of its limit.

        None where neither did.
        """
        settings = self.settings
        # TRL logs None where a whole step was NaN.
        kls = [inf if entry["kl"] is None else entry["kl"] for entry in history if "kl" in entry]
        # Written with `not`, so that a KL of NaN counts as too large.
        if settings.max_kl and kls and not kls[-1] <= settings.max_kl * limit_share:
            return f"the KL to the start is {kls[-1]:.3g} nats per token"
        # The mean over a window: single steps vary with their prompts.
        rewards = [entry["sampled_reward"] for entry in history if "sampled_reward" in entry]
        means = [fmean(rewards[end - REWARD_WINDOW : end]) for end in range(REWARD_WINDOW, len(rewards) + 1)]
        if settings.max_reward_drop and means and means[-1] < max(means) - settings.max_reward_drop * limit_share:
            return f"the mean reward (official reading) fell from {max(means):.3f} to {means[-1]:.3f}"
        return None


def _keep_good_model(checkpoint: Path, *, step: int) -> None:
    """Keeps a checkpoint's model without the optimiser, hard-linked where the file system can; removes older ones."""
    kept = checkpoint.with_name(f"{GOOD_MODEL_PREFIX}{step:06d}")
    # A resumed training may save the same step again.
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    # A hard link costs no space, and survives when the trainer deletes the checkpoint.
    for file in (file for pattern in MODEL_FILES for file in checkpoint.glob(pattern)):
        link_or_copy(file, kept / file.name)
    # Removed last, so that a kill leaves a good model.
    for older in set(checkpoint.parent.glob(f"{GOOD_MODEL_PREFIX}*")) - {kept}:
        shutil.rmtree(older)
