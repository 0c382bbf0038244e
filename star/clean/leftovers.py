"""Finds what work, downloads and tracking left in the home and in $STAR_WORK, and says of each whether it goes.

Only what has a mark of STAR goes: a workspace its fingerprint, a spool its events, a download its lineage. What has none is
named as not made by STAR, and stays.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from star.clean.entry import (
    DAY,
    IN_USE,
    NOT_OURS,
    REGISTRY,
    UNREAD,
    UNSENT,
    YOUNG,
    Entry,
    entries_below,
    newest_change,
    owner_problem,
)
from star.clean.removal import is_renamed
from star.clean.results import Protection, why_in_use
from star.folders.manifest import MANIFEST
from star.folders.owners import file_mode, is_own
from star.folders.reuse import NO_RESULTS, shown
from star.folders.s3_inputs import FOLDER as INPUTS
from star.folders.s3_inputs import SEEN, fetched_place_of
from star.folders.working_paths import lock_file, work_root
from star.folders.workspace import FINGERPRINT_FILE
from star.home import home, spools_folder
from star.registry.download import is_download_of
from star.registry.lineage import LINEAGE_FILE
from star.tracking.spool import Spool

BESIDE = re.compile(r"\.(?P<out>.+)\.(partial|incoming|outgoing)")  # working_paths.py
IN_WORK = re.compile(r"[a-z-]+-[0-9a-f]{16}(\.done)?")
LOG = re.compile(r"\d{8}-\d{6}\.(log|events\.jsonl)")


def find_leftovers(protection: Protection, *, aliased: Mapping[str, str] | None) -> Iterator[Entry]:
    """Unfinished work, interrupted removals, downloads, fetched and converted inputs, spools and logs.

    Args:
        protection: for how many days they stay, and what is in use or named.
        aliased: digests of the models with an alias; None if the registry cannot be read.
    """
    days = protection.days
    for path in sorted(_work_places()):
        yield _judge_work(path, protection)
    for path in sorted(_failed_tasks()):
        yield _judge(path, days, kind="task without result", in_use=why_in_use(path, protection))
    for path in sorted(_children(home() / "models")):
        if not is_renamed(path):
            yield _judge_download(path, protection, aliased)
    for path in sorted(_children(home() / INPUTS)):
        if path.is_dir() and path.name != SEEN and not is_renamed(path):
            yield _judge(
                path, days, kind="fetched or converted input", in_use=why_in_use(fetched_place_of(path), protection)
            )
    for path in sorted(_children(spools_folder())):
        if not is_renamed(path):
            yield _judge_spool(path, days)
    for path in sorted(_children(home() / "logs")):
        if LOG.fullmatch(path.name):
            yield _judge(path, days, kind="log")


def find_unknown() -> Iterator[Path]:
    """The folders of the home with files that no part of STAR is known to have written. They stay."""
    for place, folders, files in os.walk(home()):
        folder = Path(place)
        if MANIFEST in files:
            folders.clear()
        elif files and folder != home() and not _is_of_kfp(folder):
            yield folder
            folders.clear()
        left_out = NO_RESULTS if folder == home() else frozenset()
        # Hidden folders are work, results on their way, and STAR's notes.
        folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]


def _is_of_kfp(folder: Path) -> bool:
    pipeline = home() / "pipeline"
    return folder.is_relative_to(pipeline) and len(folder.relative_to(pipeline).parts) == 2


def _work_places() -> Iterator[Path]:
    roots = {root for root in (work_root(), home() / "work") if root and root.is_dir()}
    for root in roots:
        yield from (path for path in _children(root) if IN_WORK.fullmatch(path.name) or is_renamed(path))
    for place, folders, files in os.walk(home()):
        # A file too can have been renamed away, such as a log.
        for name in (*folders, *(name for name in files if is_renamed(Path(name)))):
            path = Path(place) / name
            if BESIDE.fullmatch(name) or is_renamed(path):
                yield path
        if MANIFEST in files:
            folders.clear()
        # What lies in a hidden folder goes with it.
        folders[:] = [name for name in folders if not name.startswith(".") and Path(place) / name not in roots]


def _failed_tasks() -> Iterator[Path]:
    """Finds kfp's folders of tasks that ended without a result: pipeline/RUN/TASK."""
    for run in _children(home() / "pipeline"):
        for task in _children(run):
            # A manifest at any depth, because a loop's tasks have a folder per round.
            if task.is_dir() and not any(
                path.name == MANIFEST or path.name[0] == "." for path in entries_below(task) if path != task
            ):
                yield task


def _judge_work(path: Path, protection: Protection) -> Entry:
    if is_renamed(path):
        problem = owner_problem(path)
        return _entry("interrupted removal", path, (NOT_OURS, problem) if problem else None, "a killed clean left it")
    # A result on its way to or from its place is guarded by the lock of the work that made it.
    name = re.sub(r"\.(incoming|outgoing)$", ".partial", path.name)
    lock = lock_file(path.with_name(name))
    has_mark = path.suffix == ".done" or any((path / name).is_file() for name in (FINGERPRINT_FILE, MANIFEST))
    if path.is_symlink() or not has_mark:
        return _entry("unfinished work", path, (NOT_OURS, f"{shown(path)} has neither fingerprint nor manifest"))
    if _is_held(lock):
        return _entry("unfinished work", path, (IN_USE, "its process"))
    # Work that has just started reads its inputs before it takes the lock.
    out = path.with_name(beside["out"]) if (beside := BESIDE.fullmatch(path.name)) else path
    return _judge(path, protection.days, kind="unfinished work", lock=lock, in_use=why_in_use(out, protection))


def _judge_download(path: Path, protection: Protection, aliased: Mapping[str, str] | None) -> Entry:
    if path.name.startswith((".download-", ".publish-")):
        return _judge(path, protection.days, kind="download")
    try:
        model = json.loads((path / LINEAGE_FILE).read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError):
        model = None
    if not isinstance(model, str) or not is_download_of(model, path.name) or path.is_symlink():
        return _entry("download", path, (NOT_OURS, f"{shown(path)} has no {LINEAGE_FILE} of this model"))
    if aliased is None:
        return _entry("download", path, (UNREAD, ""))
    if model in aliased:
        return _entry("download", path, (REGISTRY, aliased[model]))
    # A model is used without being written. Linux notes reads once a day.
    read = max((file.stat().st_atime for file in path.glob("*.safetensors")), default=0.0)
    return _judge(path, protection.days, kind="download", used=read, in_use=why_in_use(path, protection))


def _judge_spool(path: Path, days: float) -> Entry:
    spool = Spool(path)
    if path.is_symlink() or not path.is_dir():
        return _entry("spool", path, (NOT_OURS, shown(path)))
    # Without run.json it was being removed, after the server had everything, or is just being created.
    if spool.exists() and (spool.unsent_events() or not spool.has_end_event()):
        return _entry("spool", path, (UNSENT, ""))
    return _judge(path, days, kind="spool", lock=path / "owner.lock")


def _judge(
    path: Path,
    days: float,
    *,
    kind: str,
    lock: Path | None = None,
    used: float = 0.0,
    in_use: tuple[str, str] | None = None,
) -> Entry:
    age = time.time() - max(newest_change(path), used)
    problem = owner_problem(path)
    stays = (NOT_OURS, problem) if problem else in_use or ((YOUNG, "") if age < days * DAY else None)
    return _entry(kind, path, stays, f"{age / DAY:.0f} days old", age=age, lock=lock)


def _entry(
    kind: str,
    path: Path,
    stays: tuple[str, str] | None,
    goes: str = "",
    *,
    age: float | None = None,
    lock: Path | None = None,
) -> Entry:
    known = time.time() - path.lstat().st_mtime if age is None else age
    why, detail = stays or (goes, "")
    return Entry(kind, shown(path), known, stays is None, why, detail, path=path, lock=lock)


def _is_held(lock: Path) -> bool:
    if not os.path.lexists(lock):
        return False
    if not is_own(lock):
        return True
    try:
        with FileLock(lock, mode=file_mode()).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
