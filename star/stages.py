"""The eight stages as plain functions under one contract: (config, input folders, one output folder) -> metrics.

A stage verifies the folders it is given, works in a partial folder, and publishes a finished one with its manifest. Called again for the
same work it answers from the manifest; killed and called again it goes on. KFP, DVC and the command line all call these functions, and
`STAGES` is the one description of the graph that they are held against.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from star import distributed, progress
from star.config.base import flat
from star.config.experiment import Config
from star.config.models import Student
from star.errors import InputError, cure_of
from star.folders.code_digest import code_digest
from star.folders.manifest import Manifest, open_input
from star.folders.run_once import Result, draft_manifest, read_metrics, run_once
from star.folders.shard import WHOLE, Shard
from star.folders.workspace import Workspace
from star.merge_shards import Metrics, merge, merge_evaluation

if TYPE_CHECKING:
    from star.tracking.runs import Run


@dataclass(frozen=True)
class Stage:
    """One stage of the graph: what it is called, which stage feeds each of its inputs, which sections of the configuration it reads."""

    name: str
    function: Callable[..., Metrics]
    inputs: dict[str, str]
    sections: tuple[str, ...]
    cached: bool = True
    trains: bool = False  # several processes may share it


def synthesize(config: Config, *, out: Path, resume: bool = True) -> Metrics:
    """Makes the data set: rows generated from the tools, seed rows imported, all cleaned, split into train and held-out.

    Writes train.jsonl, heldout.jsonl, rejects.jsonl with a reason for every row that was left out, and the set's card.
    """

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.data.synthesize import make_data_set

        return make_data_set(config.data, seed=config.seed, out=workspace.out, state=workspace.state)

    return _run("synthesize", work, config, inputs={}, out=out, resume=resume)


def refine_teacher(config: Config, *, data: Path, out: Path, resume: bool = True) -> Metrics:
    """Makes the teacher fit the data: trained on it where its base is from scratch, then refined with Sim-RL. Writes a model folder."""

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.data.rows import read_rows
        from star.teacher.refine import make_teacher

        return make_teacher(
            config,
            list(read_rows(data / "train.jsonl")),
            workspace=workspace,
            log_metrics=run.log_metrics,
            log_artifact=run.log_artifact,
        )

    return _run("refine-teacher", work, config, inputs={"data": data}, out=out, resume=resume)


def rollout(
    config: Config, *, data: Path, teacher: Path, out: Path, shard: str = "1/1", resume: bool = True
) -> Metrics:
    """Samples the teacher on the training prompts; valid, distinct completions become sequences.parquet.

    Args:
        shard: i/n, the part of the batches to do; `merge` makes one result of all n.
    """
    part = Shard.parse(shard)

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.data.rows import read_rows
        from star.teacher.rollout import roll_out_rows

        rows = list(read_rows(data / "train.jsonl"))
        return roll_out_rows(teacher, rows, config=config, shard=part, workspace=workspace)

    return _run("rollout", work, config, inputs={"data": data, "teacher": teacher}, out=out, resume=resume, part=part)


def extract_topk(
    config: Config, *, rollouts: Path, teacher: Path, out: Path, shard: str = "1/1", resume: bool = True
) -> Metrics:
    """Stores the teacher's top-k log-probs over the rollouts, with the sequences and the tokenizer: all that distillation reads.

    Args:
        shard: i/n, the part of the batches to do; `merge` makes one result of all n. A part of a rollout gives that part.
    """
    part = Shard.parse(shard)

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.teacher.extract import extract_top_k

        return extract_top_k(teacher, rollouts, settings=config.topk, shard=part, out=workspace.out)

    inputs = {"rollouts": rollouts, "teacher": teacher}
    return _run("extract-topk", work, config, inputs=inputs, out=out, resume=resume, part=part)


def distill(
    config: Config, *, topk: Path, out: Path, student: Path | str | None = None, resume: bool = True
) -> Metrics:
    """Distils the stored signal into the student with CKD. Writes a model folder.

    Args:
        student: the base to start from, a folder or a Hugging Face id, instead of the configuration's.
    """
    if student is not None:
        config = config.model_copy(update={"student": Student(base=str(student))})

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.ckd.distill import distill_student

        return distill_student(config, topk, workspace=workspace, log_metrics=run.log_metrics)

    return _run("distill", work, config, inputs={"topk": topk}, out=out, resume=resume)


def refine(config: Config, *, student: Path, data: Path, out: Path, resume: bool = True) -> Metrics:
    """Refines the distilled student with Sim-RL on the training prompts. Writes a model folder."""

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.data.rows import read_rows
        from star.simrl.refine import refine_student

        rows = list(read_rows(data / "train.jsonl"))
        return refine_student(
            student,
            rows,
            config=config,
            workspace=workspace,
            log_metrics=run.log_metrics,
            log_artifact=run.log_artifact,
        )

    return _run("refine", work, config, inputs={"student": student, "data": data}, out=out, resume=resume)


def evaluate(
    config: Config,
    *,
    data: Path,
    teacher: Path,
    distilled: Path,
    refined: Path,
    out: Path,
    shard: str = "1/1",
    resume: bool = True,
) -> Metrics:
    """Compares teacher, distilled and refined student on the configured suites. Writes evaluation.json, outcomes.jsonl and the reports.

    Args:
        shard: i/n, the part of each suite's batches or categories to ask; `merge` scores all n.
    """
    if "heldout" not in config.evaluate.suites:
        raise InputError("`evaluate.suites` must hold heldout: the gate of the registration reads its scores")
    models, part = {"teacher": teacher, "distilled": distilled, "refined": refined}, Shard.parse(shard)

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.evaluation.evaluate import log_model_runs, score_and_write
        from star.evaluation.gather import gather
        from star.evaluation.shards import write_shard

        title = "Teacher, distilled and refined student"
        gathered = gather(models, data, config=config, state=workspace.state, title=title, shard=part)
        if part != WHOLE:
            return write_shard(gathered, out=workspace.out)
        metrics = score_and_write([gathered], out=workspace.out)
        log_model_runs(metrics, gathered)
        return metrics

    return _run("evaluate", work, config, inputs={"data": data, **models}, out=out, resume=resume, part=part)


def register(config: Config, *, refined: Path, evaluation: Path, out: Path, resume: bool = True) -> Metrics:
    """Registers the refined student in MLflow with scores and lineage; behind the gate it becomes `champion`. Writes registration.json."""

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.registry.register import register_and_promote

        return register_and_promote(refined, evaluation, settings=config.registry, out=workspace.out)

    return _run("register", work, config, inputs={"refined": refined, "evaluation": evaluation}, out=out, resume=resume)


STAGES: tuple[Stage, ...] = (
    Stage("synthesize", synthesize, {}, ("seed", "data")),
    Stage(
        "refine-teacher",
        refine_teacher,
        {"data": "synthesize"},
        ("seed", "max_prompt_tokens", "scratch", "teacher"),
        trains=True,
    ),
    Stage(
        "rollout",
        rollout,
        {"data": "synthesize", "teacher": "refine-teacher"},
        ("seed", "max_prompt_tokens", "rollout"),
    ),
    Stage("extract-topk", extract_topk, {"rollouts": "rollout", "teacher": "refine-teacher"}, ("topk",)),
    Stage("distill", distill, {"topk": "extract-topk"}, ("seed", "scratch", "student", "distill"), trains=True),
    Stage(
        "refine",
        refine,
        {"student": "distill", "data": "synthesize"},
        ("seed", "max_prompt_tokens", "refine"),
        trains=True,
    ),
    Stage(
        "evaluate",
        evaluate,
        {"data": "synthesize", "teacher": "refine-teacher", "distilled": "distill", "refined": "refine"},
        ("seed", "evaluate"),
    ),
    # The registry may have changed since: whether the model is champion is looked at anew every time.
    Stage("register", register, {"refined": "refine", "evaluation": "evaluate"}, ("registry",), cached=False),
)


def stage_named(name: str) -> Stage:
    """Returns the stage of that name, such as `extract-topk`."""
    return next(stage for stage in STAGES if stage.name == name)


def _run(
    name: str,
    work: Callable[[Workspace, "Run"], Metrics],
    config: Config,
    *,
    inputs: dict[str, Path],
    out: Path,
    resume: bool,
    part: Shard = WHOLE,
) -> Metrics:
    """Runs one stage's work under the contract of this module, and tells a listening runner how it went."""
    progress.end_with_runner()
    try:
        stage, out = stage_named(name), Path(out).absolute()
        if distributed.world_size() > 1 and not stage.trains:
            raise InputError(f"the stage {name} is the work of one process: start it without torchrun")
        with distributed.process_group():
            if not distributed.is_rank0():
                return _help(work, out)
            return _run_on_rank0(stage, work, config, inputs=inputs, out=out, resume=resume, part=part)
    except BaseException as error:
        cure = cure_of(error)
        said = cure or f"{type(error).__name__}: {error}"
        progress.emit(kind="failed", stage=name, error=said, input_fault=cure is not None)
        raise


def _run_on_rank0(
    stage: Stage,
    work: Callable[[Workspace, "Run"], Metrics],
    config: Config,
    *,
    inputs: dict[str, Path],
    out: Path,
    resume: bool,
    part: Shard,
) -> Metrics:
    settings = config.slice(stage.sections)

    def describe() -> Manifest:
        manifests = {key: open_input(Path(folder), stage=stage.inputs[key]) for key, folder in inputs.items()}
        given = _part_of_inputs(stage, inputs, manifests, part)
        return draft_manifest(
            stage.name, settings=settings, code=code_digest(stage.function), inputs=manifests, part=given
        )

    def tracked_work(workspace: Workspace, manifest: Manifest) -> Result:
        from star.registry.lineage import collect_origin, input_datasets
        from star.tracking.runs import stage_run
        from star.tracking.system_metrics import log_system_metrics

        progress.emit(kind="started", stage=stage.name)
        began = time.monotonic()
        distributed.broadcast_from_rank0(workspace.state)
        tags = {"star.fingerprint": manifest.fingerprint, **({"star.part": manifest.part} if manifest.part else {})}
        with stage_run(stage.name, params=flat(json.loads(settings)), tags=tags) as run:
            run.log_inputs(input_datasets({key: Path(folder) for key, folder in inputs.items()}))
            made_in = collect_origin(seed=config.seed if "seed" in stage.sections else None)
            with log_system_metrics(run.log_metrics):
                metrics = {key: float(value) for key, value in work(workspace, run).items()}
            distributed.barrier()
            metrics["seconds"] = round(time.monotonic() - began, 1)
            run.log_metrics(metrics)
            for report in (*workspace.out.glob("report.*"), *workspace.out.glob("card.*")):
                run.log_artifact(report)
        return Result(metrics, made_in)

    outcome = run_once(describe, tracked_work, out=out, resume=resume, reuse=stage.cached)
    if outcome.cached:
        distributed.broadcast_from_rank0(None)
    progress.emit(kind="finished", stage=stage.name, cached=outcome.cached)
    return outcome.metrics


def _help(work: Callable[[Workspace, "Run"], Metrics], out: Path) -> Metrics:
    """The part of every process but the first: it trains from the same state, and nothing that it writes is kept."""
    from star.tracking.runs import Run

    state = distributed.broadcast_from_rank0(None)
    if state is None:  # the result is there already
        return read_metrics(out)
    with TemporaryDirectory() as scratch:
        metrics = work(Workspace(out=Path(scratch), state=state), Run())
        distributed.barrier()
    return metrics


def _part_of_inputs(stage: Stage, inputs: dict[str, Path], manifests: dict[str, Manifest], part: Shard) -> str | None:
    """Which part of the whole the result will be, or None. Only extraction takes a part of its input for one of its own."""
    for key, manifest in manifests.items():
        if manifest.part is not None:
            if stage.name != "extract-topk" or part != WHOLE:
                raise InputError(
                    f"{inputs[key]} is part {manifest.part} only: put the parts together with `star merge`"
                )
            return manifest.part
    return str(part) if part != WHOLE else None


def require_code(name: str, digest: str) -> None:
    """Raises InputError when the code of a stage, or of a merge, is not what its pipeline was compiled from: the cache would lie."""
    merges = {"merge": merge, "merge-evaluation": merge_evaluation}
    if code_digest(merges.get(name) or stage_named(name).function) != digest:
        raise InputError(
            f"the pipeline was compiled from another version of the stage {name} than this image has: compile it again"
        )
