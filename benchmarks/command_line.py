"""Runs a benchmark as `star` runs a command: what the user can cure is one line and status 2, and no interruption ends in a traceback."""

import argparse
from collections.abc import Callable
from pathlib import Path

from star.cli.fail import fail
from star.errors import cure_of
from star.sigterm import sigterm_raises_system_exit


def run_main(main: Callable[[], None], *, interrupted: str = "interrupted") -> None:
    """Runs `main`. SIGTERM ends it too, and temporary folders are removed. `interrupted` is said after Ctrl-C."""
    try:
        with sigterm_raises_system_exit():
            main()
    except KeyboardInterrupt:
        fail(interrupted, status=130)
    except Exception as error:
        if (cure := cure_of(error)) is None:
            raise
        fail(cure, status=2)


def positive(text: str) -> int:
    """Type of an option that counts something."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def model_folder(text: str) -> Path:
    """Type of an option that names a model folder."""
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text} is no model folder: it has no config.json")
    return Path(text)
