"""Defines the stages of a study that the pipeline does not have: other ways to the student before Sim-RL.

    shorten              published base ─► fewer layers, healed on the teacher's samples ─► base
    fine-tune            base ─► trained on the rows' own answers ─► student: a cold start without a teacher
    distill-on-policy    base ─► trained on its own samples, for which the teacher is in memory ─► student

The last two take length, batch and learning rate of the section `distill`, so an arm makes as many updates as the distillation that it is
compared with. `shorten` makes once per seed what `distill` would make again for every loss.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from star.config.experiment import Config
from star.folders.workspace import Workspace
from star.merge_shards import Metrics
from star.run_stage import Stage, run_stage

if TYPE_CHECKING:
    from star.tracking.runs import Run


def shorten_student(config: Config, *, topk: Path, out: Path, resume: bool = True) -> Metrics:
    """Drops layers of the student's base and heals what is left, by `student.layers` and `student.heal`. Writes a model folder."""

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.ckd.shorten import make_shortened
        from star.folders.link import link_or_copy
        from star.modeling.models import load_tokenizer
        from star.modeling.training import copy_learning_curves
        from star.topk.sequences import TOKENIZER

        tokenizer = load_tokenizer(topk / TOKENIZER)
        made = make_shortened(config, topk, tokenizer=tokenizer, workspace=workspace, log_metrics=run.log_metrics)
        # Linked, because the state goes with the workspace.
        shutil.copytree(made, workspace.out, dirs_exist_ok=True, copy_function=link_or_copy)
        return copy_learning_curves(workspace.state, out=workspace.out, metrics=("loss",))

    return run_stage(SHORTEN, work, config, inputs={"topk": topk}, out=out, resume=resume)


def fine_tune_student(
    config: Config, *, student: Path, data: Path, out: Path, made_by: str = "refine-teacher", resume: bool = True
) -> Metrics:
    """Trains the student on the answers of the training rows, with the settings of `distill`. Writes a model folder.

    Args:
        made_by: the stage that wrote the student.
    """
    stage = replace(FINE_TUNE, inputs={**FINE_TUNE.inputs, "student": made_by})

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.data.rows import is_answered, read_rows
        from star.modeling.models import load_model, load_tokenizer, save_model
        from star.modeling.prompts import render_rows, within_length
        from star.modeling.training import copy_learning_curves
        from star.teacher.sft import fine_tune

        tokenizer = load_tokenizer(student)
        model = load_model(student, precision=config.precision, training=True, lora=config.distill.lora)
        rendered = render_rows(list(filter(is_answered, read_rows(data / "train.jsonl"))), tokenizer)
        prompts = within_length(rendered, tokenizer, max_prompt_tokens=config.max_prompt_tokens)
        fine_tune(
            model,
            tokenizer,
            prompts,
            settings=config.distill,
            seed=config.seed,
            precision=config.precision,
            workspace=workspace,
            log_metrics=run.log_metrics,
            label="train the student on the rows",
        )
        save_model(model, tokenizer, workspace.out)
        counts = {"prompts": len(prompts), "too_long": len(rendered) - len(prompts)}
        return counts | copy_learning_curves(workspace.state, out=workspace.out, metrics=("loss",))

    return run_stage(stage, work, config, inputs={"student": student, "data": data}, out=out, resume=resume)


def distill_on_policy(
    config: Config,
    *,
    student: Path,
    teacher: Path,
    data: Path,
    out: Path,
    made_by: str = "refine-teacher",
    resume: bool = True,
) -> Metrics:
    """Distils the teacher into the student on the student's own samples (star/ckd/on_policy.py). Writes a model folder.

    Args:
        made_by: the stage that wrote the student.
    """
    stage = replace(ON_POLICY, inputs={**ON_POLICY.inputs, "student": made_by})

    def work(workspace: Workspace, run: "Run") -> Metrics:
        from star.ckd.on_policy import distill_student_on_policy
        from star.data.rows import read_rows

        rows = list(read_rows(data / "train.jsonl"))
        return distill_student_on_policy(
            student, teacher, rows, config=config, workspace=workspace, log_metrics=run.log_metrics
        )

    inputs = {"student": student, "teacher": teacher, "data": data}
    return run_stage(stage, work, config, inputs=inputs, out=out, resume=resume)


SHORTEN = Stage(
    "shorten",
    shorten_student,
    {"topk": "extract-topk"},
    ("seed", "precision", "student"),
    trains=True,
)
FINE_TUNE = Stage(
    "fine-tune",
    fine_tune_student,
    {"student": "refine-teacher", "data": "synthesize"},
    ("seed", "max_prompt_tokens", "precision", "distill"),
    trains=True,
)
ON_POLICY = Stage(
    "distill-on-policy",
    distill_on_policy,
    {"student": "refine-teacher", "teacher": "refine-teacher", "data": "synthesize"},
    ("seed", "max_prompt_tokens", "precision", "rollout", "distill"),
    trains=True,
)
