"""The teacher under vLLM in this process, on a GPU node that has it: sampling, and the top-k of given completions.

T completion tokens, K teacher ids a token.
"""

from pathlib import Path

import torch

from star.config.teacher_signal import Engine
from star.errors import InputError
from star.modeling.generation import Sample, Sequence
from star.teacher.openai_server import ended_sample, top_of_completion


class TeacherEngine:
    """vLLM with the model of a folder.

    Args:
        max_logprobs: of a prompt's token, at most; what `top_k` may be asked for.

    Raises:
        InputError: vLLM is not installed.
    """

    def __init__(self, teacher: Path, settings: Engine, *, max_logprobs: int = 1) -> None:
        try:
            import vllm
        except ImportError as error:
            raise InputError(
                f"`vllm` is set and vLLM cannot be imported ({error}): install it on this GPU node, or name a `server` that runs it"
            ) from error
        self._sampling = vllm.SamplingParams
        self._engine = vllm.LLM(
            model=str(teacher), max_logprobs=max_logprobs, trust_remote_code=False, **settings.model_dump()
        )

    def generate(
        self, tokenizer, prompts: list[str], *, samples: int, temperature: float, max_new_tokens: int, seed: int
    ) -> list[list[Sample]]:
        """What `star.modeling.generation.generate` does: `samples` completions for each prompt."""
        settings = [
            self._sampling(
                n=samples,
                temperature=temperature,
                max_tokens=max_new_tokens,
                seed=seed + place * samples,  # a prompt that stands there twice is drawn twice
                top_p=1.0,
                top_k=-1,
                stop_token_ids=[tokenizer.eos_token_id],
                skip_special_tokens=False,
            )
            for place in range(len(prompts))
        ]
        answers = self._ask(tokenizer(prompts, add_special_tokens=False)["input_ids"], settings)
        return [
            [ended_sample(made.token_ids, tokenizer, finished=made.finish_reason == "stop") for made in answer.outputs]
            for answer in answers
        ]

    def top_k(self, sequences: list[Sequence], *, k: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The k most probable ids of each completion position, [T, K], and their log-probabilities, falling."""
        settings = self._sampling(temperature=0.0, max_tokens=1, prompt_logprobs=k)
        answers = self._ask([sequence.prompt_ids + sequence.completion_ids for sequence in sequences], settings)
        found = []
        for sequence, answer in zip(sequences, answers, strict=True):
            positions = [
                {token: entry.logprob for token, entry in (position or {}).items()}
                for position in answer.prompt_logprobs
            ]
            found.append(top_of_completion(positions, sequence, k=k, source="vLLM"))
        return found

    def _ask(self, prompts: list[list[int]], settings) -> list:
        return self._engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
