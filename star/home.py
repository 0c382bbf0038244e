"""Finds the folder of local runs."""

import os
from pathlib import Path


def home() -> Path:
    """The folder of local runs: STAR_HOME, else `./runs`."""
    return Path(os.environ.get("STAR_HOME") or "runs").expanduser().resolve()


def spools() -> Path:
    """The folder of what tracking does not have yet."""
    return home() / "spool"
