"""Defines the settings of the three kinds of training: supervised, distillation (section `distill`), and Sim-RL (section `refine`)."""

from fractions import Fraction
from math import ceil
from typing import Literal

from pydantic import Field, model_validator

from star.config.base import Section

# Variable that halves every micro batch of a process. No setting: it changes no result but by rounding, so the fingerprint stays, and
# a training goes on from its checkpoint. The supervisor of a task sets it (star/cluster/supervisor.py).
HALF_MICRO_BATCH = "STAR_HALF_MICRO_BATCH"


# How models compute: star/modeling/precision.py has the rule of `auto`.
Precision = Literal["auto", "bf16", "fp32"]


def _require_whole_micro_batches(micro_batch_size: int | None, batch_size: int) -> None:
    if micro_batch_size and batch_size % micro_batch_size:
        raise ValueError(f"micro_batch_size {micro_batch_size} must divide the batch of {batch_size}")


class Schedule(Section):
    """How the learning rate moves. By default as in the paper's trainings: OpenRLHF's schedule."""

    kind: Literal["cosine", "stable-decay"] = Field(
        "cosine",
        description="After the warm-up: `cosine` falls to the last step, `stable-decay` stays at the peak and falls in a straight line "
        "in the last 30% of the steps",
    )
    warmup: float = Field(
        0.03, ge=0, le=0.5, description="Share of the steps in which the learning rate rises to its peak"
    )
    final: float = Field(0.1, ge=0, le=1, description="Learning rate of the last step, as a share of the peak")


class Optimisation(Section):
    """What supervised training and Sim-RL have in common: how long they are, and how their optimiser steps."""

    steps: int | None = Field(None, ge=1, description="Number of optimiser steps; give this or `epochs`")
    epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Number of passes over the training set, in place of `steps`; a share of one, such as 0.5, too",
    )
    schedule: Schedule = Schedule()
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of AdamW's mean of squared gradients")

    @model_validator(mode="after")
    def _has_one_length(self) -> "Optimisation":
        if self.steps is None and self.epochs is None:
            raise ValueError("how long is it? Give `steps` or `epochs`")
        if self.steps is not None and self.epochs is not None:
            raise ValueError("`steps` and `epochs` both say how long it is: give one of them")
        return self

    def _count_steps(self, *, rounds_per_epoch: int, steps_per_round: int = 1) -> int:
        """`steps`, or those of the rounds that make `epochs`: the last round is whole, and there is at least one."""
        if self.epochs is None:
            assert self.steps is not None  # noqa: S101 - the validation requires one of the two
            return self.steps
        # Of the decimal number that is written: 0.1 of 30 is 3, and in binary a little more, which would round up to 4.
        return max(1, ceil(Fraction(str(self.epochs)) * rounds_per_epoch)) * steps_per_round


class Training(Optimisation):
    """A supervised training."""

    batch_size: int = Field(128, ge=1, description="Sequences per optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Sequences per forward pass; the whole batch by default"
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay")
    optimizer: Literal["adamw", "adafactor"] = Field(
        "adamw",
        description="Optimiser: AdamW, or Adafactor, whose state is a few numbers per row and column of a weight instead of "
        "8 bytes per parameter",
    )
    save_steps: int = Field(50, ge=1, description="Steps between checkpoints, from which a killed run resumes")

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "Training":
        _require_whole_micro_batches(self.micro_batch_size, self.batch_size)
        return self

    def count_steps(self, sequences: int) -> int:
        """Optimiser steps of the training on so many sequences. Of 100 in batches of 32, one epoch is 4 steps: the last has 4."""
        return self._count_steps(rounds_per_epoch=ceil(sequences / self.batch_size))


class Lora(Section):
    """Low-rank adapters, trained in place of all weights. The published model has them merged in."""

    rank: int = Field(64, ge=1, description="Rank of the adapters")
    alpha: int = Field(128, ge=1, description="The adapters' product is scaled by alpha / rank")


class FineTuning(Training):
    """A supervised training on the rows."""

    lora: Lora | None = Field(
        None,
        description="Train low-rank adapters; they are merged in before Sim-RL. By default all weights are trained",
    )


class Distill(Training):
    """The distillation loss (CKD or a baseline) and its training."""

    learning_rate: float = Field(3e-6, gt=0, description="Peak learning rate")
    kind: Literal["ce", "fkl", "rkl", "akl", "rskd", "ckd"] = Field(
        "ckd", description="Loss: CKD, or one of the baselines in the paper's comparison"
    )
    kd_ratio: float = Field(
        1.0, ge=0, le=1, description="Weight of the distillation loss; cross-entropy has the rest (1 - kd_ratio)"
    )
    top_m: int = Field(
        100, ge=1, description="Number of the student's most probable ids in which CKD looks for tail mass"
    )
    tail_weight: float = Field(10.0, ge=0, description="Weight of CKD's tail term, the paper's lambda")
    share_prompts: bool = Field(
        False,
        description="Keep the samples of a prompt together, so that a model at least 256 wide computes the prompt once for those in a "
        "micro batch: with long prompts and several samples a step takes a fraction of the time, and has fewer different prompts",
    )
    lora: Lora | None = Field(None, description="Train low-rank adapters; by default all weights are trained")


class VLLM(Section):
    """Rollouts by vLLM instead of the model's own generation."""

    mode: Literal["colocate", "server"] = Field(
        "colocate", description="Where vLLM runs: on the training GPUs, or as a server started with `vllm serve`"
    )
    server_url: str | None = Field(
        None, description="URL of the server in mode `server`, such as http://localhost:8000"
    )
    gpu_memory_utilization: float = Field(
        0.3, gt=0, le=1, description="Share of each GPU's memory that vLLM may use in mode `colocate`"
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="Number of GPUs that the model is split over in mode `colocate`"
    )

    @model_validator(mode="after")
    def _server_mode_has_a_url(self) -> "VLLM":
        if self.mode == "server" and self.server_url is None:
            raise ValueError("mode `server` needs `server_url`: give the server's URL")
        if self.mode != "server" and self.server_url is not None:
            raise ValueError(f"`server_url` has no effect in mode `{self.mode}`: set `mode: server`, or leave it out")
        return self


RewardName = Literal["similarity", "similarity-typed", "binary", "toolrl"]


class SimRL(Optimisation):
    """Sim-RL: GRPO on the similarity reward (section 3.3 of the paper)."""

    prompts_per_step: int = Field(16, ge=1, description="Prompts per optimiser step")
    num_generations: int = Field(8, ge=2, description="Rollouts per prompt")
    updates_per_rollout: int = Field(
        1,
        ge=1,
        description="Optimiser steps between samplings: so many times `prompts_per_step` prompts are sampled at once, and each step "
        "trains on its share of them, with PPO's clipping at 0.2; the official training has 8 steps of 16 prompts",
    )
    loss: Literal["token", "sequence"] = Field(
        "token",
        description="What the loss is the mean over: all tokens, so that long completions weigh more, or the means of the completions",
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="Completions per forward pass; the whole step by default"
    )
    learning_rate: float = Field(3e-7, gt=0, description="Peak learning rate of AdamW")
    beta: float = Field(1e-3, ge=0, description="Coefficient of the KL to the starting model")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of the rollouts")
    max_new_tokens: int = Field(512, ge=1, description="Most tokens in a rollout")
    save_steps: int = Field(20, ge=1, description="Steps between checkpoints, from which a killed run resumes")
    lora: Lora | None = Field(
        None,
        description="Train low-rank adapters, with which an 8B teacher fits one 80 GB card; by default all weights",
    )
    reward: RewardName = Field(
        "similarity",
        description="Reward that is trained on; it reads answers as the official code does. In `similarity-typed` types "
        'count (5 is not `"5"`), and the order of an object\'s keys does not',
    )
    log_rewards: tuple[RewardName, ...] = Field((), description="Further rewards to log; they do not affect training")
    keep_between: tuple[float, float] | None = Field(
        (0.01, 0.99),
        description="Dynamic filtering: a prompt's rollouts are kept if their mean content score lies strictly between "
        "these bounds and not all scores are equal; `null` keeps all",
    )
    max_refills: int = Field(
        8, ge=0, description="Most rounds per step in which new prompts replace those that the filter dropped"
    )
    table_steps: int = Field(20, ge=1, description="Steps between tables of sampled completions")
    max_reward_drop: float | None = Field(
        0.5,
        gt=0,
        description="Training stops when the mean reward (official reading) is this far below its best; `null` never stops",
    )
    max_kl: float | None = Field(
        1.0,
        gt=0,
        description="Training stops when the KL to the starting model exceeds this (nats per token); `null` never stops",
    )
    check_steps: int | None = Field(
        50,
        ge=1,
        description="Steps between checks of exact match on prompts that are not trained on; `null` never checks",
    )
    check_prompts: int = Field(64, ge=1, description="Number of prompts kept out of training for those checks")
    vllm: VLLM | None = Field(None, description="Generate the rollouts with vLLM; by default with transformers")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "SimRL":
        if self.keep_between is not None and not 0 <= self.keep_between[0] < self.keep_between[1] <= 1:
            raise ValueError("`keep_between` takes two numbers from 0 to 1, the lower one first")
        return self

    @model_validator(mode="after")
    def _micro_batches_fill_the_step(self) -> "SimRL":
        _require_whole_micro_batches(self.micro_batch_size, self.prompts_per_step * self.num_generations)
        return self

    @model_validator(mode="after")
    def _ends_and_checkpoints_are_between_rollouts(self) -> "SimRL":
        updates = self.updates_per_rollout
        for name, steps in (("steps", self.steps), ("save_steps", self.save_steps)):
            if steps is not None and steps % updates:
                # Or completions would be sampled for nothing, and would have to be kept with a checkpoint.
                raise ValueError(
                    f"{name} {steps} must be a multiple of updates_per_rollout {updates}, such as {ceil(steps / updates) * updates}"
                )
        return self

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts that are sampled at once, for the next `updates_per_rollout` steps."""
        return self.prompts_per_step * self.updates_per_rollout

    def count_steps(self, prompts: int) -> int:
        """Optimiser steps of the training on so many prompts.

        An epoch has whole rollouts: what is left of the prompts waits for the next epoch, which has another order. Prompts that
        replace those that the filter drops do not count.
        """
        rollouts = prompts // self.prompts_per_rollout
        return self._count_steps(rounds_per_epoch=rollouts, steps_per_round=self.updates_per_rollout)
