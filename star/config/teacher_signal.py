"""Defines the sections `rollout` and `topk`: how the teacher is sampled, and what is stored of its distribution."""

from typing import Self

from pydantic import Field, model_validator

from star.config.base import HttpUrl, Section

SERVER = (
    "URL of an OpenAI-compatible server with the teacher (`vllm serve`), such as http://host:8000/v1; "
    "by default transformers runs the teacher"
)
ENGINE = (
    "Run the teacher with vLLM in the stage's own process (`{}` for vLLM's defaults below); not together with `server`"
)


class Engine(Section):
    """vLLM in the stage's own process."""

    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of each GPU's memory that vLLM may use")
    tensor_parallel_size: int = Field(1, ge=1, description="Number of GPUs that the model is split over")


def _require_one_back_end(server: str | None, vllm: Engine | None) -> None:
    if server and vllm:
        raise ValueError(
            "`server` and `vllm` are two back ends: give one of them, or none for transformers (`vllm: null` undoes that of `extends`)"
        )


class Rollout(Section):
    """How the teacher is sampled on the training prompts."""

    prompts: int | None = Field(None, ge=1, description="Number of training prompts to sample; all by default")
    samples: int = Field(8, ge=1, description="Samples per prompt")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature")
    max_new_tokens: int = Field(512, ge=1, description="Most tokens in a sample; longer ones are dropped")
    cut_at: int | None = Field(
        None,
        ge=2,
        description="Tokens that are kept of a longer sample, the last of them replaced by the end token; by default samples are "
        "not cut",
    )
    batch_size: int = Field(64, ge=1, description="Prompts per generation batch")
    min_reward: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Least similarity reward (official reading) of a kept sample against the row's answer; no limit by default",
    )
    retries: int = Field(1, ge=0, description="Most times that a rejected sample is drawn again")
    server: HttpUrl | None = Field(None, description=SERVER)
    vllm: Engine | None = Field(None, description=ENGINE)

    @model_validator(mode="after")
    def _one_back_end(self) -> Self:
        _require_one_back_end(self.server, self.vllm)
        return self

    @model_validator(mode="after")
    def _cut_can_happen(self) -> Self:
        if self.cut_at is not None and self.cut_at >= self.max_new_tokens:
            raise ValueError(
                f"`cut_at` {self.cut_at} cuts nothing, because no sample has more than `max_new_tokens` {self.max_new_tokens}: raise "
                "`max_new_tokens`, or set `cut_at: null`"
            )
        return self

    @property
    def kept_tokens(self) -> int:
        """Most tokens in a sequence's completion."""
        return self.cut_at or self.max_new_tokens


class TopK(Section):
    """What is stored of the teacher's distribution at each completion token."""

    top_k: int = Field(100, ge=1, description="Number of most probable ids stored per token")
    batch_tokens: int = Field(16384, ge=1, description="Prompt and completion tokens per forward pass")
    server: HttpUrl | None = Field(None, description=SERVER)
    vllm: Engine | None = Field(None, description=ENGINE)

    @model_validator(mode="after")
    def _one_back_end(self) -> Self:
        _require_one_back_end(self.server, self.vllm)
        return self
