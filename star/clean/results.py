"""Finds the finished results of the home, and says of each whether something needs it.

A result stays if it is young, in use, named by the registry, by `latest`, by dvc.lock or by the profile, or if a result that
stays was made from it. It also stays where it is not STAR's alone: files of others, or files that its manifest does not
list.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from star.clean.entry import DAY, IN_USE, MADE_FROM, NAMED, NOT_OURS, REGISTRY, UNREAD, YOUNG, Entry, owner_problem
from star.errors import InputError
from star.folders.in_use import Use
from star.folders.manifest import MANIFEST, Manifest, read_manifest, unlisted_paths
from star.folders.reuse import finished_folders, shown
from star.home import home
from star.registry.lineage import locked_outs

REGISTRATION = "registration.json"


@dataclass(frozen=True)
class FoundResult:
    """A finished result: its folder, and what goes with it (`whole`): with `star run` also kfp's files beside it."""

    folder: Path
    whole: Path
    manifest: Manifest
    changed: float


@dataclass(frozen=True)
class Protection:
    """What keeps results.

    Attributes:
        days: that a result stays although nothing needs it.
        digests: content digest -> who needs it; None if the registry cannot be read.
        uses: what running and killed work reads.
        paths: further paths that the profile names.
    """

    days: float
    digests: Mapping[str, str] | None
    uses: Sequence[Use]
    paths: Collection[Path] = ()


def find_results() -> Iterator[FoundResult]:
    """Every folder of the home with a manifest of STAR that can be read."""
    for folder in finished_folders(home()):
        try:
            manifest, changed = read_manifest(folder), (folder / MANIFEST).lstat().st_mtime
        # Damaged, of another program, or replaced meanwhile: not known to be STAR's.
        except (InputError, OSError):
            continue
        # kfp's folder of a task is pipeline/RUN/TASK, with its own files and one result.
        in_task = folder.parents[2] == home() / "pipeline" and len(list(folder.parent.glob(f"*/{MANIFEST}"))) == 1
        yield FoundResult(folder, folder.parent if in_task else folder, manifest, changed)


def judge_results(results: Sequence[FoundResult], protection: Protection) -> list[Entry]:
    """Says of each result whether it goes."""
    latest, tracked = _targets_of_latest(), _tracked_by_dvc()
    stays = [_why_it_stays(result, protection, named={**latest, **tracked}) for result in results]
    # A manifest names all ancestors, so one pass is enough.
    made_from: dict[str, str] = {}
    for result, reason in zip(results, stays, strict=True):
        for digest in _ancestors(result.manifest) if reason else ():
            made_from.setdefault(digest, shown(result.folder))
    entries = []
    for result, reason in zip(results, stays, strict=True):
        if not reason and (descendant := made_from.get(result.manifest.digest)):
            reason = MADE_FROM, descendant
        age = time.time() - result.changed
        why, detail = reason or (f"{age / DAY:.0f} days old, and nothing needs it", "")
        entries.append(Entry("result", shown(result.whole), age, not reason, why, detail, path=result.whole))
    return entries


def digests_that_stay(results: Sequence[FoundResult], entries: Sequence[Entry]) -> dict[str, str]:
    """The digests of all results that stay, with those that they were made from: their copies in S3 stay too."""
    found: dict[str, str] = {}
    for result, entry in zip(results, entries, strict=True):
        for digest in () if entry.goes else (result.manifest.digest, *_ancestors(result.manifest)):
            found.setdefault(digest, entry.place)
    return found


def require_this_registry(results: Sequence[FoundResult], models: Collection[str]) -> None:
    """`require_registered` for every registration of the home."""
    for result in results:
        if result.manifest.stage == "register":
            with suppress(OSError):
                content = (result.folder / REGISTRATION).read_bytes()
                require_registered(content, models, folder=shown(result.folder))


def require_registered(registration: bytes, models: Collection[str], *, folder: str) -> None:
    """Checks that the registry has the model that a registration names. An empty one, or another one, would need nothing.

    Raises:
        InputError: it has no model of that name.
    """
    try:
        name = json.loads(registration)["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    if name not in models:
        raise InputError(
            f"{folder} registered a model {name!r}, which this registry does not have: set MLFLOW_TRACKING_URI to the one that "
            "has it, or remove that folder by hand if the model is gone"
        )


def _why_it_stays(result: FoundResult, protection: Protection, *, named: Mapping[Path, str]) -> tuple[str, str] | None:
    folder, kept_seconds = result.folder, protection.days * DAY
    if problem := owner_problem(result.whole):
        return NOT_OURS, problem
    if unlisted := unlisted_paths(folder, result.manifest):
        return NOT_OURS, f"{shown(folder)} has {unlisted[0]!r}"
    for use in protection.uses:
        if (use.runs or time.time() - use.started < kept_seconds) and _overlaps(result.whole, use.paths):
            return IN_USE, use.by
    if folder in named or _overlaps(folder, protection.paths):
        return NAMED, named.get(folder, "the profile")
    if time.time() - result.changed < kept_seconds:
        return YOUNG, ""
    if protection.digests is None:
        return UNREAD, ""
    by = protection.digests.get(result.manifest.digest)
    return (REGISTRY, by) if by else None


def _ancestors(manifest: Manifest) -> tuple[str, ...]:
    return (*manifest.ancestors, *manifest.inputs.values())


def _overlaps(folder: Path, paths: Collection[Path]) -> bool:
    return any(path.is_relative_to(folder) or folder.is_relative_to(path) for path in paths)


def _targets_of_latest() -> dict[Path, str]:
    folder = home() / "latest"
    links = folder.iterdir() if folder.is_dir() else ()
    return {link.resolve(): f"{shown(folder)}/{link.name}" for link in links}


def _tracked_by_dvc() -> dict[Path, str]:
    """The folders that a dvc.lock names, here or beside the home."""
    found: dict[Path, str] = {}
    for root in {Path.cwd(), home().parent}:
        outs = locked_outs(root / "dvc.lock")
        if outs is None and (root / "dvc.lock").exists():
            raise InputError(f"{root / 'dvc.lock'} cannot be read, so nobody can know what DVC tracks: correct it")
        found |= {(root / path).resolve(): "dvc.lock" for path in outs or ()}
    return found
