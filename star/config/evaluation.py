"""Defines the sections `evaluate` and `registry`: how models are scored, and what a model needs to become champion."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from star.config.base import Section, matching
from star.config.files import CheckoutFolder
from star.config.teacher_signal import Engine
from star.config.training import Precision

Suite = Literal["heldout", "bfcl", "acebench"]


class Evaluate(Section):
    """Which suites the models are evaluated on, and how they generate answers."""

    suites: tuple[Suite, ...] = Field(
        ("heldout",),
        description="Suites to run: `heldout` (the gate needs it), `bfcl` (the Berkeley harness), `acebench` (its normal part)",
    )
    limit: int | None = Field(None, ge=1, description="Most entries per category of bfcl and acebench; all by default")
    bfcl_categories: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Categories of bfcl to run; a selection has no overall score; all 17 by default",
    )
    acebench: CheckoutFolder | None = Field(
        None, description="Checkout of ACEBench, needed by the suite `acebench`: a folder, or `s3://bucket/folder`"
    )
    bases: bool = Field(
        True,
        description="Evaluate pretrained bases beside the models trained from them, which shows what training changed; "
        "`false` saves their time",
    )
    samples: int = Field(8, ge=1, description="Samples per row, for pass@k and entropy")
    temperature: float = Field(1.0, gt=0, description="Temperature of those samples; exact match uses greedy answers")
    max_new_tokens: int = Field(512, ge=1, description="Most tokens in an answer")
    batch_size: int = Field(64, ge=1, description="Rows per generation batch")
    vllm: Engine | None = Field(
        None,
        description="Answer with vLLM in the stage's own process (`{}` for vLLM's defaults below), beside the model in transformers, "
        "which gives the entropy; by default transformers answers",
    )

    @model_validator(mode="after")
    def _suites_have_what_they_need(self) -> "Evaluate":
        if not self.suites or len(set(self.suites)) < len(self.suites):
            raise ValueError("`suites` names at least one suite, and none twice")
        if "acebench" in self.suites and self.acebench is None:
            raise ValueError("the suite acebench needs `acebench`: give the path of a checkout of ACEBench")
        if self.bfcl_categories:
            from star.config.bfcl_categories import CATEGORIES

            if unknown := set(self.bfcl_categories) - set(CATEGORIES):
                raise ValueError(f"BFCL has no category {sorted(unknown)[0]}: choose from {', '.join(CATEGORIES)}")
        return self


class Gate(Section):
    """The bars that a candidate must clear to become champion."""

    min_exact_match: float = Field(0.5, ge=0, le=1, description="Least share of held-out rows answered exactly")
    max_format_errors: float = Field(
        0.05, ge=0, le=1, description="Largest share of answers that cannot be parsed, as `star call` parses them"
    )
    max_regression: float = Field(
        0.01,
        ge=0,
        description="Most that exact match, mean reward (official reading), or exact match in a category may be below the champion's",
    )
    max_parameters: int | None = Field(None, ge=1, description="Most parameters of the model; no limit by default")
    min_tokens_per_second: float | None = Field(
        None, gt=0, description="Least generation speed in the evaluation; no limit by default"
    )


class Registry(Section):
    """Where the student is registered, and what it needs to become champion."""

    model_name: str = Field("star", min_length=1, description="Name of the registered model in MLflow")
    license: Annotated[str, matching(r"[\w.+-]+", "the id of a licence, such as apache-2.0")] | None = Field(
        None,
        description="Licence that the card of the published model states; by default that of the student's base (`other` if nothing "
        "says it), and apache-2.0 for a base from scratch",
    )
    base_model: Annotated[str, matching(r"[\w.-]+/[\w.-]+", "a Hugging Face id, such as Qwen/Qwen3-0.6B")] | None = (
        Field(
            None,
            description="Hugging Face id of the student's base for the card, where the base is a folder or a file; a profile that "
            "extends this one with another base does not inherit it",
        )
    )
    precision: Precision = Field(
        "auto",
        description="Weights of the published model; `auto` is bf16 for a pretrained base of the student and fp32 for one from scratch",
    )
    gate: Gate = Field(Gate(), description="Bars that a candidate must clear to become champion")
