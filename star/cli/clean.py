"""Defines `star clean`: removes what nothing needs any more."""

import json
import sys
from typing import Annotated

import typer

from star.cli.fail import fail
from star.cli.options import ConfigOption


def clean(
    config: ConfigOption = "tiny",
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking, as a recurring run does.")] = False,
) -> None:
    """Show what nothing needs any more, and remove it: results, unfinished work, downloads, logs, copies in S3.

    What a registered version, its lineage, the ledger, DVC or running work needs stays, and everything that is younger than
    `keep.days` of the profile. Without a terminal and without `--yes` nothing is removed.

    Examples:

    `star clean`

    `star clean --config my.yaml --yes`
    """
    from star.clean.clean import carry_out, make_plan
    from star.clean.report import print_plan
    from star.config.load import load_config

    loaded = load_config(config)
    plan = make_plan(loaded)
    print_plan(plan)
    failed = list(plan.problems)
    if not plan.going:
        typer.echo("nothing to remove")
    if yes or (plan.going and sys.stdin.isatty() and typer.confirm(f"Remove these {len(plan.going)}?")):
        done = carry_out(plan, loaded)
        freed = sum(plan.sizes[entry.place] for entry in done.removed)
        for line in done.left:
            typer.echo(line)
        failed += done.failed
        typer.echo(json.dumps({"removed": len(done.removed), "bytes": freed, "left": len(done.left)}))
    elif plan.going:
        typer.echo("nothing was removed: `star clean --yes` removes what goes")
    if failed:
        fail("; ".join(dict.fromkeys(failed)), status=1)
