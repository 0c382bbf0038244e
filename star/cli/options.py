"""Declares the options that several commands share, each once."""

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    str,
    typer.Option(
        "--config", "-c", help="A YAML file, or a packaged profile: tiny, qwen3-0.6b, qwen3-1.7b, qwen3-4b, study-tiny."
    ),
]
SeedDataOption = Annotated[
    Path | None, typer.Option("--seed-data", help="Your own rows to mix in: JSON Lines with `messages` and `tools`.")
]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Folder to write. It appears only when the work is complete.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--restart", help="Continue work that was killed, or start it from the beginning.")
]
ShardOption = Annotated[
    str, typer.Option(help="Shard i of n, such as 2/4. `star merge` puts the results of all n shards together.")
]
MODEL_HELP = "A version or an alias of the registered model, or NAME/VERSION, or NAME@ALIAS."
NameOption = Annotated[str, typer.Option("--name", help="Name of the registered model.")]
DataOption = Annotated[Path, typer.Option(help="Folder that `star synthesize` wrote.")]
TeacherOption = Annotated[Path, typer.Option(help="Folder that `star refine-teacher` wrote.")]
