"""Orders the prompts of a Sim-RL training: another order in each epoch, which a resumed training finds again."""

from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler


class SeedOfEpoch(TrainerCallback):
    """Seeds TRL's sampler at the beginning of each epoch with the training's seed and the epoch's number.

    TRL seeds it once, and it draws the orders of all epochs one after the other. So a training that resumed within the second
    epoch would go on in the order of the first.
    """

    def __init__(self, sampler: RepeatSampler, *, seed: int) -> None:
        self.sampler, self.seed = sampler, seed

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Seeds the sampler; the first epoch has the order that TRL gives it."""
        self.sampler.generator.manual_seed(self.seed + int(state.epoch or 0))  # within an epoch it is a fraction
