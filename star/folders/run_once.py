"""Runs one piece of work under the folder contract: done once, whole or not there, resumed after a kill.

Every folder that STAR publishes goes through `run_once`: the stages, their merges, `star evaluate --model` and the data commands.

    run_once(describe, work, out=Path("runs/data"))

    1. refuses to overwrite a folder that STAR did not write
    2. describe(): verifies the inputs and returns the manifest of the work, its file list still empty
    3. puts a whole result in place that a kill caught between two renames
    4. answers from the result of the same work, where there is one, and removes what a kill left of the partial folder
    5. otherwise locks the partial folder, which a killed run of the same work left or which is new
    6. work(workspace, manifest): writes the result into workspace.out and keeps what a resumed run needs in workspace.state
    7. writes metrics.json, then the manifest, renames the folder to its place and removes the partial folder
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from star.folders.manifest import METRICS, Manifest, is_finished, refuse_foreign
from star.folders.workspace import Workspace, clear_finished, finish_interrupted, partial_folder, publish
from star.hashing import digest_of
from star.json_file import write_json


@dataclass(frozen=True)
class Result:
    """What a piece of work found out: its figures, and where it was made (commit, image, runs)."""

    metrics: Mapping[str, Any]
    origin: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The figures of the finished folder, and whether it was there already."""

    metrics: dict[str, Any]
    cached: bool


def run_once(
    describe: Callable[[], Manifest],
    work: Callable[[Workspace, Manifest], Result],
    *,
    out: Path,
    resume: bool = True,
    reuse: bool = True,
) -> Outcome:
    """Runs `work` unless `out` already holds its result, and publishes it.

    Args:
        describe: verifies the inputs; returns the manifest to be, with the fingerprint by which equal work is known.
        work: writes the result into the workspace it is given; the manifest is that of `describe`.
        resume: go on with a killed run of the same work; otherwise begin anew.
        reuse: answer from a finished result; otherwise the work is done again each time.

    Raises:
        InputError: `out` is not a folder of STAR's, an input is missing or damaged, or another process does the same work.
    """
    refuse_foreign(out)
    manifest = describe()
    finish_interrupted(out, stage=manifest.stage, fingerprint=manifest.fingerprint)
    if reuse and is_finished(out, fingerprint=manifest.fingerprint):
        clear_finished(out, stage=manifest.stage, fingerprint=manifest.fingerprint)
        return Outcome(read_metrics(out), cached=True)
    with partial_folder(out, stage=manifest.stage, fingerprint=manifest.fingerprint, resume=resume) as workspace:
        result = work(workspace, manifest)
        write_json(workspace.out / METRICS, result.metrics)
        publish(workspace.out, out=out, manifest=replace(manifest, origin=result.origin))
    return Outcome(dict(result.metrics), cached=False)


def describe_work(
    stage: str, *, settings: str, code: str, inputs: Mapping[str, Manifest | str], part: str | None = None
) -> Manifest:
    """The manifest of work to come, its file list empty.

    Args:
        settings: all settings that determine the result, as canonical JSON.
        code: digest of the code that runs.
        inputs: the verified manifest of each input folder, or the digest of an input that is none.
        part: i/n, when the result will be one of n parts.
    """
    digests = {key: entry.digest if isinstance(entry, Manifest) else entry for key, entry in inputs.items()}
    config_digest = digest_of(settings)
    content = [stage, config_digest, code, digests, *([part] if part else [])]
    folders = [entry for entry in inputs.values() if isinstance(entry, Manifest)]
    return Manifest(
        stage=stage,
        fingerprint=digest_of(content),
        config_digest=config_digest,
        code_digest=code,
        code_version=code_version(),
        inputs=digests,
        part=part,
        ancestors={
            digest: summary
            for entry in folders
            for digest, summary in [(entry.digest, entry.summary()), *entry.ancestors.items()]
        },
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """The figures of a finished folder."""
    return json.loads((folder / METRICS).read_text(encoding="utf-8"))


def code_version() -> str:
    """The version of the installed package."""
    try:
        return version("star-distill")
    except PackageNotFoundError:
        return "source"
