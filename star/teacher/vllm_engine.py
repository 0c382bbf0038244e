"""Runs a model with vLLM in this process, on a GPU node that has it.

The teacher gives samples and top-k log-probs, each model of an evaluation its answers.

Shapes: T completion tokens, K teacher ids per token.
"""

from collections.abc import Sequence as AbstractSequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from star.chat import prompt_opening
from star.config.teacher_signal import Engine
from star.errors import InputError
from star.modeling.generation import Sample, Sequence
from star.teacher.openai_server import completion_top_k, sample_with_end_token


class TeacherEngine:
    """vLLM with the model of a folder, or of the hub.

    Args:
        max_logprobs: the largest k that `top_k` may be called with.

    Raises:
        InputError: vLLM is not installed.
    """

    def __init__(self, model: Path | str, settings: Engine, *, max_logprobs: int = 1) -> None:
        try:
            import vllm
        except ImportError as error:
            raise InputError(
                f"`vllm` is set and vLLM cannot be imported ({error}): use the image of target `vllm`, "
                "install star-distill[vllm] on this GPU node, or remove `vllm` from the profile"
            ) from error
        self._sampling = vllm.SamplingParams
        self._engine = vllm.LLM(
            model=str(model), max_logprobs=max_logprobs, trust_remote_code=False, **settings.model_dump()
        )

    def generate(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[str],
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> list[list[Sample]]:
        """Samples `samples` completions per prompt, like `star.modeling.generation.generate`."""
        settings = [
            self._sampling(
                n=samples,
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=seed + index * samples,  # so that a repeated prompt gets different samples
                top_p=1.0,
                top_k=-1,
                stop_token_ids=[tokenizer.eos_token_id],
                skip_special_tokens=False,
            )
            for index in range(len(prompts))
        ]
        outputs = self._run(tokenizer(prompts, add_special_tokens=False)["input_ids"], settings)
        return [
            [
                sample_with_end_token(
                    completion.token_ids,
                    tokenizer,
                    finished=completion.finish_reason == "stop",
                    opening=prompt_opening(prompt),
                )
                for completion in output.outputs
            ]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def top_k(
        self, sequences: list[Sequence], *, k: int, excluded_ids: AbstractSequence[int] = ()
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns per sequence the k likeliest ids of each completion token and their log-probs, as `completion_top_k`."""
        # Only the log-probs of the prompt are used; one token is the least that vLLM generates.
        settings = self._sampling(temperature=0.0, max_tokens=1, prompt_logprobs=k)
        outputs = self._run([sequence.prompt_ids + sequence.completion_ids for sequence in sequences], settings)
        results = []
        for sequence, output in zip(sequences, outputs, strict=True):
            # vLLM has None in the place of the first token, which nothing predicts.
            positions = [
                {token: entry.logprob for token, entry in (position or {}).items()}
                for position in output.prompt_logprobs
            ]
            results.append(completion_top_k(positions, sequence, k=k, source="vLLM", excluded_ids=excluded_ids))
        return results

    def close(self) -> None:
        """Ends vLLM's process, so that its memory is free for the next model."""
        self._engine.llm_engine.engine_core.shutdown()

    def _run(self, prompts: list[list[int]], settings: Any) -> list[Any]:
        return self._engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
