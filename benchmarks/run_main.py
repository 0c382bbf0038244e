"""Runs a benchmark as `star` runs a command: what the user can cure is one line and status 2, and no interruption ends in a traceback."""

from collections.abc import Callable

from star.cli.fail import fail
from star.errors import cure_of


def run_main(main: Callable[[], None], *, interrupted: str = "interrupted") -> None:
    """Runs `main`. `interrupted` is said after Ctrl-C."""
    try:
        main()
    except KeyboardInterrupt:
        fail(interrupted, status=130)
    except Exception as error:
        if (cure := cure_of(error)) is None:
            raise
        fail(cure, status=2)
