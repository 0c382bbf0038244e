"""Puts a file in a second place as a hard link, which costs no space."""

import os
import shutil
import stat
from pathlib import Path

from star.folders.owners import is_own

LINKED_BYTES = 16 * 2**20  # from this size on a file is linked: nobody edits such a file by hand


def link_large_or_copy(source: Path, target: Path) -> None:
    """Links a large file to a second place for good, read-only from then on, and copies a small one."""
    if source.stat().st_size >= LINKED_BYTES:
        link_or_copy(source, target, read_only=True)
    else:
        shutil.copyfile(source, target)


def copy_folder(folder: Path, target: Path, *, link: bool) -> None:
    """Copies all files below a folder, large ones as links if `link` says so. What a link leads to is copied."""

    def copy(source: str | os.DirEntry[str], place: str) -> str:
        # Without the mode: a copy of a read-only file belongs to whoever asked for it.
        (link_large_or_copy if link else shutil.copyfile)(Path(source), Path(place))
        return place

    shutil.copytree(folder, target, dirs_exist_ok=True, copy_function=copy)


def link_or_copy(source: Path | str, target: Path | str, *, read_only: bool = False) -> None:
    """Links a file of this user to a second place, or copies it.

    It is copied where the file system cannot link (another one, or one without links), and if it is a link or belongs to
    somebody else, who may go on writing to it.

    Args:
        read_only: takes the right to write from the file, because a program that writes to one of the two names would
            change both. For files that are in two published folders.
    """
    source, target = Path(source), Path(target)
    status = source.lstat()
    if stat.S_ISREG(status.st_mode) and is_own(source):
        try:
            os.link(source, target)
            if read_only:
                source.chmod(stat.S_IMODE(status.st_mode) & 0o555)
            return
        except OSError:
            target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
