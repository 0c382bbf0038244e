"""Defines the section `data`: which rows are made, and which of them are held out."""

from typing import Annotated, Literal

from pydantic import Field

from star.config.base import Section
from star.config.files import PACKAGED, File, Rows
from star.config.row_kinds import ROW_KIND_WEIGHTS


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
    generated_rows: int = Field(6000, ge=0, description="Number of rows that the offline generator makes")
    heldout_rows: int = Field(300, ge=1, description="Number of rows held out for evaluation")
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
