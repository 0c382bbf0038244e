"""Defines `star topk`: commands on the teacher's stored top-k log-probabilities."""

from pathlib import Path
from typing import Annotated

import typer

topk_app = typer.Typer(help="Look into the teacher's stored top-k log-probabilities.", no_args_is_help=True)


@topk_app.command("inspect")
def inspect_command(
    folder: Annotated[Path, typer.Argument(help="Folder that `star extract-topk` wrote, here or in S3.")],
) -> None:
    """Check a top-k store and print what it holds: sequences, tokens, bytes per token, probability mass covered, entropy.

    Example: `star topk inspect runs/latest/extract-topk`
    """
    from star.folders.s3_local import local_copy
    from star.topk.inspection import print_inspection

    print_inspection(local_copy(folder))
