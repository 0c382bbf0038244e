"""Defines the section `data`: which rows are made or read, and which of them are held out."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from star.config.base import Section
from star.config.files import PACKAGED, File, Rows
from star.config.row_kinds import ROW_KIND_WEIGHTS
from star.errors import InputError

OWN_SOURCES = ("seed", "generated")  # names that rows of `seed_data` and of the generator have


class Strata(Section):
    """Shares of a sample by what the last turn of a row is.

    Rows are taken while one of their shares is not reached, up to 1.1 times the sample, which is drawn from them.
    """

    response: float = Field(
        0.2, ge=0, le=1, description="Most rows whose last turn says something, as a share of the sample"
    )
    multi_step: float = Field(0.3, ge=0, le=1, description="Wanted share of rows that call tools right after a result")
    single_turn: float = Field(
        0.3, ge=0, le=1, description="Wanted share of rows whose last turn is the first answer; of later turns the rest"
    )
    parallel: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Wanted share of rows with several calls in the last turn; of single calls the rest",
    )
    max_turns: int = Field(10, ge=1, description="Most turns in a conversation; rows with more are left out")
    max_prompt_tokens: int = Field(
        8192,
        ge=1,
        description="Most tokens in a prompt, estimated as a third of the characters of its messages and tools, because no tokenizer "
        "is known yet; rows with longer prompts are left out",
    )


class RowSource(Section):
    """A set of rows that is read, and which part of it is used."""

    path: Rows = Field(
        description="File or folder of rows in any form that `star data import` reads; named as `seed_data` is",
    )
    source: str = Field(
        min_length=1,
        description="Name of the rows' origin, written on every row: `xlam`, `toolace`, `toolmind`, `hammer`, or your own",
    )
    licence: str | None = Field(
        None, description="Licence to write on every row; by default the row's own, or that of a known source"
    )
    every_turn: bool = Field(False, description="Make one row per assistant turn instead of one per conversation")
    rows: int | None = Field(None, ge=1, description="Number of clean rows that are used; all by default")
    share: float | None = Field(
        None, gt=0, le=1, description="Share of the clean rows that is used, in place of `rows`"
    )
    strata: Strata | None = Field(
        None, description="Stratified sampling of the used rows (`{}` for the paper's shares); needs `rows` or `share`"
    )

    @field_validator("path", mode="wrap")
    @classmethod
    def _fault_names_the_set(cls, value: object, convert: ValidatorFunctionWrapHandler) -> object:
        # pydantic knows the place of a ValueError in the list, and lets an InputError pass without it.
        try:
            return convert(value)
        except InputError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _sample_has_one_size(self) -> Self:
        if self.rows is not None and self.share is not None:
            raise ValueError("`rows` and `share` both say how many rows are used: give one of them")
        if self.strata and self.rows is None and self.share is None:
            raise ValueError("`strata` says which rows are used, and nothing says how many: give `rows` or `share`")
        return self


class Data(Section):
    """What the training and held-out rows are made of."""

    tools: File = Field(
        PACKAGED + "tools.json",
        validate_default=True,
        description="File with the tools to generate rows for: a path, `s3://bucket/file`, `hf://datasets/TEAM/NAME@REVISION/file`, "
        "`{dvc: PATH, repo: URL, rev: REV}`, or `star:file` for one of the package",
    )
    seed_data: Rows | None = Field(
        None,
        description="File or folder of your own rows (`messages`, `tools`) to import, clean and add: a path, `s3://bucket/file`, "
        "`hf://datasets/TEAM/NAME@REVISION/file`, or `{dvc: PATH, repo: URL, rev: REV}`",
    )
    sources: tuple[RowSource, ...] = Field(
        (), description="Sets of rows to import, clean and add, each with its own part"
    )
    generated_rows: int = Field(6000, ge=0, description="Number of rows that the offline generator makes")
    heldout_rows: int = Field(300, ge=1, description="Number of rows held out for evaluation")
    max_prompt_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens in the prompt of a row, estimated as a third of the characters of its messages and tools, because no "
        "tokenizer is known yet; rows with longer prompts are neither trained on nor evaluated. No limit by default",
    )
    split: Literal["row", "tool"] = Field(
        "row",
        description="What is held out: `row` takes rows of all tools, `tool` takes whole tools, so that held-out tools are new",
    )
    tools_per_prompt: int = Field(
        4,
        ge=1,
        description="Most tools in a generated prompt (a prompt always shows the tools that its answer calls)",
    )
    kinds: dict[str, Annotated[float, Field(ge=0)]] = Field(
        ROW_KIND_WEIGHTS,
        description="Weight of each kind of generated row; 0 leaves a kind out",
    )
    masked: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of generated rows whose function and parameter names are replaced by random ones (Hammer)",
    )
    reasoning: bool = Field(
        True,
        description="Whether answers of generated rows have a line of reasoning; without it the think block is empty",
    )

    @model_validator(mode="after")
    def _sources_have_names_of_their_own(self) -> Self:
        names = [source.source for source in self.sources]
        for name in names:
            if name in OWN_SOURCES or names.count(name) > 1:
                raise ValueError(
                    f"`sources`: two sets of rows would be named {name!r}: give each `source` a name of its own, other than "
                    f"{' and '.join(OWN_SOURCES)}"
                )
        return self
