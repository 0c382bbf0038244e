"""Finds the folder of local runs."""

import os
from pathlib import Path


def home() -> Path:
    """Returns the folder of local runs: STAR_HOME, else `./runs`."""
    return Path(os.environ.get("STAR_HOME") or "runs").expanduser().resolve()


def spools_folder() -> Path:
    """Returns the folder of the runs whose events the tracking server does not have yet (star/tracking/spool.py)."""
    return home() / "spool"
