"""Defines the sections `teacher`, `student` and `scratch`: where the models come from, and how the teacher is prepared."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from star.config.base import Section
from star.config.files import GgufFile, ModelFolder, to_model_folder
from star.config.training import FineTuning, SimRL, Training


class Architecture(Section):
    """Sizes of a Qwen3 model built from scratch."""

    hidden_size: int = Field(ge=8, description="Width of the hidden states")
    intermediate_size: int = Field(ge=8, description="Width of the feed-forward layers")
    num_hidden_layers: int = Field(ge=1, description="Number of layers")
    num_attention_heads: int = Field(ge=1, description="Number of query heads per layer")
    num_key_value_heads: int = Field(ge=1, description="Number of key and value heads per layer")
    head_dim: int = Field(ge=8, description="Width of one attention head")


class Scratch(Section):
    """How a model is built from scratch instead of downloaded: a short training on copying replaces pre-training."""

    vocab_size: int = Field(ge=300, description="Vocabulary size of the tokenizer that is trained on the rows")
    warmup: Training = Field(description="Training on copying a random sequence of tokens")
    warmup_span: int = Field(12, ge=2, description="Length in tokens of the sequence to copy")

    @model_validator(mode="after")
    def _warmup_is_counted_in_steps(self) -> "Scratch":
        if self.warmup.steps is None:
            raise ValueError(
                "`warmup` has no set of rows to pass over, because each is drawn for its step: give `steps`"
            )
        return self


Base = Annotated[
    ModelFolder | GgufFile | Architecture | str,
    BeforeValidator(to_model_folder),
    Field(
        description="Base model: a Hugging Face id, a model folder written as a path (`./NAME`) or as `s3://bucket/folder`, a GGUF file "
        "(`NAME.gguf`, also in S3), or the sizes of a model to build from scratch"
    ),
]

ChatTemplate = Literal["auto", "own", "qwen3"]

REVISION = "Commit of the base's Hugging Face repository; a profile that extends this one with another base does not inherit it"


def _refuse_revision(base: object, revision: str | None) -> None:
    """Raises ValueError for a revision of a base that has none: what a folder or a file holds is its own version."""
    if revision is not None and not isinstance(base, str):
        raise ValueError("`revision` is a commit of a model of the hub, and this base is none: leave it out")


def _expand_refine_shorthand(value: object) -> object:
    return {"none": None, "sim-rl": {"steps": 500}}.get(value, value) if isinstance(value, str) else value


class Teacher(Section):
    """The large model, and how it is trained before it teaches."""

    base: Base = "Qwen/Qwen3-8B"
    revision: str | None = Field(None, description=REVISION)
    chat_template: ChatTemplate = Field(
        "auto",
        description="Chat template of a pretrained base: `own`, `qwen3` (STAR's), or `auto`: its own where that shows tools and writes "
        "calls as STAR reads them, else STAR's",
    )
    open_think: bool = Field(
        False,
        description="End every prompt with an opened `<think>`, as the paper does, so that models go on from there; teacher and "
        "student alike",
    )
    add_format_tokens: bool = Field(
        False,
        description="Add the tags of reasoning and calls, and those of turns, as single tokens to a pretrained base that lacks them; "
        "teacher and student alike",
    )
    sft: FineTuning | None = Field(
        None, description="Supervised training on the rows, before Sim-RL; a base from scratch needs it"
    )
    refine: Annotated[SimRL | None, BeforeValidator(_expand_refine_shorthand)] = Field(
        None, description="Sim-RL of the teacher: `none`, `sim-rl` (500 steps, other settings by default), or settings"
    )

    @model_validator(mode="after")
    def _settings_fit_the_base(self) -> "Teacher":
        _refuse_revision(self.base, self.revision)
        if isinstance(self.base, Architecture) and (self.chat_template != "auto" or self.add_format_tokens):
            raise ValueError(
                "`chat_template` and `add_format_tokens` are for a pretrained base, and one from scratch has STAR's template and tags: "
                "leave them out (`auto` and `false` undo those of `extends`)"
            )
        return self


class Student(Section):
    """The small model that is trained."""

    base: Base = "Qwen/Qwen3-0.6B"
    revision: str | None = Field(None, description=REVISION)
    layers: int | None = Field(
        None,
        ge=2,
        description="Number of the base's layers that are kept, spread evenly from the first to the last; all by default",
    )
    heal: Training | None = Field(
        None,
        description="Training on the teacher's samples (forward KL) after layers were dropped and before the distillation; without "
        "it a student that lost half of its layers starts worse than one that knows nothing",
    )

    @model_validator(mode="after")
    def _settings_fit_the_base(self) -> "Student":
        _refuse_revision(self.base, self.revision)
        if self.layers is not None and isinstance(self.base, Architecture):
            raise ValueError(
                "`layers` drops layers of a pretrained base: set num_hidden_layers of a base from scratch instead"
            )
        if self.heal is not None and self.layers is None:
            raise ValueError("`heal` is for a base that loses layers: set `layers`, or leave it out")
        return self
