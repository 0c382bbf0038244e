"""Defines the whole configuration: one YAML file per experiment, with every setting validated before anything starts.

A stage gets only the sections that it reads (`Config.slice`). A changed setting therefore changes the digest of the stages that read
it, and of no other. The values of the paper (arXiv 2602.03022) are those of the profiles `qwen3-*.yaml`; docs/paper.md has their sources.
"""

from typing import Any

from pydantic import Field, model_validator

from star.config.base import Section, canonical
from star.config.cluster import Cluster
from star.config.data import Data
from star.config.evaluation import Evaluate, Registry
from star.config.files import identity, inputs_in
from star.config.keep import Keep
from star.config.models import Architecture, Scratch, Student, Teacher
from star.config.plain_text import refusal
from star.config.safety import Safety
from star.config.study import Study
from star.config.task_secrets import HUB_TOKENS, S3_KEYS, TaskName
from star.config.teacher_signal import Rollout, TopK
from star.config.training import Distill, Precision, SimRL

# Section with an input -> the tasks that read it, besides the pre-flight.
READERS: dict[str, tuple[TaskName, ...]] = {
    "data": ("synthesize",),
    "teacher": ("refine-teacher", "evaluate"),
    "student": ("distill", "evaluate"),
    "evaluate": ("evaluate",),
}


class Config(Section):
    """A whole experiment."""

    name: str = Field("star", min_length=1, description="Name of the MLflow run")
    seed: int = Field(7, description="Random seed of data generation, training and sampling")
    max_prompt_tokens: int = Field(
        5120, ge=16, description="Most tokens in a training prompt; rows with longer prompts are left out and counted"
    )
    precision: Precision = Field(
        "auto",
        description="Number format in which models compute: `bf16`, `fp32`, or `auto`, which is bf16 on GPUs that have it, and on "
        "CPUs that have instructions for it for models that are at least 256 wide; else fp32. Trained weights are kept in fp32",
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
    safety: Safety = Safety()
    keep: Keep = Keep()
    study: Study | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_secret(cls, content: Any) -> Any:
        if isinstance(content, dict) and (reason := refusal(content)):
            raise ValueError(reason)
        return content

    @model_validator(mode="after")
    def _scratch_is_described(self) -> "Config":
        if self.scratch is None and any(
            isinstance(base, Architecture) for base in (self.teacher.base, self.student.base)
        ):
            raise ValueError("a base to build from scratch needs the section `scratch`: give `vocab_size` and `warmup`")
        return self

    def vllm_stages(self) -> dict[str, int]:
        """The stages that run vLLM in their own processes -> the number of accelerators that each splits the model over."""
        settings = {
            "refine-teacher": self.teacher.refine.vllm if self.teacher.refine else None,
            "rollout": self.rollout.vllm,
            "extract-topk": self.topk.vllm,
            "refine": self.refine.vllm,
            "evaluate": self.evaluate.vllm,
        }
        return {stage: vllm.tensor_parallel_size for stage, vllm in settings.items() if vllm}

    def adapters_come_first(self, model: Teacher | Student) -> bool:
        """Whether the first training of a base trains adapters alone, which leave its embeddings and its head as they are."""
        if isinstance(model, Teacher):
            first = model.sft or model.refine
            return first is not None and first.lora is not None
        return self.distill.lora is not None and model.heal is None

    @property
    def cluster_of_tasks(self) -> Cluster:
        """The section `cluster`, in which the tasks that fetch an input from S3 or the hub are among those that get its keys."""
        inputs = [(task, source) for name, source in inputs_in(self) for task in READERS[name.partition(".")[0]]]
        from_s3 = {task for task, source in inputs if source.is_in_s3}
        from_hub = {task for task, source in inputs if source.is_on_hub}
        return self.cluster.with_readers(from_s3, S3_KEYS).with_readers(from_hub, HUB_TOKENS)

    def slice(self, sections: tuple[str, ...]) -> str:
        """Returns the named sections as canonical JSON, whose digest is a stage's config digest.

        Of an input it has the content alone: where it lies changes no result.
        """
        return canonical(identity(self.model_dump(mode="json", include=set(sections))))

    def with_places(self, sections: tuple[str, ...]) -> str:
        """`slice`, and where the inputs are: what reads the configuration back."""
        return canonical(self.model_dump(mode="json", include=set(sections)))

    def for_stage(self, sections: tuple[str, ...]) -> str:
        """`with_places`, and other limits than the default ones: what another process needs to run a stage under this configuration."""
        return self.with_places((*sections, "safety") if self.safety != Safety() else sections)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Reads the configuration back from some of its sections. The others get their defaults; the stage does not read them."""
        return cls.model_validate_json(text)
