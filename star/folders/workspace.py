"""Opens the workspace in which a folder is made, under a lock, and removes what a killed process left.

.data.partial/          mode 0700, unless STAR_SHARED_WITH says who shares unfinished work (owners.py)
    fingerprint     the work that it belongs to; other work starts with an empty workspace
    out/            becomes the published folder
    state/          what a resumed run needs, such as checkpoints; with STAR_CHECKPOINTS also in S3 (checkpoints_s3.py)
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from star.digest_cache import links_change
from star.errors import BusyError
from star.folders import checkpoints_s3
from star.folders.owners import (
    close_to_others,
    create_folder,
    create_private,
    file_mode,
    is_own,
    refuse_others,
    refuse_others_below,
    umask_for_sharing,
)
from star.folders.working_paths import lock_file, workspace_folder

LOCK_SECONDS = 5.0  # longer than a stage needs to notice that its runner was killed, and to end
FINGERPRINT_FILE = "fingerprint"


@dataclass(frozen=True)
class Workspace:
    """The two folders of unfinished work: `out` becomes the result, `state` has what a resumed run needs."""

    out: Path
    state: Path


@contextlib.contextmanager
def open_workspace(out: Path, *, stage: str, fingerprint: str, resume: bool) -> Iterator[Workspace]:
    """Locks the workspace of this work and yields it; removes it on success, keeps it after an exception.

    Args:
        out: the folder that will be published.
        fingerprint: of the work. The workspace of other work is emptied.
        resume: go on with what a killed run of the same work left; otherwise start with an empty workspace.

    Raises:
        BusyError: another process is doing the same work.
        InputError: somebody else has put something in its place.
    """
    folder = workspace_folder(out, stage=stage, fingerprint=fingerprint)
    if folder.parent == out.parent:
        create_folder(folder.parent)
    elif not folder.parent.is_dir():
        create_private(folder.parent)
    refuse_others(lock_file(folder))
    # The operating system releases the lock of a killed process, so a leftover lock file blocks nobody.
    # Its mode keeps others from locking it, which they could do with the right to read it.
    lock = FileLock(lock_file(folder), mode=file_mode())
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise BusyError(f"another process is writing {out}: wait for it, or give another folder") from None
    try:
        with umask_for_sharing():
            workspace = _prepare(folder, fingerprint=fingerprint, resume=resume)
            # Work that must start from nothing must not get its uploaded state back either.
            if resume:
                checkpoints_s3.download_state(workspace.state, fingerprint)
            yield workspace
        # Not reached after an exception: a resume needs the workspace, and on another node the copy in S3.
        checkpoints_s3.delete_state(fingerprint)
        if folder.exists():
            # A file of the result may be a second name of one in the state, such as a teacher's weights. Without links_change
            # they would be hashed again.
            linked = [file for file in out.rglob("*") if file.is_file() and file.stat().st_nlink > 1]
            with links_change(dict.fromkeys(linked)):
                shutil.rmtree(folder)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def remove_leftover_workspace(out: Path, *, stage: str, fingerprint: str) -> None:
    """Removes the workspace that a kill between publishing and cleaning up left, unless another process works in it.

    What is not this user's stays: the result does not depend on it.
    """
    folder = workspace_folder(out, stage=stage, fingerprint=fingerprint)
    lock = FileLock(lock_file(folder), mode=file_mode())
    present = [path for path in (folder, Path(lock.lock_file)) if os.path.lexists(path)]
    if not present or not all(map(is_own, present)):
        return
    # A process that holds the lock removes its workspace by itself.
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        # A workspace without a fingerprint was being removed when the kill came; no work can go on from it.
        if folder.exists() and (not (folder / FINGERPRINT_FILE).is_file() or _belongs_to(folder, fingerprint)):
            shutil.rmtree(folder)
        Path(lock.lock_file).unlink(missing_ok=True)


def _prepare(folder: Path, *, fingerprint: str, resume: bool) -> Workspace:
    """Makes the locked workspace ready: empty, or as a killed run of the same work left it."""
    if os.path.lexists(folder):
        # Before anything in it is read. A checkpoint that somebody else put there would decide the result.
        refuse_others_below(folder)
        close_to_others(folder)
        if not (resume and _belongs_to(folder, fingerprint)):
            shutil.rmtree(folder)
    create_private(folder)
    workspace = Workspace(out=folder / "out", state=folder / "state")
    workspace.out.mkdir(exist_ok=True)
    workspace.state.mkdir(exist_ok=True)
    # A kill before this line leaves a folder without a fingerprint, which the next run empties.
    (folder / FINGERPRINT_FILE).write_text(fingerprint)
    return workspace


def _belongs_to(folder: Path, fingerprint: str) -> bool:
    file = folder / FINGERPRINT_FILE
    return file.is_file() and file.read_text() == fingerprint
