"""Notes which folders running work reads, so that `star clean` leaves them where they are.

While `star distill --topk runs/old/topk --out runs/new/model` runs:

    runs/in-use/5feceb66ffc86f38-4d0c1e0b.json      {"by": "runs/new/model", "paths": ["/.../runs/old/topk", ...]}

The process holds a lock on the file. Work that ended well removes it. Work that failed or was killed leaves it, because the
work may be started again: its folders stay as long as unfinished work is kept. The manifest of each folder gets the
time of the start, because `star clean` counts from when a result was made or last used. Both sides pass one gate (`gate.lock`):
whoever notes its folders, and `star clean` while it takes folders away. So work that starts finds a folder whole or missing.
"""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from star.errors import InputError
from star.folders.manifest import MANIFEST
from star.folders.owners import create_in_home, file_mode, is_own, refuse_others
from star.hashing import digest_of
from star.home import home

FOLDER = "in-use"
GATE_SECONDS = 300.0  # `star clean` reads the manifests of a home and renames folders in less


@dataclass(frozen=True)
class Use:
    """Folders that one piece of work reads or may replace.

    Attributes:
        by: the folder that the work writes, or the command.
        runs: whether its process lives; otherwise it failed or was killed.
        started: Unix time of its start.
        note: the file that says so.
    """

    by: str
    paths: tuple[Path, ...]
    runs: bool
    started: float
    note: Path


@contextlib.contextmanager
def using(paths: Iterable[Path], *, by: str) -> Iterator[None]:
    """Inside the block `star clean` of this home leaves the folders alone, with all that lies in them or around them.

    After an exception the note stays. Without a home that can be written nothing is noted, and nothing is cleaned.

    Raises:
        InputError: another process has held the gate for minutes.
    """
    resolved = sorted({str(path.resolve()) for path in paths})
    note = _write_note(folder, resolved, by) if (folder := _folder_of_notes()) else None
    if note is None:
        yield
        return
    file, descriptor = note
    try:
        yield
        file.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def no_work_starts() -> Iterator[list[Use]]:
    """Yields what work of this home uses. Inside the block no other work notes its folders, so keep the block short.

    Raises:
        InputError: another process has held the gate for minutes.
    """
    folder = create_in_home(FOLDER)
    with _gate(folder):
        yield [use for file in sorted(folder.glob("*.json")) if (use := _read_note(file))]


def _folder_of_notes() -> Path | None:
    """None without a home of this user: there is none yet, or it cannot be written."""
    try:
        return create_in_home(FOLDER) if home().is_dir() else None
    except (OSError, InputError):
        return None


def _write_note(folder: Path, paths: list[str], by: str) -> tuple[Path, int] | None:
    """Writes and locks the note; returns it with the descriptor that holds the lock. None where the disk refuses."""
    work = digest_of([by, paths])[:16]
    file, descriptor = folder / f"{work}-{uuid.uuid4().hex[:8]}.json", None
    try:
        with _gate(folder):
            for older in folder.glob(f"{work}-*.json"):
                # Of a killed attempt at the same work, which this one takes up.
                if not _is_locked(older):
                    older.unlink(missing_ok=True)
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, file_mode())
            os.write(descriptor, json.dumps({"by": by, "paths": paths}).encode())
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in paths:
                # It may be missing, read-only, or belong to another user.
                with contextlib.suppress(OSError):
                    os.utime(Path(path) / MANIFEST)
    # A full disk stops the work elsewhere, with a better message. A home that cannot be written is not cleaned from here.
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
            file.unlink(missing_ok=True)
        return None
    return file, descriptor


def _read_note(file: Path) -> Use | None:
    """None for a note of somebody else, or one that a kill cut short before its work had begun."""
    if not is_own(file):
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Use(content["by"], tuple(map(Path, content["paths"])), _is_locked(file), file.stat().st_mtime, file)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_locked(file: Path) -> bool:
    # Work that ends removes its note without passing the gate.
    with contextlib.suppress(FileNotFoundError), file.open("rb") as content:
        try:
            fcntl.flock(content, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _gate(folder: Path) -> Iterator[None]:
    lock = folder / "gate.lock"
    refuse_others(lock)
    try:
        with FileLock(lock, mode=file_mode()).acquire(timeout=GATE_SECONDS):
            yield
    except Timeout:
        raise InputError(f"{lock} has been held for minutes: look for a `star clean` that hangs") from None
