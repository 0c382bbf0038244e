"""Defines the eight stages as plain functions: (config, input folders, one output folder) -> metrics.

    data = Path("runs/data")
    synthesize(config, out=data)                            # {"rows": 296.0, ..., "seconds": 4.1}
    refine_teacher(config, data=data, out=Path("runs/teacher"))
    synthesize(config, out=data)                            # the same call again answers from runs/data

KFP, DVC and the command line all call these functions; `STAGES` describes the graph that all three are tested
against. Every stage follows the folder contract of star/folders/run_once.py: it verifies its inputs, works in a
workspace that a killed run resumes from, and publishes one folder with a manifest. To add a stage, write its function
and its line in `STAGES`.

A stage function imports what it needs inside `work`. This keeps `star --help` fast, and the code digest, which is
part of the cache key, follows exactly these imports (star/folders/code_digest.py).
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from star.config.experiment import Config
from star.config.models import Student
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.folders.shard import Shard
from star.folders.workspace import Workspace
from star.merge_shards import Metrics, merge, merge_evaluation
from star.run_stage import Stage, run_stage

if TYPE_CHECKING:
    from star.tracking.runs import Run


def synthesize(config: Config, *, out: Path, resume: bool = True) -> Metrics:
    """Makes the data set: generates rows from the tools, imports seed rows, cleans and splits into train and held-out.

    Writes train.jsonl, heldout.jsonl, rejects.jsonl with the reason for every rejected row, and the set's card.
    """

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.data.synthesize import make_data_set

        return make_data_set(config.data, seed=config.seed, out=workspace.out, state=workspace.state)

    return run_stage(stage_named("synthesize"), work, config, inputs={}, out=out, resume=resume)


def refine_teacher(config: Config, *, data: Path, out: Path, resume: bool = True) -> Metrics:
    """Adapts the teacher to the data: trains it if its base is from scratch, then refines it with Sim-RL.

    Writes a model folder.
    """

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

    return run_stage(stage_named("refine-teacher"), work, config, inputs={"data": data}, out=out, resume=resume)


def rollout(
    config: Config, *, data: Path, teacher: Path, out: Path, shard: str = "1/1", resume: bool = True
) -> Metrics:
    """Samples the teacher on the training prompts. Writes the valid, distinct completions to sequences.parquet.

    Args:
        shard: i/n, which of the batches to do; `merge` makes one result of all n.
    """
    this_shard = Shard.parse(shard)

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.data.rows import read_rows
        from star.teacher.rollout import roll_out_rows

        rows = list(read_rows(data / "train.jsonl"))
        return roll_out_rows(teacher, rows, config=config, shard=this_shard, workspace=workspace)

    return run_stage(
        stage_named("rollout"),
        work,
        config,
        inputs={"data": data, "teacher": teacher},
        out=out,
        resume=resume,
        shard=this_shard,
    )


def extract_topk(
    config: Config, *, rollouts: Path, teacher: Path, out: Path, shard: str = "1/1", resume: bool = True
) -> Metrics:
    """Stores the teacher's top-k log-probabilities over the rollouts, with the sequences and the tokenizer.

    Distillation reads this folder only.

    Args:
        shard: i/n, which of the batches to do; `merge` makes one result of all n. The folder of a rollout shard is
            extracted without this option, and the result is that shard.
    """
    this_shard = Shard.parse(shard)

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.teacher.extract import extract_top_k

        return extract_top_k(
            teacher,
            rollouts,
            settings=config.topk,
            precision=config.precision,
            shard=this_shard,
            out=workspace.out,
        )

    inputs = {"rollouts": rollouts, "teacher": teacher}
    return run_stage(stage_named("extract-topk"), work, config, inputs=inputs, out=out, resume=resume, shard=this_shard)


def distill(
    config: Config, *, topk: Path, out: Path, student: Path | str | None = None, resume: bool = True
) -> Metrics:
    """Distils the stored log-probabilities into the student with CKD. Writes a model folder.

    Args:
        student: base to start from, a folder or a Hugging Face id, instead of the configuration's `student`.
    """
    if student is not None:
        config = with_student(config, student)

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.ckd.distill import distill_student

        return distill_student(config, topk, workspace=workspace, log_metrics=run.log_metrics)

    return run_stage(stage_named("distill"), work, config, inputs={"topk": topk}, out=out, resume=resume)


def with_student(config: Config, base: Path | str) -> Config:
    """The configuration with another base of the student, a folder or a Hugging Face id."""
    return config.model_copy(update={"student": Student(base=str(base))})


def refine(
    config: Config, *, student: Path, data: Path, out: Path, made_by: str = "distill", resume: bool = True
) -> Metrics:
    """Refines the distilled student with Sim-RL on the training prompts. Writes a model folder.

    Args:
        made_by: the stage that wrote the student; `star study` also refines students that were not distilled.
    """
    stage = stage_named("refine")
    stage = replace(stage, inputs={**stage.inputs, "student": made_by})

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

    return run_stage(stage, work, config, inputs={"student": student, "data": data}, out=out, resume=resume)


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
    """Evaluates teacher, distilled and refined student, and their pretrained bases, on the configured suites.

    Writes evaluation.json, outcomes.jsonl and the reports.

    Args:
        shard: i/n, which of each suite's batches or categories to generate answers for; `merge` scores all n.
    """
    if "heldout" not in config.evaluate.suites:
        raise InputError("`evaluate.suites` must hold heldout: the gate of the registration reads its scores")
    models, this_shard = {"teacher": teacher, "distilled": distilled, "refined": refined}, Shard.parse(shard)

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.evaluation.shards import evaluate_run

        return evaluate_run(models, data, config=config, shard=this_shard, workspace=workspace)

    return run_stage(
        stage_named("evaluate"), work, config, inputs={"data": data, **models}, out=out, resume=resume, shard=this_shard
    )


def register(config: Config, *, refined: Path, evaluation: Path, out: Path, resume: bool = True) -> Metrics:
    """Registers the refined student in MLflow with scores and lineage; if it passes the gate it becomes `champion`.

    Writes registration.json.
    """

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.registry.register import register_and_promote

        return register_and_promote(refined, evaluation, settings=config.registry, out=workspace.out)

    inputs = {"refined": refined, "evaluation": evaluation}
    return run_stage(stage_named("register"), work, config, inputs=inputs, out=out, resume=resume)


def _registration_holds(folder: Path) -> bool:
    from star.registry.register import registration_holds

    return registration_holds(folder)


STAGES: tuple[Stage, ...] = (
    Stage("synthesize", synthesize, {}, ("seed", "data")),
    Stage(
        "refine-teacher",
        refine_teacher,
        {"data": "synthesize"},
        ("seed", "max_prompt_tokens", "precision", "scratch", "teacher"),
        trains=True,
    ),
    Stage(
        "rollout",
        rollout,
        {"data": "synthesize", "teacher": "refine-teacher"},
        ("seed", "max_prompt_tokens", "precision", "rollout"),
    ),
    Stage("extract-topk", extract_topk, {"rollouts": "rollout", "teacher": "refine-teacher"}, ("precision", "topk")),
    Stage(
        "distill",
        distill,
        {"topk": "extract-topk"},
        ("seed", "precision", "scratch", "student", "distill"),
        trains=True,
    ),
    Stage(
        "refine",
        refine,
        {"student": "distill", "data": "synthesize"},
        ("seed", "max_prompt_tokens", "precision", "refine"),
        trains=True,
    ),
    Stage(
        "evaluate",
        evaluate,
        {"data": "synthesize", "teacher": "refine-teacher", "distilled": "distill", "refined": "refine"},
        ("seed", "precision", "scratch", "teacher", "student", "evaluate"),
    ),
    # Not cached by runners: only the stage can ask the registry whether the model is still registered, and champion.
    Stage(
        "register",
        register,
        {"refined": "refine", "evaluation": "evaluate"},
        ("registry",),
        cached=False,
        is_valid=_registration_holds,
    ),
)


def stage_named(name: str) -> Stage:
    """Returns the stage of that name, such as `extract-topk`."""
    return next(stage for stage in STAGES if stage.name == name)


def require_code(name: str, digest: str) -> None:
    """Checks that the code of a stage or merge is the code that the pipeline was compiled from.

    KFP's cache key has the digest of compile time. With other code a cached result could come from different code.

    Raises:
        InputError: the code differs.
    """
    merges = {"merge": merge, "merge-evaluation": merge_evaluation}
    if code_digest(merges.get(name) or stage_named(name).function) != digest:
        raise InputError(
            f"the pipeline was compiled from another version of the stage {name} than this image has: compile it again"
        )
