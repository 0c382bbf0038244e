"""Reads manifest.json and verifies finished folders by it: every file with size and sha256, and how it was made.

A folder without a valid manifest is refused as an input. Example (shortened), of a folder that `star rollout` wrote:

    {"stage": "rollout",
     "fingerprint": "0b6dd34c...",                    of the work: stage, settings, code, inputs
     "config_digest": "91b1...", "code_digest": "4fc2...", "code_version": "0.1.0",
     "inputs": {"data": "7a4e...", "teacher": "c01d..."},   the content digests of the input folders
     "files": [{"path": "sequences.parquet", "size": 73311, "sha256": "5feceb66...", "rows": 412}, ...],
     "part": null,                                    "2/4" in the folder of one shard
     "ancestors": {"7a4e...": {"stage": "synthesize", ...}, ...},
     "origin": {"commit": "ab22...", "mlflow_run": "3b50...", "seed": "7"}}

Two digests matter. The `fingerprint` is known before the work starts: equal fingerprints mean equal work, so the
result can be reused. The content digest (`Manifest.digest`) is known after it: the next stage's fingerprint contains
it. Two runs that wrote the same files have the same content digest, and what was made from either is valid for both.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from star.digest_cache import Trust, digests_of
from star.errors import InputError
from star.folders.manifest_form import FORM, place_of_misfit
from star.folders.owners import refuse_other_owner
from star.hashing import digest_of

MANIFEST = "manifest.json"
METRICS = "metrics.json"
# Excluded from the content digest: these files vary between identical runs (durations, and reports that show them).
NOT_IN_DIGEST = frozenset({METRICS, "timing.json", "report.html", "report.md"})
OPEN_FILE = re.compile(r"\.nfs[0-9a-f]+")  # NFS gives this name to a deleted file that a process still has open

_verified: set[Path] = set()  # resolved folders that `open_input` has verified in this process


@dataclass(frozen=True)
class FileEntry:
    """One file of a stage's folder.

    Attributes:
        path: relative to the folder.
        size: in bytes.
        rows: number of data rows; None for files without rows.
    """

    path: str
    size: int
    sha256: str
    rows: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        fingerprint: digest of the work (stage, settings, code, inputs), by which a finished result is recognised.
        inputs: name of the input -> its content digest.
        part: i/n in the folder of one shard, else None.
        ancestors: content digest -> summary, of every folder that this one was made from, directly or through others.
        origin: where it was made: commit, image, runs, and where the inputs of its configuration came from.
    """

    stage: str
    fingerprint: str
    config_digest: str
    code_digest: str
    code_version: str
    inputs: dict[str, str]
    files: list[FileEntry] = field(default_factory=list)
    part: str | None = None
    ancestors: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The fields that manifests of later folders repeat under `ancestors`."""
        kept = ("stage", "fingerprint", "config_digest", "code_digest", "code_version", "inputs", "origin")
        return {key: getattr(self, key) for key in kept}

    @property
    def digest(self) -> str:
        """The content digest: sha256 over the names, sizes and digests of all files but those of NOT_IN_DIGEST."""
        content = [asdict(entry) for entry in self.files if entry.path not in NOT_IN_DIGEST]
        return digest_of({"stage": self.stage, "files": content})


def read_manifest(folder: Path) -> Manifest:
    """Reads a folder's manifest. The files are not verified; `open_input` does that.

    Raises:
        InputError: the folder is missing, has no manifest, or the manifest cannot be read; the message names the
            folder.
    """
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}: run the stage that makes it first")
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(
            f"{folder} has no {MANIFEST}, so it is not a finished stage's output: run the stage that makes it again"
        )
    try:
        manifest = parse_manifest(file.read_bytes())
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}): delete {folder} and run its stage again") from error
    if outside := paths_outside(manifest):
        raise InputError(f"{file} names {outside[0]!r}, outside its folder: do not trust this folder")
    return manifest


def parse_manifest(content: bytes) -> Manifest:
    """The manifest of this content. The paths of its files may lead anywhere.

    Raises:
        ValueError: it is damaged; the message says what is wrong.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON") from error
    if (place := place_of_misfit(fields, FORM)) is not None:
        raise ValueError(f"{place[:200].lstrip('.') or 'it'} is missing or of another kind")
    try:
        return Manifest(**{**fields, "files": [FileEntry(**entry) for entry in fields["files"]]})
    except TypeError as error:  # from unknown fields
        raise ValueError("it has fields that this STAR does not know") from error


def paths_outside(manifest: Manifest) -> list[str]:
    """The paths of a manifest that do not stay inside its folder."""
    return [entry.path for entry in manifest.files if leads_outside(entry.path)]


def open_input(folder: Path, *, stage: str, trust: Trust = "all") -> Manifest:
    """Verifies that a folder is a finished output of `stage`, every file by size and sha256, and returns its manifest.

    Args:
        trust: which remembered digests count (star/digest_cache.py): `own` for what is loaded, `none` for what is published.

    Raises:
        InputError: it is another stage's output, or a file is missing or was changed; the message names it.
    """
    manifest = read_manifest(folder)
    if manifest.stage != stage:
        raise InputError(
            f"{folder} is the output of {manifest.stage}, not of {stage}: give the folder that `star {stage}` wrote"
        )
    wanted = {folder / entry.path: entry for entry in manifest.files}
    # The sizes are compared first, because a sha256 reads the whole file.
    wrong = [file for file, entry in wanted.items() if not _is_file(file) or file.stat().st_size != entry.size]
    if not wrong:
        found = digests_of(wanted, trust=trust)
        changed = [file for file, entry in wanted.items() if found[file] != entry.sha256]
        # Nobody is sent away because of what is remembered.
        found |= digests_of(changed, trust="none")
        wrong = [file for file in changed if found[file] != wanted[file].sha256]
    if wrong:
        raise InputError(
            f"{wrong[0]} is missing or was changed since `star {stage}` wrote it: delete {folder} and run the stage again"
        )
    refuse_unlisted(folder, manifest)
    _verified.add(folder.resolve())
    return manifest


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name that is too long for a file
        return False


def was_verified(folder: Path) -> bool:
    """Whether `open_input` of this process has verified the folder, or one in which it lies."""
    place = folder.resolve()
    return any(parent in _verified for parent in (place, *place.parents))


def unlisted_paths(folder: Path, manifest: Manifest) -> list[str]:
    """The files in a finished folder that its manifest does not list, and links to folders, by relative path.

    A loader reads what lies in a folder: an adapter or a chat template that somebody adds would change the model under
    its old digest. Empty folders change nothing and are not named.
    """
    listed = {MANIFEST, *(entry.path for entry in manifest.files)}
    found = []
    # os.walk does not follow links to folders, which no stage writes, so what is behind them would not be seen.
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        others = [name for name in files if not OPEN_FILE.fullmatch(name)]
        paths = [(Path(place) / name).relative_to(folder).as_posix() for name in (*links, *others)]
        found += [path for path in paths if path not in listed]
    return sorted(found)


def refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    """Raises InputError if the folder has files that its manifest does not list; the message names the first."""
    if found := unlisted_paths(folder, manifest):
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise InputError(
            f"{folder} has {found[0]!r}{others}, which `star {manifest.stage}` did not write (not in its {MANIFEST}): "
            "move it out of the folder"
        )


def copy_listed_files(folder: Path, target: Path, *, copy: Callable[[Path, Path], object]) -> None:
    """Copies what the folder's manifest lists, and last the manifest, into `target`. Nothing else is copied or verified.

    Raises:
        InputError: the folder has no readable manifest.
        OSError: a file cannot be copied.
    """
    for name in (*(entry.path for entry in read_manifest(folder).files), MANIFEST):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy(folder / name, target / name)


def leads_outside(path: str) -> bool:
    """Whether a path that should be relative to a folder is absolute or has `..`."""
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts


def is_finished(out: Path, *, fingerprint: str) -> bool:
    """Whether `out` has the complete, undamaged result of the work with this fingerprint."""
    try:
        return read_manifest(out).fingerprint == fingerprint and bool(open_input(out, stage=read_manifest(out).stage))
    # A damaged result counts as missing, so that the work is done again.
    except InputError:
        return False


def refuse_additions(out: Path, *, fingerprint: str) -> None:
    """Raises InputError if `out` is the result of the work with this fingerprint and has files that its manifest does not list."""
    try:
        manifest = read_manifest(out)
    # Nothing is there, or a damaged folder, which is made again.
    except InputError:
        return
    if manifest.fingerprint == fingerprint:
        refuse_unlisted(out, manifest)


def refuse_foreign(out: Path) -> None:
    """Raises InputError if `out` is not to be overwritten: it has content without a manifest, or is another user's."""
    refuse_other_owner(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise InputError(f"{out} exists and is not a stage's output: give another folder, or move it away")


def refuse_to_replace(out: Path, *, stage: str, sources: Iterable[Path]) -> None:
    """Checks that work of this stage, which reads `sources`, may replace the finished folder at `out`.

    Raises:
        InputError: `out` is the result of another stage, or a source is that folder or lies in it.
    """
    for source in sources:
        if source.resolve().is_relative_to(out.resolve()):
            raise InputError(f"--out {out} would replace the input {source}: give another folder")
    try:
        found = read_manifest(out).stage
    # Nothing is there, or a damaged folder, which is made again.
    except InputError:
        return
    if found != stage:
        raise InputError(
            f"{out} is the output of {found}, which {stage} would replace: give every stage its own folder"
        )
