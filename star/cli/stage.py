"""Runs a stage for the command line and prints its metrics as JSON."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import typer

from star import distributed


def run_stage(name: str, config: str, *, out: Path, seed_data: Path | None = None, **arguments: object) -> None:
    """Runs the stage `name` with a configuration; its folders may lie in S3."""
    from star.config.load import load_config
    from star.stages import stage_named

    stage = stage_named(name)
    loaded = load_config(config, seed_data=seed_data, sections=stage.sections)
    run_and_print(lambda **folders: stage.function(loaded, **folders), out=out, **arguments)


def run_and_print(work: Callable[..., Mapping[str, object]], *, out: Path, **arguments: object) -> None:
    """Runs the work with local folders and prints the metrics that it returns, once where several processes share it."""
    from star.folders.s3_local import with_local_folders

    # Under torchrun every rank gets here, and two uploads would write the same S3 folder.
    metrics = with_local_folders(work, out=out, upload=distributed.is_rank0(), **arguments)
    if distributed.is_rank0():
        typer.echo(json.dumps(metrics, indent=1))
