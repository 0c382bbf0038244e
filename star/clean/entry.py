"""Describes one thing that `star clean` looks at: where it is, how large and how old, whether it goes, and why."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from star.folders.owners import is_own

DAY = 86_400.0
# Why something stays; the table has a line for each.
YOUNG = "young"
IN_USE = "in use by work that runs, or that can go on"
REGISTRY = "the registry needs it"
UNREAD = "the registry cannot be read"
MADE_FROM = "what stays was made from it"
COPY = "a copy of a result that stays, or of what that was made from"
NAMED = "`latest`, DVC or the profile names it"
UNSENT = "not sent to MLflow yet: `star tracking replay`"
NOT_OURS = "not STAR's, or not this user's alone"


@dataclass(frozen=True)
class Entry:
    """One folder, file, or folder in S3.

    Attributes:
        kind: of the table, such as `result` or `log`.
        place: path or URL, as it is shown.
        age: seconds since it was made or used.
        goes: whether it may go.
        why: the reason for either; one of the above if it stays.
        detail: who needs it, or what is wrong with it.
        path: on this machine; None in S3.
        lock: file that whoever works there has locked.
        size: bytes in S3; on this machine they are counted per file (`count_bytes`).
        keys: the objects in S3, in the order in which they go: first the one that makes the others readable.
        etag: of the first of them.
        digest: content digest of a result in S3.
        made_from: content digests of all that a result in S3 was made from.
    """

    kind: str
    place: str
    age: float
    goes: bool
    why: str
    detail: str = ""
    path: Path | None = None
    lock: Path | None = None
    size: int = 0
    keys: tuple[str, ...] = ()
    etag: str = ""
    digest: str = ""
    made_from: tuple[str, ...] = ()


def entries_below(path: Path) -> Iterator[Path]:
    """The path and all that lies below it. Links are not followed."""
    if not os.path.lexists(path):
        return
    yield path
    if path.is_dir() and not path.is_symlink():
        for place, folders, files in os.walk(path):
            yield from (Path(place) / name for name in (*folders, *files))


def newest_change(path: Path) -> float:
    """The latest time (Unix) at which something at or below the path was written."""
    times = []
    for entry in entries_below(path):
        try:
            times.append(entry.lstat().st_mtime)
        except FileNotFoundError:  # its work goes on
            return float("inf")
    return max(times)


def owner_problem(path: Path) -> str | None:
    """Why something at or below the path is not this user's to remove; None if all of it is."""
    for entry in entries_below(path):
        # A link within is removed, and never followed. Only its own owner counts.
        if entry.lstat().st_uid != os.geteuid() and not is_own(entry):
            return f"{entry} belongs to another user"
    return None


def count_bytes(paths: Iterable[Path], *, only_freed: bool) -> dict[Path, int]:
    """The bytes of the files below each path. A file with several names (hard links) counts once, at its last name.

    Args:
        only_freed: leaves out files that have a further name elsewhere, because their space is not free without these.
    """
    names_left: dict[tuple[int, int], int] = {}
    last_place: dict[tuple[int, int], tuple[Path, int]] = {}
    sizes: dict[Path, int] = {}
    for path in paths:
        sizes[path] = 0
        for entry in entries_below(path):
            try:
                status = entry.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                continue
            file = (status.st_dev, status.st_ino)
            names_left[file] = names_left.get(file, status.st_nlink) - 1
            last_place[file] = (path, status.st_size)
    for file, (path, size) in last_place.items():
        if not (only_freed and names_left[file]):
            sizes[path] += size
    return sizes
