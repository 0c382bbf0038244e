"""Typed configuration: one YAML file an experiment, every setting validated before anything starts.

A stage sees only its own sections (`Config.slice`), so a changed setting changes the digest of the stages that read it and of no other.
The defaults are the paper's values (arXiv 2602.03022, section 4 and appendix); a profile in `configs/` states what differs.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from star.config.base import Section
from star.config.cluster import Cluster
from star.config.files import PACKAGED, File, ModelFolder, _model_folder
from star.config.row_kinds import ROW_KIND_WEIGHTS


class Data(Section):
    """What the training and held-out rows are made of."""

    tools: File = Field(
        PACKAGED + "tools.json",
        validate_default=True,
        description="tools to generate rows for; `star:` stands for the packaged files",
    )
    seed_data: File | None = Field(
        None, description="rows of your own (messages + tools, JSONL), imported, cleaned and mixed in"
    )
    generated_rows: int = Field(6000, ge=0, description="rows the offline generator makes")
    heldout_rows: int = Field(300, ge=1, description="rows kept back for evaluation")
    split: Literal["row", "tool"] = Field(
        "row",
        description="what is held out: rows of any tool, or tools with all their rows, so that held-out tools are new",
    )
    tools_per_prompt: int = Field(
        4, ge=1, description="tools a generated prompt shows, at most (a call needs its own, so never fewer)"
    )
    kinds: dict[str, Annotated[float, Field(ge=0)]] = Field(
        ROW_KIND_WEIGHTS,
        description="weight of each kind of generated row; 0 leaves a kind out",
    )
    masked: float = Field(
        0.0, ge=0, le=1, description="share of generated rows whose functions and parameters get random names (Hammer)"
    )


class Architecture(Section):
    """Sizes of a Qwen3 model built from scratch."""

    hidden_size: int = Field(ge=8)
    intermediate_size: int = Field(ge=8)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=8)


class Training(Section):
    """One supervised training, in steps of whole batches."""

    steps: int = Field(ge=1)
    batch_size: int = Field(128, ge=1, description="sequences an optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="sequences a forward pass; the whole batch when not given"
    )
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    save_steps: int = Field(50, ge=1, description="steps between checkpoints, from which a killed run resumes")

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "Training":
        return _whole_micro_batches(self, self.batch_size)


class Lora(Section):
    """Low-rank adapters in place of a training of all weights; what is published has them merged in."""

    rank: int = Field(64, ge=1)
    alpha: int = Field(128, ge=1, description="the adapters' product is scaled by alpha / rank")


class VLLM(Section):
    """Rollouts by vLLM instead of the model's own generation."""

    mode: Literal["colocate", "server"] = Field(
        "colocate", description="on the training GPUs, or a server started with `vllm serve`"
    )
    server_url: str | None = Field(None, description="of the server, like http://localhost:8000")
    gpu_memory_utilization: float = Field(0.3, gt=0, le=1, description="share of a GPU's memory, where colocated")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs a model is split over, where colocated")

    @model_validator(mode="after")
    def _server_has_an_address(self) -> "VLLM":
        if (self.mode == "server") != (self.server_url is not None):
            raise ValueError("`server_url` belongs to mode `server`, which needs it")
        return self


RewardName = Literal["similarity", "binary", "toolrl"]


class SimRL(Section):
    """GRPO on the similarity reward (method: section 3.3)."""

    steps: int = Field(ge=1)
    prompts_per_step: int = Field(16, ge=1)
    num_generations: int = Field(8, ge=2, description="rollouts a prompt")
    micro_batch_size: int | None = Field(
        None, ge=1, description="completions a forward pass; the whole step when not given"
    )
    learning_rate: float = Field(3e-7, gt=0)
    beta: float = Field(1e-3, ge=0, description="KL coefficient")
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(512, ge=1)
    save_steps: int = Field(20, ge=1)
    lora: Lora | None = Field(None, description="train adapters; an 8B teacher then fits one 80 GB card")
    reward: RewardName = Field("similarity", description="what is trained on: similarity, binary or toolrl")
    log_rewards: tuple[RewardName, ...] = Field((), description="rewards logged beside the trained one")
    keep_between: tuple[float, float] | None = Field(
        (0.01, 0.99),
        description="dynamic filtering: a prompt's rollouts are kept when their mean content score lies strictly between "
        "these and not all are the same; none keeps all",
    )
    max_refills: int = Field(8, ge=0, description="rounds of new prompts a step draws to replace dropped ones, at most")
    table_steps: int = Field(20, ge=1, description="steps between two tables of sampled completions")
    max_reward_drop: float | None = Field(
        0.5, gt=0, description="training stops when the mean reward falls this far below its best"
    )
    max_kl: float | None = Field(
        1.0, gt=0, description="training stops when the KL to the start exceeds this (nats a token)"
    )
    check_steps: int | None = Field(
        50,
        ge=1,
        description="steps between two checks of exact match on prompts kept back from training; none checks never",
    )
    check_prompts: int = Field(64, ge=1, description="prompts kept back for those checks")
    vllm: VLLM | None = Field(None, description="vLLM makes the rollouts where this is given")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "SimRL":
        if self.keep_between is not None and not 0 <= self.keep_between[0] < self.keep_between[1] <= 1:
            raise ValueError("`keep_between` takes two numbers from 0 to 1, the lower one first")
        return self

    @model_validator(mode="after")
    def _micro_batches_fill_the_step(self) -> "SimRL":
        return _whole_micro_batches(self, self.prompts_per_step * self.num_generations)


def _whole_micro_batches(settings: Any, batch_size: int) -> Any:
    if settings.micro_batch_size and batch_size % settings.micro_batch_size:
        raise ValueError(f"micro_batch_size {settings.micro_batch_size} must divide the batch of {batch_size}")
    return settings


class Scratch(Section):
    """How models are built here instead of downloaded: a copy warm-up plays the part of pre-training."""

    vocab_size: int = Field(ge=300, description="of the tokenizer trained on the rows")
    warmup: Training
    warmup_span: int = Field(12, ge=2, description="tokens of the sequence that the warm-up has the model repeat")


Base = Annotated[
    ModelFolder | Architecture | str,
    BeforeValidator(_model_folder),
    Field(description="a Hugging Face id, a folder, or the sizes of a model to build from scratch"),
]


def _refinement(value: Any) -> Any:
    return {"none": None, "sim-rl": {"steps": 500}}.get(value, value) if isinstance(value, str) else value


class Teacher(Section):
    """The large model and what is done to it before it teaches."""

    base: Base = "Qwen/Qwen3-8B"
    revision: str | None = Field(None, description="commit of the Hugging Face repository")
    sft: Training | None = Field(
        None, description="supervised training on the rows first; a base from scratch needs it"
    )
    refine: Annotated[SimRL | None, BeforeValidator(_refinement)] = Field(
        None, description="`none`, `sim-rl` (500 steps with the defaults), or Sim-RL with settings of its own"
    )


class Student(Section):
    """The small model that learns."""

    base: Base = "Qwen/Qwen3-0.6B"
    revision: str | None = Field(None, description="commit of the Hugging Face repository")


SERVER = "URL of an OpenAI-compatible server (`vllm serve`) with the teacher, such as http://host:8000/v1; without it transformers runs it"


class Engine(Section):
    """The teacher under vLLM in the stage's own process."""

    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of a GPU's memory")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs the teacher is split over")


ENGINE = "vLLM in the stage's own process (`{}` for its defaults), where it is installed; not together with `server`"


def _one_back_end(settings: Any) -> Any:
    if settings.server and settings.vllm:
        raise ValueError("`server` and `vllm` are two back ends: give one of them, or none for transformers")
    return settings


class Rollout(Section):
    """How the teacher is sampled on the training prompts."""

    prompts: int | None = Field(None, ge=1, description="training prompts to roll out; all of them when not given")
    samples: int = Field(8, ge=1, description="samples a prompt")
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(512, ge=1)
    batch_size: int = Field(64, ge=1, description="prompts a generation batch")
    min_reward: float | None = Field(
        None, ge=-1, le=1, description="samples with a lower similarity reward against the ground truth are dropped"
    )
    retries: int = Field(1, ge=0, description="times that samples which failed are drawn again, at most")
    server: str | None = Field(None, pattern="^https?://", description=SERVER)
    vllm: Engine | None = Field(None, description=ENGINE)

    _back_end = model_validator(mode="after")(_one_back_end)


class TopK(Section):
    """What is stored of the teacher's distribution."""

    top_k: int = Field(100, ge=1)
    batch_tokens: int = Field(16384, ge=1, description="prompt and completion tokens a forward pass")
    server: str | None = Field(None, pattern="^https?://", description=SERVER)
    vllm: Engine | None = Field(None, description=ENGINE)

    _back_end = model_validator(mode="after")(_one_back_end)


class Distill(Training):
    """CKD: the loss and its training."""

    learning_rate: float = Field(3e-6, gt=0)
    kind: Literal["ce", "fkl", "rkl", "akl", "rskd", "ckd"] = Field(
        "ckd", description="the loss: CKD, or a baseline the paper compares"
    )
    kd_ratio: float = Field(1.0, ge=0, le=1, description="share of the distillation loss; the rest is cross-entropy")
    top_m: int = Field(100, ge=1, description="the student's most probable ids that are searched for tail mass")
    tail_weight: float = Field(10.0, ge=0, description="lambda of CKD")
    lora: Lora | None = Field(None, description="train adapters; without it all of the student's weights")


Suite = Literal["heldout", "bfcl", "acebench"]


class Evaluate(Section):
    """What the models are asked, and how they answer."""

    suites: tuple[Suite, ...] = Field(
        ("heldout",), description="heldout (the gate needs it), bfcl (the Berkeley harness), acebench (its normal part)"
    )
    limit: int | None = Field(
        None, ge=1, description="entries of each category of bfcl and acebench; all of them when not given"
    )
    bfcl_categories: tuple[str, ...] | None = Field(
        None, min_length=1, description="of bfcl, those to run, without an overall score then; all 17 when not given"
    )
    acebench: str | None = Field(None, description="a checkout of ACEBench, for its suite")

    samples: int = Field(8, ge=1, description="samples a row, for pass@k and entropy")
    temperature: float = Field(1.0, gt=0)
    max_new_tokens: int = Field(512, ge=1)
    batch_size: int = Field(64, ge=1, description="rows a generation batch")

    @model_validator(mode="after")
    def _suites_have_what_they_need(self) -> "Evaluate":
        if not self.suites or len(set(self.suites)) < len(self.suites):
            raise ValueError("`suites` names at least one suite, and none twice")
        if "acebench" in self.suites and self.acebench is None:
            raise ValueError("the suite acebench needs `acebench`: the path of a checkout of ACEBench")
        if self.bfcl_categories:
            from star.config.bfcl_categories import CATEGORIES  # a room above: looked into only where some are chosen

            if unknown := set(self.bfcl_categories) - set(CATEGORIES):
                raise ValueError(f"BFCL has no category {sorted(unknown)[0]}: choose from {', '.join(CATEGORIES)}")
        return self


class Gate(Section):
    """The bars a candidate must clear to become champion."""

    min_exact_match: float = Field(0.5, ge=0, le=1, description="share of held-out rows answered exactly, at least")
    max_format_errors: float = Field(0.05, ge=0, le=1, description="share of answers that cannot be parsed, at most")
    max_regression: float = Field(
        0.01,
        ge=0,
        description="below the champion's exact match or mean reward, or its exact match in a category, at most",
    )
    max_parameters: int | None = Field(None, ge=1, description="size of the model, at most")
    min_tokens_per_second: float | None = Field(None, gt=0, description="speed in the evaluation, at least")


class Registry(Section):
    """Where the student is registered, and what it takes to be champion."""

    model_name: str = Field("star", min_length=1, description="registered model in MLflow")
    license: str = Field("apache-2.0", pattern=r"^[\w.+-]+$", description="of the published model, in its card")
    gate: Gate = Gate()


class Config(Section):
    """A whole experiment."""

    name: str = Field("star", min_length=1, description="of the run in MLflow")
    seed: int = Field(7, description="of rows, trainings and samples")
    max_prompt_tokens: int = Field(
        5120, ge=16, description="rows with longer prompts are left out of training, and counted"
    )
    data: Data = Field(default_factory=Data)
    scratch: Scratch | None = None
    teacher: Teacher = Teacher()
    student: Student = Student()
    rollout: Rollout = Rollout()
    topk: TopK = TopK()
    distill: Distill = Distill(steps=1000)
    refine: SimRL = SimRL(steps=500)
    evaluate: Evaluate = Evaluate()
    registry: Registry = Registry()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _scratch_is_described(self) -> "Config":
        if self.scratch is None and any(
            isinstance(base, Architecture) for base in (self.teacher.base, self.student.base)
        ):
            raise ValueError("a base to build from scratch needs the section `scratch` (vocab_size, warmup)")
        return self

    def slice(self, sections: tuple[str, ...]) -> str:
        """The named sections as canonical JSON: what a stage is given, and what its digest is taken of."""
        content = self.model_dump(mode="json", include=set(sections))
        return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The configuration of a slice: sections that are not in it have their defaults and are not read by the stage."""
        return cls.model_validate_json(text)
