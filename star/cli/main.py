"""The `star` command: one subcommand a stage, `run` for the whole pipeline, and what one does with the result.

Exit status: 0 done, 1 the work failed, 2 the user's input is at fault. Heavy imports stay inside the commands, so that help is quick.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from star import distributed
from star.cli.data import data_app
from star.cli.pipeline import pipeline_app
from star.errors import PipelineError, cure_of, redacted

app = typer.Typer(
    help="Distil a large function-calling model into a super-tiny one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The registered versions.", invoke_without_command=True)
registry_app = typer.Typer(help="The ledger of promotions.", no_args_is_help=True)
tracking_app = typer.Typer(help="Runs in MLflow.", no_args_is_help=True)
app.add_typer(pipeline_app, name="pipeline")
topk_app = typer.Typer(help="The teacher's stored signal.", no_args_is_help=True)
app.add_typer(topk_app, name="topk")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
app.add_typer(registry_app, name="registry")
app.add_typer(tracking_app, name="tracking")

ConfigOption = Annotated[
    str,
    typer.Option("--config", "-c", help="A YAML file, or a packaged profile: tiny, qwen3-0.6b, qwen3-1.7b, qwen3-4b."),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The folder to write. It appears when it is whole.")]
SeedDataOption = Annotated[
    Path | None, typer.Option("--seed-data", help="Rows of your own: JSON Lines with messages and tools.")
]
ResumeOption = Annotated[bool, typer.Option("--resume/--restart", help="Go on with killed work, or begin anew.")]
ShardOption = Annotated[
    str, typer.Option(help="Part i of n of the work, as 2/4; `star merge` puts the parts together.")
]
NameOption = Annotated[str, typer.Option("--name", help="Registered model.")]
MODEL_HELP = "A version or an alias of the registered model, or NAME/VERSION, NAME@ALIAS."


def _folder(text: str):
    return Annotated[Path, typer.Option(help=text)]


DataOption = _folder("Folder of `star synthesize`.")
TeacherOption = _folder("Folder of `star refine-teacher`.")


@app.command()
def run(config: ConfigOption = "tiny", seed_data: SeedDataOption = None) -> None:
    """Run the whole pipeline on this machine; what is already done is not done again.

    Examples: `star run`, `star run --config configs/tiny.yaml --seed-data rows.jsonl`
    """
    from star.config.load import load_config
    from star.pipelines.local_runner import run_local
    from star.pipelines.summary import print_summary

    loaded = load_config(config, seed_data=seed_data)
    print_summary(run_local(loaded), tools=loaded.data.tools)


@app.command()
def synthesize(
    out: OutOption, config: ConfigOption = "tiny", seed_data: SeedDataOption = None, resume: ResumeOption = True
) -> None:
    """Make the training and held-out rows from tools and seed rows.

    Example: `star synthesize --out runs/hand/data`
    """
    _stage("synthesize", config, seed_data=seed_data, out=out, resume=resume)


@app.command()
def refine_teacher(
    data: DataOption, out: OutOption, config: ConfigOption = "tiny", resume: ResumeOption = True
) -> None:
    """Make the teacher fit the data: train it where its base is from scratch, refine it with Sim-RL.

    Example: `star refine-teacher --data runs/hand/data --out runs/hand/teacher`
    """
    _stage("refine-teacher", config, data=data, out=out, resume=resume)


@app.command()
def rollout(
    data: DataOption,
    teacher: TeacherOption,
    out: OutOption,
    config: ConfigOption = "tiny",
    shard: ShardOption = "1/1",
    resume: ResumeOption = True,
) -> None:
    """Sample the teacher on the training prompts; keep valid, distinct completions.

    Example: `star rollout --data runs/hand/data --teacher runs/hand/teacher --out runs/hand/rollouts`
    """
    _stage("rollout", config, data=data, teacher=teacher, out=out, shard=shard, resume=resume)


@app.command()
def extract_topk(
    rollouts: _folder("Folder of `star rollout`."),
    teacher: TeacherOption,
    out: OutOption,
    config: ConfigOption = "tiny",
    shard: ShardOption = "1/1",
    resume: ResumeOption = True,
) -> None:
    """Store the teacher's top-k log-probs over the rollouts.

    Example: `star extract-topk --rollouts runs/hand/rollouts --teacher runs/hand/teacher --out runs/hand/topk`
    """
    _stage("extract-topk", config, rollouts=rollouts, teacher=teacher, out=out, shard=shard, resume=resume)


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="Folders that `--shard 1/n` to `n/n` wrote, all of them.")],
    out: OutOption,
) -> None:
    """Put the parts of a sharded rollout, extraction or evaluation together, by their manifests.

    Example: `star merge runs/hand/topk-1 runs/hand/topk-2 --out runs/hand/topk`
    """
    from star.stages import merge as merge_parts

    _print_metrics(merge_parts, parts=parts, out=out)


@topk_app.command("inspect")
def inspect_topk(folder: Annotated[Path, typer.Argument(help="Folder of `star extract-topk`.")]) -> None:
    """Check a top-k store and print what it holds: sequences, tokens, bytes per token, mass covered, entropy.

    Example: `star topk inspect runs/latest/extract-topk`
    """
    from star.topk.inspection import print_inspection

    print_inspection(_fetched(folder))


@app.command()
def distill(
    topk: _folder("Folder of `star extract-topk`."),
    out: OutOption,
    student: Annotated[
        str | None, typer.Option(help="Base model, a folder or an id, instead of the configuration's.")
    ] = None,
    config: ConfigOption = "tiny",
    resume: ResumeOption = True,
) -> None:
    """Distil the stored signal into the student with CKD.

    Example: `star distill --topk runs/hand/topk --out runs/hand/distilled`
    """
    _stage("distill", config, topk=topk, student=student, out=out, resume=resume)


@app.command()
def refine(
    student: _folder("Folder of `star distill`."),
    data: DataOption,
    out: OutOption,
    config: ConfigOption = "tiny",
    resume: ResumeOption = True,
) -> None:
    """Refine the distilled student with Sim-RL on the similarity reward.

    Example: `star refine --student runs/hand/distilled --data runs/hand/data --out runs/hand/refined`
    """
    _stage("refine", config, student=student, data=data, out=out, resume=resume)


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Option(help="One model alone: a folder, an alias or version of the registry, a hub id.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="For --model: heldout, bfcl, acebench, with commas between.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="For --model: entries of each category of bfcl and acebench.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="For --model: of bfcl these categories alone, with commas between.")
    ] = None,
    acebench: Annotated[Path | None, typer.Option(help="For --model: a checkout of ACEBench.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of `star synthesize`.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Folder of `star refine-teacher`.")] = None,
    distilled: Annotated[Path | None, typer.Option(help="Folder of `star distill`.")] = None,
    refined: Annotated[Path | None, typer.Option(help="Folder of `star refine`.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write.")] = None,
    config: ConfigOption = "tiny",
    name: NameOption = "star",
    shard: ShardOption = "1/1",
    resume: ResumeOption = True,
) -> None:
    """Compare teacher, distilled and refined student; or, with --model, score one model on any suite. Write the report.

    Examples:

    `star evaluate --data D --teacher T --distilled S --refined R --out runs/hand/evaluation`

    `star evaluate --model champion --suite heldout,bfcl --limit 20`

    `star evaluate --model ./model --suite bfcl --category simple_python,irrelevance`
    """
    if model is None:
        folders = {"data": data, "teacher": teacher, "distilled": distilled, "refined": refined, "out": out}
        if absent := [f"--{key}" for key, value in folders.items() if value is None]:
            _fail(f"evaluate needs {', '.join(absent)}, or --model for one model alone", status=2)
        if suite or limit or category or acebench:
            _fail("--suite, --limit, --category and --acebench go with --model; a stage reads `evaluate`", status=2)
        _stage("evaluate", config, **folders, shard=shard, resume=resume)
        return
    if shard != "1/1":
        _fail("--shard is of the stage: leave it out with --model", status=2)
    if teacher or distilled or refined:
        _fail("--model is one model alone: leave out --teacher, --distilled and --refined", status=2)
    from star.config.load import load_config
    from star.evaluation.one_model import evaluate_one
    from star.registry.download import get_model_folder_or_hub_id

    suites, categories = (
        tuple(part.strip() for part in given.split(",")) if given else None for given in (suite, category)
    )
    evaluate_one(
        get_model_folder_or_hub_id(model, name=name), title=model, config=load_config(config), suites=suites, limit=limit,
        categories=categories, acebench=acebench, data=data, out=out, resume=resume,
    )  # fmt: skip


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of `star evaluate`; FOLDER:MODEL where it holds several.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
) -> None:
    """Compare two evaluated models on the rows both answered: differences with intervals, and whether they are chance.

    Examples: `star compare runs/evaluations/1 runs/evaluations/2`, `star compare runs/latest/evaluate:teacher runs/evaluations/base`
    """
    from star.evaluation.compare import print_comparison

    print_comparison(a, b)


@app.command()
def register(
    refined: _folder("Folder of `star refine`."),
    evaluation: _folder("Folder of `star evaluate`."),
    out: OutOption,
    config: ConfigOption = "tiny",
    resume: ResumeOption = True,
) -> None:
    """Register the refined student in MLflow; behind the gate it becomes champion.

    Example: `star register --refined runs/hand/refined --evaluation runs/hand/evaluation --out runs/hand/registration`
    """
    _stage("register", config, refined=refined, evaluation=evaluation, out=out, resume=resume)


@app.command()
def call(
    query: Annotated[str, typer.Argument(help="What the user asks for.")],
    tools: Annotated[Path, typer.Option(help="JSON file with the tools that may be called.")],
    model: Annotated[
        str, typer.Option(help="An alias or version of the registered model, or a model folder.")
    ] = "champion",
    name: NameOption = "star",
) -> None:
    """Ask a model for the call that answers a request, and print it as JSON, one call a line.

    Example: `star call "Book a flight from Oslo to Rome" --tools tools.json`
    """
    from star.chat import FormatError
    from star.html_kit import visible
    from star.modeling.inference import answer
    from star.registry.download import get_model_folder

    try:
        completion = answer(query, tools=tools, folder=get_model_folder(model, name=name))
    except FormatError as error:
        _fail(str(error), status=1)
    # What a model wrote may hold escape sequences: a terminal gets only what it can show.
    for made in completion.tool_calls:
        typer.echo(visible(json.dumps(made, ensure_ascii=False)))
    if completion.content:
        typer.echo(visible(completion.content))


@models_app.callback()
def models(context: typer.Context, name: NameOption = "star") -> None:
    """List the registered versions: scores, aliases, lineage."""
    if context.invoked_subcommand is None:
        from star.registry.tables import print_versions

        print_versions(name)


@models_app.command("diff")
def models_diff(
    first: Annotated[str, typer.Argument(help=MODEL_HELP)],
    second: Annotated[str, typer.Argument(help="The one to compare it with.")],
    name: NameOption = "star",
) -> None:
    """Compare two versions: scores, lineage, files.

    Example: `star models diff champion previous-champion`
    """
    from star.registry.tables import print_difference
    from star.registry.versions import find_by_reference

    print_difference(find_by_reference(first, name=name), find_by_reference(second, name=name))


@models_app.command("delete")
def models_delete(
    version: Annotated[int, typer.Argument(help="Version to delete.")], name: NameOption = "star"
) -> None:
    """Delete a version; one that bears an alias is refused.

    Example: `star models delete 2`
    """
    from star.registry.promotion.promote import delete_version

    delete_version(name, version)
    typer.echo(f"{name} version {version} is deleted")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    to: Annotated[str, typer.Option(help="champion or challenger.")] = "champion",
    reason: Annotated[str, typer.Option(help="Why: for the ledger.")] = "",
    to_registry: Annotated[
        str | None, typer.Option(help="Copy it to the MLflow at this address first, and promote it there.")
    ] = None,
    name: NameOption = "star",
) -> None:
    """Make a registered version the champion, whatever the gate said of it; its files are checked first.

    Examples: `star promote 2 --reason "fewer wrong dates"`, `star promote challenger`, `star promote 3 --to challenger`,
    `star promote champion --to-registry https://mlflow.prod.example.com`
    """
    from star.home import home
    from star.registry.copy_version import copy_version
    from star.registry.download import download_version
    from star.registry.promotion.promote import promote as decide
    from star.registry.versions import find_by_reference
    from star.tracking.server import pointed_at

    version = find_by_reference(model, name=name)
    folder = download_version(version, home() / "models")
    if to_registry is None:
        typer.echo(f"{decide(version.name, version.version, to=to, reason=reason)} is the {to}")
        return
    with pointed_at(to_registry):
        copied = copy_version(version, folder)
        typer.echo(f"{decide(copied.name, copied.version, to=to, reason=reason)} is the {to} there")


@app.command()
def rollback(reason: Annotated[str, typer.Option(help="Why: for the ledger.")] = "", name: NameOption = "star") -> None:
    """Make the previous champion the champion again; a second rollback undoes the first.

    Example: `star rollback --reason "more refusals in production"`
    """
    from star.registry.promotion.promote import rollback as step_back

    typer.echo(f"{step_back(name, reason=reason)} is the champion again")


@app.command()
def lineage(
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP} Or a model folder.")] = "champion",
    name: NameOption = "star",
) -> None:
    """Print where a model comes from, and check every digest that can be reached from here. Status 1 when one does not match.

    Examples: `star lineage`, `star lineage star/3`, `star lineage ./downloaded`
    """
    from star.registry.lineage_tree import print_lineage

    if mismatches := print_lineage(model, name=name):
        _fail(f"{len(mismatches)} of the lineage does not match: {'; '.join(mismatches)}", status=1)


@registry_app.command("reconcile")
def reconcile_command(name: NameOption = "star") -> None:
    """Complete promotions that were cut short, adopt aliases that were moved in MLflow, check the ledger.

    Example: `star registry reconcile --name star`
    """
    from star.registry.promotion.reconcile import reconcile

    done, wrong = reconcile(name)
    for line in done or ["nothing to put right"]:
        typer.echo(line)
    if wrong:
        _fail("; ".join(wrong), status=1)


@registry_app.command("ledger")
def ledger_command(name: NameOption = "star") -> None:
    """List every attempt to promote: when, who, what, its outcome, why.

    Example: `star registry ledger`
    """
    from star.registry.tables import print_ledger

    print_ledger(name)


@tracking_app.command("replay")
def replay_command() -> None:
    """Send what the tracking server did not take when it happened, and close the runs of killed processes.

    Example: `star tracking replay`
    """
    from star.home import spools
    from star.tracking.spool import replay

    done, left = replay(spools())
    typer.echo(f"{done} runs brought to their end" if done else "nothing was waiting")
    if left:
        _fail(f"{left[0]}; start the server or correct MLFLOW_TRACKING_URI", status=2)


@tracking_app.command("reap")
def reap_command(
    hours: Annotated[float, typer.Option(min=0, help="Without a sign of life for so long.")] = 24.0,
) -> None:
    """Close runs that are still marked as running though nothing has come from them: their machine is gone.

    Example: `star tracking reap --hours 6`
    """
    from star.tracking.server import reap

    for line in reap(hours) or ["no stale runs"]:
        typer.echo(line)


@app.command()
def doctor(config: ConfigOption = "tiny") -> None:
    """Check this machine against a configuration: packages, memory, disk, tracking. Every failed check says the cure."""
    from star.config.load import load_config
    from star.doctor.machine import print_checks

    if not print_checks(load_config(config)):
        raise typer.Exit(2)


def _stage(name: str, config: str, *, seed_data: Path | None = None, **arguments: object) -> None:
    from star.config.load import load_config
    from star.stages import stage_named

    function = stage_named(name).function
    _print_metrics(lambda **folders: function(load_config(config, seed_data=seed_data), **folders), **arguments)


def _print_metrics(work: Callable[..., dict], *, out: Path, **arguments: object) -> None:
    """Does the work on local folders and prints its figures: what lies in S3 is fetched before, and uploaded after."""
    from star.folders.s3 import upload_folder
    from star.folders.s3_client import Place, is_remote
    from star.home import home

    place = Place.parse(out) if is_remote(out) else None
    local = home() / "s3" / "made" / place.bucket / place.prefix if place else out
    metrics = work(out=local, **{name: _fetched(value) for name, value in arguments.items()})
    if not distributed.is_rank0():
        return
    if place:
        upload_folder(local, str(place))
    typer.echo(json.dumps(metrics, indent=1))


def _fetched(value: object) -> object:
    """A local copy of a folder in S3; a list's members each; anything else as it is."""
    from star.folders.s3 import download_folder
    from star.folders.s3_client import is_remote
    from star.home import home

    if isinstance(value, list):
        return [_fetched(member) for member in value]
    return download_folder(value, home() / "s3" / "fetched") if isinstance(value, Path) and is_remote(value) else value


def main() -> None:
    """Runs the command line; errors that the user can cure are one line and exit status 2."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted: run the same command again to go on", status=130)
    except PipelineError as error:
        _fail(str(error), status=2 if error.input_fault else 1)
    except Exception as error:
        if (cure := cure_of(error)) is None:
            typer.echo(redacted("".join(traceback.format_exception(error))), err=True, nl=False)
            sys.exit(1)
        _fail(cure, status=2)


def _fail(message: str, *, status: int) -> None:
    typer.secho(f"star: {redacted(message)}", fg=typer.colors.RED, err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
