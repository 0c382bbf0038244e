"""Defines `star evaluate` (the stage, and one model alone) and `star compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from star.cli.options import ConfigOption, NameOption, ResumeOption, ShardOption
from star.cli.stage import run_stage
from star.errors import InputError


def evaluate(
    model: Annotated[
        str | None, typer.Option(help="Score one model alone: a folder, an alias or version of the registry, a hub id.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="With --model: suites, separated by commas, of heldout, bfcl and acebench.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --model: entries per category of bfcl and acebench.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="With --model: categories of bfcl, separated by commas. Default: all.")
    ] = None,
    acebench: Annotated[Path | None, typer.Option(help="With --model: a checkout of ACEBench.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that `star synthesize` wrote.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="Folder that `star refine-teacher` wrote.")] = None,
    distilled: Annotated[Path | None, typer.Option(help="Folder that `star distill` wrote.")] = None,
    refined: Annotated[Path | None, typer.Option(help="Folder that `star refine` wrote.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write.")] = None,
    config: ConfigOption = "tiny",
    name: NameOption = "star",
    shard: ShardOption = "1/1",
    resume: ResumeOption = True,
) -> None:
    """Compare teacher, distilled and refined student; or, with --model, score one model on any suites. Writes a report.

    Examples:

    `star evaluate --data D --teacher T --distilled S --refined R --out runs/hand/evaluation`

    `star evaluate --model champion --suite heldout,bfcl --limit 20`

    `star evaluate --model ./model --suite bfcl --category simple_python,irrelevance`
    """
    if model is None:
        folders = {"data": data, "teacher": teacher, "distilled": distilled, "refined": refined}
        if out is None or None in folders.values():
            raise InputError(f"evaluate needs {_missing({**folders, 'out': out})}, or --model for one model alone")
        if suite or limit or category or acebench:
            raise InputError("--suite, --limit, --category and --acebench go with --model; a stage reads `evaluate`")
        run_stage("evaluate", config, **folders, out=out, shard=shard, resume=resume)
        return
    if shard != "1/1":
        raise InputError("--shard is of the stage: leave it out with --model")
    if teacher or distilled or refined:
        raise InputError("--model is one model alone: leave out --teacher, --distilled and --refined")
    options = {"suites": _split_at_commas(suite), "limit": limit, "bfcl_categories": _split_at_commas(category)}
    _evaluate_one(
        model, config, name=name, options={**options, "acebench": acebench}, data=data, out=out, resume=resume
    )


def _evaluate_one(model: str, config: str, *, name: str, options: dict[str, object], **folders: Any) -> None:
    from star.config.load import load_config
    from star.evaluation.one_model import choose_suites, evaluate_one
    from star.registry.find_model import get_model_folder_or_hub_id

    # The options are validated before the model is downloaded, which may take minutes.
    chosen = choose_suites(load_config(config), **options)
    evaluate_one(get_model_folder_or_hub_id(model, name=name), title=model, config=chosen, **folders)


def compare(
    evaluations: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that `star evaluate` wrote, two or more; FOLDER:MODEL where one holds several models."
        ),
    ],
) -> None:
    """Compare evaluated models with the first one on the rows both answered: differences with intervals, and whether chance explains them.

    Examples:

    `star compare runs/evaluations/1 runs/evaluations/2`

    `star compare runs/latest/evaluate:{refined,distilled,teacher} runs/evaluations/sft`
    """
    from star.evaluation.compare import print_comparison

    print_comparison(*evaluations)


def _missing(options: dict[str, Path | None]) -> str:
    return ", ".join(f"--{option}" for option, folder in options.items() if folder is None)


def _split_at_commas(text: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",")) if text else None
