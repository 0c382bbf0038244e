"""Makes the plan of a clean, and carries it out.

The plan is made twice: once to be shown, and again under the gate of star/folders/in_use.py, where no work can start. What
goes is what both say. Under the gate folders are only renamed; they are deleted afterwards.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from star.clean.entry import DAY, UNREAD, Entry, count_bytes
from star.clean.leftovers import find_leftovers, find_unknown
from star.clean.removal import delete, is_renamed, remove_empty_parents, rename_away
from star.clean.results import (
    FoundResult,
    Protection,
    digests_that_stay,
    find_results,
    judge_results,
    require_this_registry,
)
from star.clean.s3_copies import (
    delete_shown,
    find_checkpoints_in_s3,
    find_results_in_s3,
    keep_sources,
    keeps_versions,
)
from star.config.experiment import Config
from star.config.files import paths_in
from star.errors import InputError
from star.folders.checkpoints_s3 import VARIABLE as CHECKPOINTS
from star.folders.in_use import Use, no_work_starts
from star.folders.owners import file_mode
from star.folders.reuse import shown
from star.folders.workspace import FINGERPRINT_FILE
from star.home import home
from star.registry.needed import Needed, read_needs


@dataclass
class Plan:
    """What a clean found.

    Attributes:
        entries: everything that it looked at.
        unknown: folders of the home that STAR is not known to have written.
        problems: what could not be looked at, one sentence each; the command fails.
        remarks: what a person should know.
        sizes: place -> bytes that its removal frees, or that it takes if it stays. A file with several names counts once.
    """

    entries: list[Entry]
    unknown: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def going(self) -> list[Entry]:
        """The entries that go."""
        return [entry for entry in self.entries if entry.goes]


@dataclass
class Done:
    """What a clean did.

    Attributes:
        removed: the entries that are gone.
        left: why an entry that was shown stays after all, one sentence each.
        failed: why an entry could not be removed, one sentence each.
    """

    removed: list[Entry] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def make_plan(config: Config) -> Plan:
    """Looks at the home, $STAR_WORK and the places in S3, and says what goes. Removes nothing."""
    needed, problems = _needs()
    with no_work_starts() as uses:
        pass  # only to read what is in use now
    results, entries = _judge_local(config, needed, uses)
    plan = Plan(entries, unknown=[shown(folder) for folder in find_unknown()], problems=problems)
    _add_s3(config, plan, _needed_copies(needed, results, entries), needed=needed)
    _add_sizes(plan)
    return plan


def carry_out(plan: Plan, config: Config) -> Done:
    """Removes what the plan says goes, unless something needs it by now."""
    done = Done()
    renamed: list[tuple[Entry, Path]] = []
    needed, done.failed = _needs()
    going = {entry.path: entry for entry in plan.going if entry.path}
    with no_work_starts() as uses:
        results, entries = _judge_local(config, needed, uses)
        for entry in entries:
            if entry.path is None or entry.path not in going:
                continue
            shown_entry = going.pop(entry.path)
            if not entry.goes:
                done.left.append(f"{entry.place} stays: {entry.why} {entry.detail}".rstrip())
            elif hidden := _rename(entry.path, entry, done):
                renamed.append((shown_entry, hidden))
        _forget_old_uses(uses, config.keep.days)
    for entry, hidden in renamed:
        try:
            delete(hidden)
        except OSError as error:
            done.failed.append(f"{entry.place} is at {hidden} and cannot be deleted: {error.strerror}")
            continue
        if entry.path and entry.path.is_relative_to(home() / "pipeline"):
            remove_empty_parents(entry.path, below=home())
        done.removed.append(entry)
    copies = _needed_copies(needed, results, entries)
    for entry in (entry for entry in plan.going if entry.keys):
        try:
            if entry.digest and (copies is None or entry.digest in copies):
                done.left.append(f"{entry.place} stays: {UNREAD if copies is None else copies[entry.digest]}")
            elif delete_shown(entry):
                done.removed.append(entry)
            else:
                done.left.append(f"{entry.place} stays: it has changed since")
        except InputError as error:
            done.failed.append(str(error))
    return done


def _add_sizes(plan: Plan) -> None:
    plan.sizes = {entry.place: entry.size for entry in plan.entries if entry.path is None}
    for goes in (True, False):
        local = {entry.path: entry.place for entry in plan.entries if entry.path and entry.goes == goes}
        plan.sizes |= {local[path]: size for path, size in count_bytes(local, only_freed=goes).items()}


def _needs() -> tuple[Needed | None, list[str]]:
    """What the registry needs; None, with the reason, if it cannot be read."""
    try:
        if not os.environ.get("MLFLOW_TRACKING_URI") and not (home() / "mlflow.db").is_file():
            # MLflow would create an empty registry, which needs nothing.
            raise InputError(f"{home()} has no registry: set MLFLOW_TRACKING_URI")
        needed = read_needs()
        require_this_registry(list(find_results()), needed)
    except InputError as error:
        return None, [f"{error}; no result, copy or download that the registry might need is removed"]
    return needed, []


def _needed_copies(
    needed: Needed | None, results: Sequence[FoundResult], entries: Sequence[Entry]
) -> dict[str, str] | None:
    """Content digest -> why its copies in S3 stay; None if the registry cannot be read."""
    if needed is None:
        return None
    return {**digests_that_stay(results, entries[: len(results)]), **needed.folders}


def _judge_local(config: Config, needed: Needed | None, uses: Sequence[Use]) -> tuple[list[FoundResult], list[Entry]]:
    """The results, and the entries: first those of the results, in the same order."""
    results = list(find_results())
    folders = needed.folders if needed else None
    protection = Protection(config.keep.days, folders, uses, paths_in(config.model_dump_json()))
    entries = judge_results(results, protection)
    return results, [*entries, *find_leftovers(protection, aliased=needed.aliased if needed else None)]


def _add_s3(config: Config, plan: Plan, digests: dict[str, str] | None, *, needed: Needed | None) -> None:
    """Adds the entries of S3. A place that cannot be read is a problem, and nothing of it goes."""
    days, checkpoints = config.keep.days, os.environ.get(CHECKPOINTS) or config.cluster.checkpoints
    unfinished = set(_unfinished_fingerprints(plan.entries))
    places: list[tuple[str, Callable[[], list[Entry]]]] = [
        (url, partial(find_results_in_s3, url, days, digests=digests, needed=needed)) for url in config.keep.s3
    ]
    if checkpoints:
        places.append((checkpoints, partial(find_checkpoints_in_s3, checkpoints, days, unfinished=unfinished)))
    for url, find in places:
        try:
            plan.entries += find()
        except InputError as error:
            plan.problems.append(f"{error}; nothing of {url} is removed")
            continue
        if keeps_versions(url):
            plan.remarks.append(f"the bucket of {url} keeps versions: its lifecycle rules free the space")
    plan.entries = keep_sources(plan.entries)


def _unfinished_fingerprints(entries: Sequence[Entry]) -> Iterator[str]:
    for entry in entries:
        if entry.path and not entry.goes and (file := entry.path / FINGERPRINT_FILE).is_file():
            yield file.read_text(encoding="utf-8", errors="replace")


def _rename(path: Path, entry: Entry, done: Done) -> Path | None:
    """Renames an entry away; None, with the reason in `done`, if it cannot be."""
    with ExitStack() as held:
        try:
            if entry.lock and entry.lock.parent.is_dir():
                held.enter_context(FileLock(entry.lock, mode=file_mode()).acquire(timeout=0))
            hidden = path if is_renamed(path) else rename_away(path)
            if entry.lock and entry.lock.parent != path:
                entry.lock.unlink(missing_ok=True)
            return hidden
        except Timeout:
            done.left.append(f"{entry.place} stays: its work goes on")
        except OSError as error:
            done.failed.append(f"{entry.place} cannot be renamed: {error.strerror}")
    return None


def _forget_old_uses(uses: Sequence[Use], days: float) -> None:
    for use in uses:
        if not use.runs and time.time() - use.started > days * DAY:
            use.note.unlink(missing_ok=True)
