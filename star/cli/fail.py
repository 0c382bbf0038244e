"""Ends a command with one line on stderr and an exit status."""

import sys
from typing import NoReturn

from star.redaction import redacted
from star.terminal import console, continued


def fail(message: str, *, status: int) -> NoReturn:
    """Prints the message, without secrets, and exits with the status: 1 the work failed, 2 the user's input is wrong."""
    from rich.text import Text

    console(sys.stderr).print(Text(f"star: {continued(redacted(message))}", style="red"), soft_wrap=True)
    sys.exit(status)
