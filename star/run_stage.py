"""Runs a stage under the stage contract, on rank 0 and on the other ranks.

Every stage follows the folder contract of star/folders/run_once.py: it verifies its inputs, works in a workspace that a
killed run resumes from, and publishes one folder with a manifest. star/stages.py has the stages themselves.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from star import distributed, progress
from star.config.base import flat
from star.config.experiment import Config
from star.config.files import paths_in
from star.config.safety import use_safety
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.folders.manifest import Manifest, open_input
from star.folders.reuse import shown
from star.folders.run_once import Result, draft_manifest, read_metrics, run_once
from star.folders.shard import WHOLE, Shard, part_of_result
from star.folders.workspace import Workspace
from star.merge_shards import Metrics

if TYPE_CHECKING:
    from star.tracking.runs import Run

Work = Callable[[Workspace, "Run"], Metrics]  # does a stage in a workspace, and logs to its run


def _holds(folder: Path) -> bool:
    # A named function, because a stage is sent to other processes.
    return True


@dataclass(frozen=True)
class Stage:
    """One stage of the graph.

    Attributes:
        name: the command `star <name>`, and the stage in the manifest.
        function: does the stage.
        inputs: keyword of the function -> name of the stage whose folder it takes.
        sections: parts of the configuration that it reads. Only these are in its config digest.
        cached: whether a runner may answer for it by its cache; otherwise it starts the stage, which decides.
        trains: whether several ranks may share the stage.
        is_valid: whether a finished folder still holds; register asks the registry.
    """

    name: str
    function: Callable[..., Metrics]
    inputs: dict[str, str]
    sections: tuple[str, ...]
    cached: bool = True
    trains: bool = False
    is_valid: Callable[[Path], bool] = _holds


def draft_of(stage: Stage, config: Config, *, inputs: Mapping[str, Manifest], part: str | None = None) -> Manifest:
    """The manifest of a stage's work that is about to start; a finished result of the same work has its fingerprint."""
    settings, code = config.slice(stage.sections), code_digest(stage.function)
    return draft_manifest(stage.name, settings=settings, code=code, inputs=inputs, part=part)


def run_stage(
    stage: Stage,
    work: Work,
    config: Config,
    *,
    inputs: dict[str, Path],
    out: Path,
    resume: bool,
    shard: Shard = WHOLE,
) -> Metrics:
    """Runs one stage on this rank: verifies its inputs, does the work in a workspace, publishes the folder `out`.

    Args:
        work: does the stage in a workspace; called only where there is no finished result.
        inputs: keyword of the stage's function -> folder.
        resume: whether to go on from what a killed run left.
        shard: which part of the stage's work to do.

    Returns:
        the metrics, which are also in the folder.
    """

    def describe() -> Manifest:
        manifests = {key: open_input(Path(folder), stage=stage.inputs[key]) for key, folder in inputs.items()}
        return draft_of(stage, config, inputs=manifests, part=part_of_result(stage.name, inputs, manifests, shard))

    out = Path(out).absolute()
    with progress.stage_process(stage.name):
        use_safety(config.safety)
        if distributed.world_size() > 1 and not stage.trains:
            raise InputError(f"the stage {stage.name} is the work of one process: start it without torchrun")
        with distributed.process_group():
            if not distributed.is_rank0():
                return _follow_rank0(work, out)
            tracked = _tracked(stage, work, config, inputs=inputs)
            sources = [*map(Path, inputs.values()), *paths_in(config.with_places(stage.sections))]
            outcome = run_once(describe, tracked, out=out, resume=resume, sources=sources, is_valid=stage.is_valid)
            if outcome.cached:
                distributed.broadcast_from_rank0(None)  # ends the wait of the other ranks: there is no work
                place = f"taken from {outcome.taken_from}" if outcome.taken_from else f"in {shown(out)}"
                progress.print_line(f"{stage.name}: already done, {place}")
            progress.send_event(kind="finished", stage=stage.name, cached=outcome.cached, taken_from=outcome.taken_from)
            return outcome.metrics


def _tracked(
    stage: Stage, work: Work, config: Config, *, inputs: Mapping[str, Path]
) -> Callable[[Workspace, Manifest], Result]:
    """The work in an MLflow run, with its metrics and origin. Other ranks join in the broadcasts and barriers."""

    def tracked_work(workspace: Workspace, manifest: Manifest) -> Result:
        from star.registry.card_facts import card_facts
        from star.registry.lineage import collect_origin, input_datasets
        from star.tracking.accelerators import metrics_of_held
        from star.tracking.runs import stage_run
        from star.tracking.system_metrics import log_system_metrics

        progress.send_event(kind="started", stage=stage.name)
        start = time.monotonic()
        # Only now: of a result that is there already nothing is loaded. The other ranks load after this.
        for key, folder in inputs.items():
            open_input(Path(folder), stage=stage.inputs[key], trust="own")
        # The other ranks wait for this: only now is it known that there is work, and where its state lies.
        distributed.broadcast_from_rank0(workspace.state)
        params = flat(json.loads(config.with_places(stage.sections)))
        tags = {"star.fingerprint": manifest.fingerprint, **({"star.part": manifest.part} if manifest.part else {})}
        with stage_run(stage.name, params=params, tags=tags) as run:
            run.log_inputs(input_datasets({key: Path(folder) for key, folder in inputs.items()}))
            origin = collect_origin(config, stage.sections)
            with log_system_metrics(run.log_metrics):
                metrics = {key: float(value) for key, value in work(workspace, run).items()}
            # The folder is published next; no rank may still write to its state then.
            distributed.barrier()
            metrics["seconds"] = round(time.monotonic() - start, 1)
            run.log_metrics(metrics)
            for report in (*workspace.out.glob("report.*"), *workspace.out.glob("card.*")):
                run.log_artifact(report)
        # The evaluation reads the sections of the models too, but makes none.
        if stage.trains or "data" in stage.sections:
            origin |= card_facts(config, stage.sections, workspace.out)
        return Result(metrics | metrics_of_held(metrics["seconds"]), origin)  # MLflow's run has these by itself

    return tracked_work


def _follow_rank0(work: Work, out: Path) -> Metrics:
    """Does the work on another rank, from the state of rank 0. Its output and metrics are discarded."""
    from star.tracking.runs import Run

    state = distributed.broadcast_from_rank0(None)
    if state is None:  # the result is cached
        return read_metrics(out)
    with TemporaryDirectory() as scratch:
        metrics = work(Workspace(out=Path(scratch), state=state), Run())
        distributed.barrier()
    return metrics
