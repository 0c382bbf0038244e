"""Puts a file in a second place as a hard link, which costs no space."""

import os
import shutil
from pathlib import Path


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Links a file to a second place, or copies it where the file system cannot (another one, or one without links)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
