"""Runs one piece of work under the folder contract: once, published completely or not at all, resumed after a kill.

Every folder that STAR publishes goes through `run_once`: the stages, their merges, `star evaluate --model` and the
data commands.

    run_once(describe, work, out=Path("runs/data"))

 1. Refuses an output folder that has content without a manifest, because STAR did not write it.
 2. Calls `describe()`, which verifies the inputs and returns the draft manifest. Its fingerprint identifies the work.
    Refuses an output folder that is an input or the result of another stage.
 3. If a killed process left the complete result in another place, moves or copies it to `out`.
 4. If `out` has the finished result of this work, returns its metrics and removes what a kill left of the workspace.
 5. Otherwise locks the workspace. One that a killed run of the same work left is used again; any other one is emptied.
 6. If another folder of this home has the finished result of this work, puts a copy at `out` (reuse.py).
 7. Otherwise calls `work(workspace, manifest)`, which writes the result to workspace.out, and to workspace.state what a
    resumed run needs.
 8. Writes metrics.json and then manifest.json, and renames the folder to `out`.
 9. Removes the workspace and releases the lock.

On disk, for `star distill --out runs/model`:

    during the work                      runs/.model.partial/fingerprint          0b6dd34c7f2e91aa...
                                         runs/.model.partial/state/ckd/checkpoint-40/...
                                         runs/.model.partial/out/                 (no manifest.json yet)
                                         runs/.model.partial.lock
    killed                               the same files; the operating system released the lock
    started again, same fingerprint      goes on from checkpoint-40
    started again, other settings        empties .model.partial first
    published                            runs/model/{model.safetensors, ..., metrics.json, manifest.json} and no hidden files
    started again                        answers from runs/model/metrics.json; the work is not done again

A reader that finds a manifest.json can rely on every file that it lists. working_paths.py names the hidden folders,
and where they lie with STAR_WORK; publish.py shows the order of the renames.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from star.folders.in_use import using
from star.folders.manifest import METRICS, Manifest, is_finished, refuse_additions, refuse_foreign, refuse_to_replace
from star.folders.publish import finish_interrupted_publish, publish
from star.folders.reuse import take_equal_result
from star.folders.workspace import Workspace, open_workspace, remove_leftover_workspace
from star.hashing import digest_of
from star.json_file import write_json


@dataclass(frozen=True)
class Result:
    """What `work` returns: the metrics for metrics.json, and the origin for the manifest (commit, image, runs)."""

    metrics: Mapping[str, Any]
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What `run_once` did.

    Attributes:
        metrics: of the finished folder.
        cached: whether an earlier run had made it.
        taken_from: the other folder from which it was copied; None if `out` had it already, or it was made now.
    """

    metrics: dict[str, Any]
    cached: bool
    taken_from: str | None = None


def run_once(
    describe: Callable[[], Manifest],
    work: Callable[[Workspace, Manifest], Result],
    *,
    out: Path,
    resume: bool = True,
    sources: Iterable[Path] = (),
    is_valid: Callable[[Path], bool] = lambda folder: True,
) -> Outcome:
    """Runs `work` and publishes its result, unless `out` already has the result of the same work.

    Args:
        describe: verifies the inputs and returns the draft manifest (`draft_manifest`).
        work: writes the result into the workspace. Its second argument is the draft manifest.
        out: the folder to publish, an absolute path.
        resume: go on with a killed run of the same work, or take its result from another folder; otherwise start from
            an empty workspace.
        sources: the folders and files that the work reads, which `out` must not replace.
        is_valid: whether a finished result of the same work still holds. Only work that changes something outside its
            folder needs it.

    Raises:
        InputError: `out` has content of others, also beside a finished result, or is an input or another stage's result;
            an input is missing or damaged; or another process is doing the same work.
    """
    read = list(sources)
    # From before the first byte is read: `star clean` must not take an input or an older result away meanwhile.
    with using([*read, out], by=str(out)):
        return _run_once(describe, work, out=out, resume=resume, sources=read, is_valid=is_valid)


def _run_once(
    describe: Callable[[], Manifest],
    work: Callable[[Workspace, Manifest], Result],
    *,
    out: Path,
    resume: bool,
    sources: list[Path],
    is_valid: Callable[[Path], bool],
) -> Outcome:
    # First, because `describe` reads every byte of the inputs.
    refuse_foreign(out)
    manifest = describe()
    refuse_to_replace(out, stage=manifest.stage, sources=sources)
    # Before the question whether the result is finished, because this may put it in place.
    finish_interrupted_publish(out, stage=manifest.stage, fingerprint=manifest.fingerprint)
    # Otherwise the work would be done a second time because of it, and the file would be gone with the older folder.
    refuse_additions(out, fingerprint=manifest.fingerprint)
    if is_finished(out, fingerprint=manifest.fingerprint) and is_valid(out):
        remove_leftover_workspace(out, stage=manifest.stage, fingerprint=manifest.fingerprint)
        return Outcome(read_metrics(out), cached=True)
    with open_workspace(out, stage=manifest.stage, fingerprint=manifest.fingerprint, resume=resume) as workspace:
        # Again under the lock: another process may have finished the work while this one waited for it.
        if is_finished(out, fingerprint=manifest.fingerprint) and is_valid(out):
            return Outcome(read_metrics(out), cached=True)
        # Under the lock, so that two processes do not copy to the same place.
        if resume and (place := take_equal_result(out, fingerprint=manifest.fingerprint, is_valid=is_valid)):
            return Outcome(read_metrics(out), cached=True, taken_from=place)
        result = work(workspace, manifest)
        write_json(workspace.out / METRICS, result.metrics)
        # Inside the block: the workspace is locked here, and it is removed at the block's end.
        publish(workspace.out, out=out, manifest=replace(manifest, origin=result.origin))
    return Outcome(dict(result.metrics), cached=False)


def draft_manifest(
    stage: str, *, settings: str, code: str, inputs: Mapping[str, Manifest | str], part: str | None = None
) -> Manifest:
    """The manifest of work that is about to start: everything but the list of files.

    Its fingerprint is the digest of all arguments. Two pieces of work with the same fingerprint have the same result.

    Args:
        settings: all settings that determine the result, as canonical JSON.
        code: digest of the code that runs (`star.folders.code_digest`).
        inputs: name -> the verified manifest of an input folder, or the digest of an input that has no manifest.
        part: i/n if the result is one of n shards.
    """
    digests = {key: entry.digest if isinstance(entry, Manifest) else entry for key, entry in inputs.items()}
    config_digest = digest_of(settings)
    content = [stage, config_digest, code, digests, *([part] if part else [])]
    ancestors: dict[str, dict[str, Any]] = {}
    for entry in inputs.values():
        if isinstance(entry, Manifest):
            ancestors |= {entry.digest: entry.summary(), **entry.ancestors}
    return Manifest(
        stage=stage,
        fingerprint=digest_of(content),
        config_digest=config_digest,
        code_digest=code,
        code_version=code_version(),
        inputs=digests,
        part=part,
        ancestors=ancestors,
    )


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics of a finished folder."""
    return json.loads((folder / METRICS).read_text(encoding="utf-8"))


def code_version() -> str:
    """The version of the installed package, or `source` where it is not installed."""
    try:
        return version("star-distill")
    except PackageNotFoundError:
        return "source"
