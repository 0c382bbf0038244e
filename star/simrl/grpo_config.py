"""Makes TRL's arguments of the settings."""

import importlib.util
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from star import distributed
from star.config.training import SimRL
from star.errors import InputError
from star.modeling.training import common_arguments

# TRL's names. `dapo` divides by the number of tokens in the whole batch, so that all tokens weigh alike. The official
# training divides by those of a micro batch of two completions, in which a short one's tokens weigh more.
LOSSES = {"token": "dapo", "sequence": "grpo"}
CLIPPING = 0.2  # of the ratio to the probability when it was sampled: OpenRLHF's default


def grpo_config(
    settings: SimRL, *, folder: Path, seed: int, bf16: bool, prompts: int, longest_prompt: int
) -> GRPOConfig:
    """TRL's arguments for this process, one of `WORLD_SIZE` ranks. A group is never split between processes.

    Args:
        prompts: those of the training set, of which epochs are counted.
        bf16: whether forward and backward passes compute in bf16.
        longest_prompt: its tokens; vLLM reserves memory for one sequence of this length with a completion.

    Raises:
        InputError: prompts_per_step is not a multiple of the processes, or vLLM is set but not installed.
    """
    processes = distributed.world_size()
    if settings.prompts_per_step % processes:
        raise InputError(
            f"prompts_per_step = {settings.prompts_per_step} cannot be shared by {processes} processes: take a multiple"
        )
    common = common_arguments(
        settings,
        folder=folder,
        seed=seed,
        bf16=bf16,
        batch_size=settings.prompts_per_step * settings.num_generations,
        steps=settings.count_steps(prompts),
        logged_with=settings.updates_per_rollout,
    )
    return GRPOConfig(
        **common,
        **_vllm_arguments(settings, longest_prompt=longest_prompt),
        num_generations=settings.num_generations,
        beta=settings.beta,
        temperature=settings.temperature,
        max_completion_length=settings.max_new_tokens,
        # Only the first reward trains; TRL logs the others.
        reward_weights=[1.0] + [0.0] * (len(reward_names(settings)) - 1),
        loss_type=LOSSES[settings.loss],
        scale_rewards="group",
        # TRL's "steps" are forward passes. With more than those of one optimiser step it computes the probabilities of the
        # sampled tokens once, before the first step.
        steps_per_generation=common["gradient_accumulation_steps"] * settings.updates_per_rollout,
        epsilon=CLIPPING,
        # A ratio of probabilities for each token, and none for the completion. Only so the KL term is without bias.
        importance_sampling_level="token",
        use_bias_correction_kl=True,
        weight_decay=0.0,  # OpenRLHF's default
    )


def _vllm_arguments(settings: SimRL, *, longest_prompt: int) -> dict[str, Any]:
    if settings.vllm is None:
        return {}
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "the setting vllm needs the package vllm, which is not installed: use the image of target `vllm`, install "
            "star-distill[vllm], or remove `vllm` from the profile"
        )
    return {
        "use_vllm": True,
        "vllm_mode": settings.vllm.mode,
        "vllm_server_base_url": settings.vllm.server_url,
        "vllm_gpu_memory_utilization": settings.vllm.gpu_memory_utilization,
        "vllm_tensor_parallel_size": settings.vllm.tensor_parallel_size,
        # Off, as in the official training. By default TRL leaves out a completion whose probability here is more than three
        # times that in vLLM, and weighs the others by the quotient.
        "vllm_importance_sampling_correction": False,
        # By default the model's whole context, 40,960 tokens for Qwen3: 6 GB of an 8B model's cache for each GPU.
        "vllm_max_model_length": longest_prompt + settings.max_new_tokens,
    }


def reward_names(settings: SimRL) -> list[str]:
    """The trained reward first, then those that are only logged."""
    return list(dict.fromkeys([settings.reward, *settings.log_rewards]))
