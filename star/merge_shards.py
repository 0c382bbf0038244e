"""Merges shards: verifies what a stage wrote with `--shard 1/n` to `n/n` and publishes it as one process's result.

    runs/rollout-1  manifest: "part": "1/2", 206 sequences
    runs/rollout-2  manifest: "part": "2/2", 206 sequences
    star merge runs/rollout-1 runs/rollout-2 --out runs/rollout

writes runs/rollout with 412 sequences and `"part": null`: the same files as one process without `--shard` writes. The
order in which the folders are given does not matter.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from star.config.base import flat
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.folders.manifest import Manifest, open_input, read_manifest
from star.folders.run_once import Result, run_once
from star.folders.shard import Shard
from star.folders.workspace import Workspace
from star.hashing import digest_of
from star.terminal import guard_terminal

if TYPE_CHECKING:
    from star.tracking.runs import Run

Metrics = dict[str, float]


def merge(folders: list[Path], *, out: Path) -> Metrics:
    """Makes one folder of all shards of `rollout`, `extract_topk` or `evaluate`. Nothing is computed again.

    Raises:
        InputError: a shard is missing, damaged, given twice, or of another run; the message names it.
    """
    from star.teacher.merge_shards import merge_shards
    from star.tracking.runs import Run

    if read_manifest(Path(folders[0])).stage == "evaluate":
        return merge_evaluation(folders, out=out)

    def work(manifests: dict[Path, Manifest], workspace: Workspace, run: "Run") -> Metrics:
        stage = next(iter(manifests.values())).stage
        return merge_shards(list(manifests), stage=stage, out=workspace.out, scratch=workspace.state)

    return _merge_and_publish(folders, work, out=out, code=code_digest(merge), tracked=nullcontext(Run()))


def merge_evaluation(folders: list[Path], *, out: Path) -> Metrics:
    """Merges the shards of `evaluate`: scores all rows, and is tracked as the evaluation.

    It is separate from `merge` because its code digest has the code of the evaluation. In one function, an edit of the
    evaluation would merge the teacher's log-probabilities again, and train students again on them.

    Raises:
        InputError: as `merge` does.
    """
    from star.evaluation.evaluate import log_model_runs
    from star.evaluation.shards import merge_shards, read_shard
    from star.tracking.runs import stage_run

    def work(manifests: dict[Path, Manifest], workspace: Workspace, run: "Run") -> Metrics:
        ordered = list(manifests)
        gathered = [read_shard(folder) for folder in ordered]
        run.log_params(flat(gathered[0].settings))
        metrics = merge_shards(ordered, gathered, out=workspace.out)
        log_model_runs(metrics, gathered[0])
        return metrics

    return _merge_and_publish(folders, work, out=out, code=code_digest(merge_evaluation), tracked=stage_run("evaluate"))


def require_all_shards(manifests: dict[Path, Manifest]) -> dict[Path, Shard]:
    """Returns the shard of each folder. They are all shards of one run of one stage, each once.

    Raises:
        InputError: a folder is no shard or of another run, or a shard is missing or there twice.
    """
    folders, first = list(manifests), next(iter(manifests.values()))
    alike = ["stage", "config_digest", "code_digest"]
    if first.stage != "extract-topk":  # each of its shards may be made from another shard of the rollout
        alike.append("inputs")
    shards: dict[Path, Shard] = {}
    for folder, manifest in manifests.items():
        if manifest.part is None:
            raise InputError(f"{folder} is a whole result, not a shard: merge only what --shard i/n wrote")
        for field in alike:
            if getattr(manifest, field) != getattr(first, field):
                raise InputError(f"{folder} and {folders[0]} differ in their {field}: merge only shards of one run")
        shards[folder] = Shard.parse(manifest.part)
    found = set(shards.values())
    count = shards[folders[0]].count
    wanted = {Shard(number, count) for number in range(1, count + 1)}
    if len(found) != len(shards):
        raise InputError(f"the same shard is there twice among {', '.join(map(str, folders))}: give each once")
    if found != wanted:
        missing = ", ".join(sorted(str(shard) for shard in wanted - found)) or "shards of one count"
        raise InputError(f"missing among the shards: {missing}; run the stage with that --shard first")
    return shards


def _merge_and_publish(
    folders: list[Path],
    work: Callable[[dict[Path, Manifest], Workspace, "Run"], Metrics],
    *,
    out: Path,
    code: str,
    tracked: AbstractContextManager["Run"],
) -> Metrics:
    """Runs `work`, which merges the shards in their order into a folder, and publishes that folder.

    Args:
        work: called with the verified shards in their order, the workspace to write to, and the run to log to.
        code: digest of the merging code.
        tracked: opens the run.
    """
    guard_terminal()
    manifests: dict[Path, Manifest] = {}

    def describe() -> Manifest:
        # Kept for `tracked_work`, so that large shards are verified once.
        manifests.update(_open_shards(folders))
        # By content: a shard that was made again with other content is merged again.
        digests = {str(manifest.part): manifest.digest for manifest in manifests.values()}
        first = next(iter(manifests.values()))
        return replace(
            first,
            fingerprint=digest_of(["merge", code, digests]),
            inputs=_inputs_of_merged(manifests, digests),
            files=[],
            part=None,
        )

    def tracked_work(workspace: Workspace, manifest: Manifest) -> Result:
        from star.registry.lineage import collect_origin, input_datasets

        with tracked as run:
            for folder, shard in manifests.items():
                open_input(folder, stage=shard.stage, trust="own")
            run.set_tags({"star.fingerprint": manifest.fingerprint})
            run.log_inputs(input_datasets({str(shard.part): folder for folder, shard in manifests.items()}))
            metrics = work(manifests, workspace, run)
            run.log_metrics(metrics)
            for report in workspace.out.glob("report.*"):
                run.log_artifact(report)
            return Result(metrics, {**manifest.origin, **collect_origin()})

    # A merge has no checkpoints, so there is nothing to resume from.
    return run_once(describe, tracked_work, out=Path(out).absolute(), resume=False, sources=folders).metrics


def _open_shards(folders: list[Path]) -> dict[Path, Manifest]:
    """Verifies the shards and returns them in the order of their numbers."""
    manifests = {Path(folder): open_input(Path(folder), stage=read_manifest(Path(folder)).stage) for folder in folders}
    shards = require_all_shards(manifests)
    return {folder: manifests[folder] for folder in sorted(shards, key=lambda folder: shards[folder])}


def _inputs_of_merged(manifests: dict[Path, Manifest], digests: dict[str, str]) -> dict[str, str]:
    """Returns the inputs that all shards have in common, and the shards themselves as inputs `1/n` to `n/n`."""
    first, *others = (manifest.inputs for manifest in manifests.values())
    # Shards of the extraction may come from different shards of the rollout.
    # An input like that is not one of the whole result.
    shared = {key: digest for key, digest in first.items() if all(other.get(key) == digest for other in others)}
    return shared | digests
