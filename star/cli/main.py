"""The `star` command: one command per stage, `run` for the whole pipeline, and commands for what comes before and after it.

This module holds the stages and the handling of errors. The other commands are in the modules beside it and are registered here, so that
`star --help` lists all in one order. Heavy imports stay inside the commands, so that help answers at once.

Exit status: 0 done, 1 the work failed, 2 the user's input is wrong, 130 interrupted.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from star.cli.call import call
from star.cli.clean import clean
from star.cli.data import data_app
from star.cli.doctor import doctor
from star.cli.evaluation import compare, evaluate
from star.cli.fail import fail
from star.cli.options import (
    ConfigOption,
    DataOption,
    OutOption,
    ResumeOption,
    SeedDataOption,
    ShardOption,
    TeacherOption,
)
from star.cli.registry import lineage, models_app, promote, registry_app, rollback, tracking_app
from star.cli.schedule import pipeline_app
from star.cli.stage import run_and_print, run_stage
from star.cli.study import study_app
from star.cli.topk import topk_app
from star.cluster.failure import report_error
from star.errors import PipelineError, cure_of
from star.redaction import redacted
from star.terminal import guard_terminal

# Headings of `star --help`.
PIPELINE = "The pipeline and its stages"
MODELS = "Models: compare, call, promote"
TOOLS = "Data, cluster, machine"

app = typer.Typer(
    help="Distil a large function-calling model into a super-tiny one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.command(rich_help_panel=PIPELINE)
def run(config: ConfigOption = "tiny", seed_data: SeedDataOption = None) -> None:
    """Run the whole pipeline on this machine. Stages that are done already are not run again.

    Examples:

    `star run`

    `star run --config configs/tiny.yaml --seed-data rows.jsonl`
    """
    from star.config.load import load_config
    from star.pipelines.local_runner import run_local
    from star.pipelines.summary import print_summary

    loaded = load_config(config, seed_data=seed_data)
    print_summary(run_local(loaded), tools=loaded.data.tools)


@app.command(rich_help_panel=PIPELINE)
def synthesize(
    out: OutOption, config: ConfigOption = "tiny", seed_data: SeedDataOption = None, resume: ResumeOption = True
) -> None:
    """Make the training and held-out rows from tools and your own rows.

    Example: `star synthesize --out runs/hand/data`
    """
    run_stage("synthesize", config, seed_data=seed_data, out=out, resume=resume)


@app.command(rich_help_panel=PIPELINE)
def refine_teacher(
    data: DataOption, out: OutOption, config: ConfigOption = "tiny", resume: ResumeOption = True
) -> None:
    """Adapt the teacher to the data: train it when it starts from scratch, then refine it with Sim-RL.

    Example: `star refine-teacher --data runs/hand/data --out runs/hand/teacher`
    """
    run_stage("refine-teacher", config, data=data, out=out, resume=resume)


@app.command(rich_help_panel=PIPELINE)
def rollout(
    data: DataOption,
    teacher: TeacherOption,
    out: OutOption,
    config: ConfigOption = "tiny",
    shard: ShardOption = "1/1",
    resume: ResumeOption = True,
) -> None:
    """Sample the teacher on the training prompts. Keeps the valid completions, each once.

    Example: `star rollout --data runs/hand/data --teacher runs/hand/teacher --out runs/hand/rollouts`
    """
    run_stage("rollout", config, data=data, teacher=teacher, out=out, shard=shard, resume=resume)


@app.command(rich_help_panel=PIPELINE)
def extract_topk(
    rollouts: Annotated[Path, typer.Option(help="Folder that `star rollout` wrote.")],
    teacher: TeacherOption,
    out: OutOption,
    config: ConfigOption = "tiny",
    shard: ShardOption = "1/1",
    resume: ResumeOption = True,
) -> None:
    """Store the teacher's top-k log-probabilities for every token of the rollouts.

    Example: `star extract-topk --rollouts runs/hand/rollouts --teacher runs/hand/teacher --out runs/hand/topk`
    """
    run_stage("extract-topk", config, rollouts=rollouts, teacher=teacher, out=out, shard=shard, resume=resume)


@app.command(rich_help_panel=PIPELINE)
def merge(
    parts: Annotated[list[Path], typer.Argument(help="All folders that `--shard 1/n` to `--shard n/n` wrote.")],
    out: OutOption,
) -> None:
    """Put the shards of a rollout, an extraction or an evaluation together into one result.

    Example: `star merge runs/hand/topk-1 runs/hand/topk-2 --out runs/hand/topk`
    """
    from star.stages import merge as merge_shards

    run_and_print(merge_shards, folders=parts, out=out)


@app.command(rich_help_panel=PIPELINE)
def distill(
    topk: Annotated[Path, typer.Option(help="Folder that `star extract-topk` wrote.")],
    out: OutOption,
    student: Annotated[
        str | None, typer.Option(help="Base model, a folder or a hub id, in place of the configuration's.")
    ] = None,
    config: ConfigOption = "tiny",
    resume: ResumeOption = True,
) -> None:
    """Train the student on the stored log-probabilities with CKD.

    Example: `star distill --topk runs/hand/topk --out runs/hand/distilled`
    """
    run_stage("distill", config, topk=topk, student=student, out=out, resume=resume)


@app.command(rich_help_panel=PIPELINE)
def refine(
    student: Annotated[Path, typer.Option(help="Folder that `star distill` wrote.")],
    data: DataOption,
    out: OutOption,
    config: ConfigOption = "tiny",
    resume: ResumeOption = True,
) -> None:
    """Refine the distilled student with Sim-RL on the similarity reward.

    Example: `star refine --student runs/hand/distilled --data runs/hand/data --out runs/hand/refined`
    """
    run_stage("refine", config, student=student, data=data, out=out, resume=resume)


app.command(rich_help_panel=PIPELINE)(evaluate)


@app.command(rich_help_panel=PIPELINE)
def register(
    refined: Annotated[Path, typer.Option(help="Folder that `star refine` wrote.")],
    evaluation: Annotated[Path, typer.Option(help="Folder that `star evaluate` wrote.")],
    out: OutOption,
    config: ConfigOption = "tiny",
    resume: ResumeOption = True,
) -> None:
    """Register the refined student in MLflow. It becomes champion when it passes the gate.

    Example: `star register --refined runs/hand/refined --evaluation runs/hand/evaluation --out runs/hand/registration`
    """
    run_stage("register", config, refined=refined, evaluation=evaluation, out=out, resume=resume)


for command in (compare, call, promote, rollback, lineage):
    app.command(rich_help_panel=MODELS)(command)
app.add_typer(models_app, name="models", rich_help_panel=MODELS)
app.add_typer(registry_app, name="registry", rich_help_panel=MODELS)
app.add_typer(tracking_app, name="tracking", rich_help_panel=MODELS)
app.add_typer(study_app, name="study", rich_help_panel=MODELS)
app.add_typer(data_app, name="data", rich_help_panel=TOOLS)
app.add_typer(topk_app, name="topk", rich_help_panel=TOOLS)
app.add_typer(pipeline_app, name="pipeline", rich_help_panel=TOOLS)
app.command(rich_help_panel=TOOLS)(doctor)
app.command(rich_help_panel=TOOLS)(clean)


def main() -> None:
    """Runs the command line. An error that the user can correct is printed as one line and exits with status 2."""
    guard_terminal(data_on_stdout=True)
    # Before anything imports the libraries that read them.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        # Wrong options: typer prints the usage with the error.
        error.show()  # type: ignore[attr-defined]  # every error of usage has it; typer's public base class does not
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted: run the same command again to go on", status=130)
    except PipelineError as error:
        fail(str(error), status=2 if error.input_fault else 1)
    except Exception as error:
        has_supervisor = report_error(error)  # of a task in a pod: it prints the line
        if (cure := cure_of(error)) is None:
            typer.echo(redacted("".join(traceback.format_exception(error))), err=True, nl=False)
            sys.exit(1)
        if has_supervisor:
            sys.exit(2)
        fail(cure, status=2)


if __name__ == "__main__":
    main()
