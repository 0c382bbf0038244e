"""Finds the finished results of the home, and says of each whether something needs it.

A result stays if it is young, in use, named by the registry, by `latest`, by dvc.lock, by a .dvc file or by the profile, or if a
result that stays was made from it. It also stays where it is not STAR's alone: files of others, or files that its manifest does not
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
from star.registry.needed import Needed

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
        for digest in ancestors(result.manifest) if reason else ():
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
        for digest in () if entry.goes else (result.manifest.digest, *ancestors(result.manifest)):
            found.setdefault(digest, entry.place)
    return found


def require_this_registry(results: Sequence[FoundResult], needed: Needed) -> None:
    """`require_registered` for every registration of the home."""
    for result in results:
        if result.manifest.stage == "register":
            with suppress(OSError):
                content = (result.folder / REGISTRATION).read_bytes()
                require_registered(content, needed, folder=shown(result.folder))


def require_registered(registration: bytes, needed: Needed, *, folder: str) -> None:
    """Checks that the registry knows what a registration names. An empty one, or another one, would need nothing of it.

    Raises:
        InputError: it has no model of that name, or nothing in it names that version's content.
    """
    try:
        said = json.loads(registration)
        name, digest = said["model"], said.get("model_digest", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    # The name alone says little, because most registries have a model `star`. The ledger knows deleted versions too.
    if name not in needed.models or (digest and digest not in needed.folders):
        raise InputError(
            f"{folder} registered a version of the model {name!r} that this registry does not know: set MLFLOW_TRACKING_URI to "
            "the one that has it, or remove that folder by hand if the version is gone"
        )


def why_in_use(path: Path, protection: Protection) -> tuple[str, str] | None:
    """Why a path stays: work reads it, or all that lies around it, or the profile names it. None for neither."""
    for use in protection.uses:
        if (use.runs or time.time() - use.started < protection.days * DAY) and _overlaps(path, use.paths):
            return IN_USE, use.by
    return (NAMED, "the profile") if _overlaps(path, protection.paths) else None


def ancestors(manifest: Manifest) -> tuple[str, ...]:
    """The content digests of all that a result was made from."""
    return (*manifest.ancestors, *manifest.inputs.values())


def _why_it_stays(result: FoundResult, protection: Protection, *, named: Mapping[Path, str]) -> tuple[str, str] | None:
    folder = result.folder
    if problem := owner_problem(result.whole):
        return NOT_OURS, problem
    if unlisted := unlisted_paths(folder, result.manifest):
        return NOT_OURS, f"{shown(folder)} has {unlisted[0]!r}"
    if in_use := why_in_use(result.whole, protection):
        return in_use
    for path, name in named.items():
        if _overlaps(folder, [path]):
            return NAMED, name
    if dvc_file := _dvc_file_of(folder):
        return NAMED, shown(dvc_file)
    if time.time() - result.changed < protection.days * DAY:
        return YOUNG, ""
    if protection.digests is None:
        return UNREAD, ""
    by = protection.digests.get(result.manifest.digest)
    return (REGISTRY, by) if by else None


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


def _dvc_file_of(folder: Path) -> Path | None:
    """The file by which `dvc add` tracks a folder, or one around it: it may not have been pushed yet."""
    places = (place.parent / f"{place.name}.dvc" for place in (folder, *folder.parents[:-1]))
    return next((file for file in places if file.is_file()), None)
