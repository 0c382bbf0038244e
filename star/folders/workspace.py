"""Folders that are whole or not there: manifest, checksums, atomic publish, resume.

A stage works in a partial folder: `out/` becomes the result, `state/` holds what a resumed run needs. When the work is done the
manifest is written last and the folder is renamed to its place. A folder without a valid manifest is refused as an input.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star.errors import InputError
from star.folders import checkpoints_s3
from star.folders.manifest import MANIFEST, FileEntry, Manifest, is_finished, refuse_foreign
from star.hashing import sha256_of
from star.json_file import write_json

if TYPE_CHECKING:
    from filelock import FileLock

LOCK_SECONDS = 5.0  # longer than a killed run's process needs to notice and end


@dataclass(frozen=True)
class Workspace:
    """Where a stage works until it is done: `out` becomes the result, `state` is kept for a killed run to go on from."""

    out: Path
    state: Path


@contextlib.contextmanager
def partial_folder(out: Path, *, stage: str, fingerprint: str, resume: bool) -> Iterator[Workspace]:
    """The partial folder of this work, kept when the work fails or is killed, so that it can go on.

    It lies beside `out`, or in $STAR_WORK where that is set (a volume that outlives the pod). Work with another fingerprint starts anew.

    Raises:
        InputError: another process is at the same work.
    """
    from filelock import Timeout

    work = _work_folder(out, stage=stage, fingerprint=fingerprint)
    work.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(work)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise InputError(f"another process is writing {out}: wait for it, or give another folder") from None
    try:
        mark = work / "fingerprint"
        if work.exists() and not (resume and mark.is_file() and mark.read_text() == fingerprint):
            shutil.rmtree(work)
        folder = Workspace(out=work / "out", state=work / "state")
        folder.out.mkdir(parents=True, exist_ok=True)
        folder.state.mkdir(exist_ok=True)
        mark.write_text(fingerprint)
        if resume:
            checkpoints_s3.fetch(folder.state, fingerprint)
        yield folder
        checkpoints_s3.forget(fingerprint)
        if not work.exists():
            return
        shutil.rmtree(work)
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def publish(folder: Path, *, out: Path, manifest: Manifest) -> Manifest:
    """Writes the manifest of `folder` last and renames it to `out`, replacing an older result of a stage.

    Raises:
        InputError: `out` holds something that no stage wrote; it is left as it is.
    """
    files = [
        FileEntry(name, file.stat().st_size, sha256_of(file), _count_rows(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (name := file.relative_to(folder).as_posix()) != MANIFEST
    ]
    finished = Manifest(**{**vars(manifest), "files": files})
    make_readable(folder)
    write_json(folder / MANIFEST, asdict(finished))
    refuse_foreign(out)
    _move(folder, out)
    if note := _note(manifest.stage, manifest.fingerprint):
        note.write_text(str(out), encoding="utf-8")
    return finished


def _count_rows(file: Path) -> int | None:
    if file.suffix == ".parquet":
        from pyarrow.parquet import read_metadata

        return read_metadata(file).num_rows
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            return sum(1 for _ in lines)
    return None


def make_readable(folder: Path) -> None:
    """Gives all files mode 0644: weights are saved as 0600, which another user on a shared volume could not read."""
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)


def finish_interrupted(out: Path, *, stage: str, fingerprint: str) -> None:
    """Puts a whole result in its place that a kill caught between two renames, or before its runner took note of it."""
    incoming, note = _incoming(out), _note(stage, fingerprint)
    if note and note.is_file() and not is_finished(out, fingerprint=fingerprint):
        published = Path(note.read_text(encoding="utf-8"))
        if is_finished(published, fingerprint=fingerprint):
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(published, incoming, dirs_exist_ok=True)
    if is_finished(incoming, fingerprint=fingerprint):
        _replace(out, incoming)
        if note:
            note.write_text(str(out), encoding="utf-8")  # the copy in use: deleting it is how a user has it made again


def copy_whole(folder: Path, out: Path) -> None:
    """Copies a folder to `out`, replacing what is there; it appears when it is whole."""
    incoming = _incoming(out)
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(folder, incoming)
    _replace(out, incoming)


def exchange_folder(run_id: str) -> Path:
    """Where the tasks of a pipeline's run meet the pods that they start; $STAR_WORK must be set."""
    return Path(os.environ["STAR_WORK"]) / "jobs" / run_id


def clear_finished(out: Path, *, stage: str, fingerprint: str) -> None:
    """Removes what a kill right after publishing left of the partial folder, unless another process is at the same work."""
    from filelock import Timeout

    work = _work_folder(out, stage=stage, fingerprint=fingerprint)
    lock, mark = _lock_of(work), work / "fingerprint"
    if not work.exists() and not Path(lock.lock_file).exists():
        return
    with contextlib.suppress(Timeout), lock.acquire(timeout=0):
        # Without its mark it was being removed already, and nothing can go on from it.
        if work.exists() and (not mark.is_file() or mark.read_text() == fingerprint):
            shutil.rmtree(work)
        Path(lock.lock_file).unlink(missing_ok=True)


def _work_folder(out: Path, *, stage: str, fingerprint: str) -> Path:
    root = os.environ.get("STAR_WORK")
    return Path(root) / f"{stage}-{fingerprint[:16]}" if root else out.parent / f".{out.name}.partial"


def _lock_of(work: Path) -> "FileLock":
    from filelock import FileLock

    return FileLock(work.with_name(work.name + ".lock"))


def _note(stage: str, fingerprint: str) -> Path | None:
    """Where $STAR_WORK remembers the folder of a finished work."""
    root = os.environ.get("STAR_WORK")
    return Path(root) / f"{stage}-{fingerprint[:16]}.done" if root else None


def _incoming(out: Path) -> Path:
    return out.with_name(f".{out.name}.incoming")


def _move(folder: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    incoming = _incoming(out)
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        folder.rename(incoming)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(folder, incoming)
    _replace(out, incoming)


def _replace(out: Path, incoming: Path) -> None:
    outgoing = out.with_name(f".{out.name}.outgoing")
    shutil.rmtree(outgoing, ignore_errors=True)
    if out.exists():
        out.rename(outgoing)
    incoming.rename(out)
    shutil.rmtree(outgoing, ignore_errors=True)
