"""Ends a command with one line on stderr and an exit status."""

import sys
from typing import NoReturn

import typer

from star.errors import redacted


def fail(message: str, *, status: int) -> NoReturn:
    """Prints the message, without secrets, and exits with the status: 1 the work failed, 2 the user's input is wrong."""
    typer.secho(f"star: {redacted(message)}", fg=typer.colors.RED, err=True)
    sys.exit(status)
