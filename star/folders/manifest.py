"""The manifest of a finished folder: every file with its size and sha256, and where the folder came from.

A folder without a valid manifest is refused as an input.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from star.errors import InputError
from star.hashing import digest_of, sha256_of

MANIFEST = "manifest.json"
METRICS = "metrics.json"  # figures about the work (seconds among them): not part of what the work is
# Nor is how fast it went, and what is drawn of both.
ABOUT = frozenset({METRICS, "timing.json", "report.html", "report.md"})


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
    """What a stage's folder holds and where it came from. `part` is i/n when it is one of several."""

    stage: str
    fingerprint: str
    config_digest: str
    code_digest: str
    code_version: str
    inputs: dict[str, str]
    files: list[FileEntry] = field(default_factory=list)
    part: str | None = None
    ancestors: dict[str, dict] = field(default_factory=dict)  # digest -> summary, of every stage above this one
    origin: dict[str, str] = field(default_factory=dict)  # commit, image, runs: where it was made

    def summary(self) -> dict:
        """What the manifests below this one keep of it."""
        kept = ("stage", "fingerprint", "config_digest", "code_digest", "code_version", "inputs", "origin")
        return {key: getattr(self, key) for key in kept}

    @property
    def digest(self) -> str:
        """sha256 of the content: names, sizes and digests of all files but those about the work."""
        content = [asdict(entry) for entry in self.files if entry.path not in ABOUT]
        return digest_of({"stage": self.stage, "files": content})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished folder.

    Raises:
        InputError: the folder is missing, has no manifest, or the manifest cannot be read; the message names the folder.
    """
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}: run the stage that makes it first")
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(
            f"{folder} has no {MANIFEST}, so it is not a finished stage's output: run the stage that makes it again"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        files = [FileEntry(**entry) for entry in content.pop("files")]
        return Manifest(**content, files=files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{file} is damaged ({type(error).__name__}): delete {folder} and run its stage again"
        ) from error


def open_input(folder: Path, *, stage: str) -> Manifest:
    """Verifies a finished folder of `stage`, every file by size and sha256, and returns its manifest.

    Raises:
        InputError: it is another stage's output, or a file is missing or changed; the message names it.
    """
    manifest = read_manifest(folder)
    if manifest.stage != stage:
        raise InputError(
            f"{folder} is the output of {manifest.stage}, not of {stage}: give the folder that `star {stage}` wrote"
        )
    for entry in manifest.files:
        file = folder / entry.path
        if not file.is_file() or file.stat().st_size != entry.size or sha256_of(file) != entry.sha256:
            raise InputError(
                f"{file} is missing or was changed since `star {stage}` wrote it: delete {folder} and run the stage again"
            )
    return manifest


def is_finished(out: Path, *, fingerprint: str) -> bool:
    """Whether `out` already is the whole result of exactly this work. A damaged result counts as not finished."""
    try:
        return read_manifest(out).fingerprint == fingerprint and bool(open_input(out, stage=read_manifest(out).stage))
    except InputError:
        return False


def refuse_foreign(out: Path) -> None:
    """Raises InputError when `out` holds anything that is not a stage's output: it will not be overwritten."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise InputError(f"{out} exists and is not a stage's output: give another folder, or move it away")
