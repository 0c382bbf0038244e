"""Defines `star doctor`: checks this machine before anything long starts."""

import typer

from star.cli.options import ConfigOption


def doctor(config: ConfigOption = "tiny") -> None:
    """Check this machine against a configuration: packages, memory, disk, tracking. Every failed check says what to do.

    Example: `star doctor --config qwen3-0.6b`
    """
    from star.config.load import load_config
    from star.doctor.machine import print_checks

    if not print_checks(load_config(config)):
        raise typer.Exit(2)
