"""Parts become one: what a stage wrote with `--shard 1/n` to `n/n` is verified, put together, and published as one process's result."""

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

if TYPE_CHECKING:
    from star.tracking.runs import Run

Metrics = dict[str, float]


def merge(parts: list[Path], *, out: Path) -> Metrics:
    """Makes one folder of what `rollout`, `extract_topk` or `evaluate` wrote with shard 1/n to n/n; nothing is asked or computed again.

    Raises:
        InputError: a part is missing, damaged, there twice, or of another run; the message names it.
    """
    from star.teacher.merge_shards import merge_shards
    from star.tracking.runs import Run

    if read_manifest(Path(parts[0])).stage == "evaluate":
        return merge_evaluation(parts, out=out)

    def work(manifests: dict[Path, Manifest], made: Path, run: "Run") -> Metrics:
        return merge_shards(list(manifests), stage=next(iter(manifests.values())).stage, out=made)

    return _put_together(parts, work, out=out, code=code_digest(merge), tracked=nullcontext(Run()))


def merge_evaluation(parts: list[Path], *, out: Path) -> Metrics:
    """`merge` of what `evaluate` wrote: scores all rows, and is tracked as the evaluation.

    It is a function of its own so that an edit of the evaluation has no signal merged, and students trained, again.

    Raises:
        InputError: as `merge` does.
    """
    from star.evaluation.evaluate import log_model_runs
    from star.evaluation.shards import merge_shards, read_shard
    from star.tracking.runs import stage_run

    def work(manifests: dict[Path, Manifest], made: Path, run: "Run") -> Metrics:
        folders = list(manifests)
        gathered = [read_shard(folder) for folder in folders]
        run.log_params(flat(gathered[0].settings))
        metrics = merge_shards(folders, gathered, out=made)
        log_model_runs(metrics, gathered[0])
        return metrics

    return _put_together(parts, work, out=out, code=code_digest(merge_evaluation), tracked=stage_run("evaluate"))


def require_all_parts(manifests: dict[Path, Manifest]) -> None:
    """Raises InputError unless the folders are all parts, each once, of one run of one stage."""
    folders, found = list(manifests), list(manifests.values())
    alike = ["stage", "config_digest", "code_digest"]
    if found[0].stage != "extract-topk":  # each of its parts may be made of another part of the rollout
        alike.append("inputs")
    for folder, manifest in manifests.items():
        if manifest.part is None:
            raise InputError(f"{folder} is a whole result, not a part: merge only what --shard i/n wrote")
        for what in alike:
            if getattr(manifest, what) != getattr(found[0], what):
                raise InputError(f"{folder} and {folders[0]} differ in their {what}: merge only parts of one run")
    parts = [Shard.parse(manifest.part) for manifest in found]
    wanted = {Shard(number, parts[0].count) for number in range(1, parts[0].count + 1)}
    if len(parts) != len(set(parts)):
        raise InputError(f"the same part is there twice among {', '.join(map(str, folders))}: give each once")
    if set(parts) != wanted:
        missing = ", ".join(sorted(str(part) for part in wanted - set(parts))) or "parts of one count"
        raise InputError(f"missing among the parts: {missing}; run the stage with that --shard first")


def _put_together(
    parts: list[Path],
    work: Callable[[dict[Path, Manifest], Path, "Run"], Metrics],
    *,
    out: Path,
    code: str,
    tracked: AbstractContextManager["Run"],
) -> Metrics:
    """Has `work` write the whole into a partial folder, from the parts in their order, and publishes it."""
    manifests: dict[Path, Manifest] = {}

    def describe() -> Manifest:
        manifests.update(_open(parts))
        digests = {manifest.part: manifest.digest for manifest in manifests.values()}
        first = next(iter(manifests.values()))
        return replace(
            first,
            fingerprint=digest_of(["merge", code, digests]),
            inputs=_inputs(manifests, digests),
            files=[],
            part=None,
        )

    def tracked_work(workspace: Workspace, manifest: Manifest) -> Result:
        from star.registry.lineage import collect_origin, input_datasets

        with tracked as run:
            run.set_tags({"star.fingerprint": manifest.fingerprint})
            run.log_inputs(input_datasets({part.part: folder for folder, part in manifests.items()}))
            metrics = work(manifests, workspace.out, run)
            run.log_metrics(metrics)
            for report in workspace.out.glob("report.*"):
                run.log_artifact(report)
            return Result(metrics, {**manifest.origin, **collect_origin()})

    return run_once(describe, tracked_work, out=Path(out).absolute(), resume=False).metrics


def _open(parts: list[Path]) -> dict[Path, Manifest]:
    """The parts, verified, in the order of their numbers."""
    manifests = {Path(folder): open_input(Path(folder), stage=read_manifest(Path(folder)).stage) for folder in parts}
    require_all_parts(manifests)
    return dict(sorted(manifests.items(), key=lambda item: Shard.parse(item[1].part)))


def _inputs(manifests: dict[Path, Manifest], digests: dict[str, str]) -> dict[str, str]:
    """The parts, and what all of them were made of."""
    first, *others = (manifest.inputs for manifest in manifests.values())
    shared = {key: digest for key, digest in first.items() if all(other.get(key) == digest for other in others)}
    return shared | digests
