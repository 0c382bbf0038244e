"""Takes a folder away so that a kill at any moment leaves it whole, or under a name that nothing reads.

    runs/old/topk  ->  runs/old/.topk.removed     rename, while no work starts (star/folders/in_use.py)
                       its manifest.json          removed first: from here on it is no result
                       the rest

The next `star clean` finds `.NAME.removed` folders and goes on with them, whatever their age.
"""

import os
import shutil
from pathlib import Path

from star.folders.manifest import MANIFEST

REMOVED = ".removed"


def rename_away(folder: Path) -> Path:
    """Renames the folder or file to its hidden name, and returns that."""
    hidden = folder.with_name(f".{folder.name}{REMOVED}")
    number = 1
    # What an earlier, killed clean left under this name.
    while os.path.lexists(hidden):
        number += 1
        hidden = folder.with_name(f".{folder.name}-{number}{REMOVED}")
    folder.rename(hidden)
    return hidden


def delete(path: Path) -> None:
    """Deletes a file, a link, or a folder that was renamed away. What is gone already is no error."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for manifest in sorted(path.rglob(MANIFEST)):
        manifest.unlink(missing_ok=True)
    shutil.rmtree(path)


def is_renamed(path: Path) -> bool:
    """Whether an earlier clean renamed it away."""
    return path.name.startswith(".") and path.name.endswith(REMOVED)


def remove_empty_parents(folder: Path, *, below: Path) -> None:
    """Removes the folders above that are empty now, up to `below`, which stays."""
    for parent in folder.parents:
        if parent == below or not parent.is_relative_to(below):
            return
        try:
            parent.rmdir()
        except OSError:  # it has other content
            return
