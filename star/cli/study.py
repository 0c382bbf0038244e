"""Defines `star study`: compares ways to train a student, and writes the page about it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from star.cli.options import SeedDataOption

ConfigArgument = Annotated[
    str, typer.Option("--config", "-c", help="A YAML file with a section `study`, or study-tiny.")
]
ResultsOption = Annotated[
    Path | None, typer.Option(help="CSV with one line per cell and seed. Default: study/NAME.csv in the home.")
]

study_app = typer.Typer(help="Compare ways to train a student on one task, with several seeds.", no_args_is_help=True)


@study_app.command()
def run(
    config: ConfigArgument = "study-tiny",
    seed_data: SeedDataOption = None,
    results: ResultsOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time, of one thread each. Default: one per CPU.")
    ] = None,
    cell: Annotated[str | None, typer.Option(help="Only cells of this name; `*` stands for anything.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only cells with this seed.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what there is to do, and how long it takes.")] = False,
) -> None:
    """Train and evaluate every cell of the study that is not done yet. Says first how long that takes.

    Examples:

    `star study run --config configs/study-tiny.yaml --results docs/study/tiny.csv`

    `star study run --cell 'ckd+*' --seed 11 --workers 1`

    `star study run --config configs/study-gpu.yaml --seed-data rows.jsonl --workers 4`
    """
    from star.config.load import load_config
    from star.home import home
    from star.study.run import choose_cells, print_plan, run_study

    settings = load_config(config, seed_data=seed_data)
    cells = choose_cells(settings, cell=cell, seed=seed)
    workers = workers or len(os.sched_getaffinity(0))
    print_plan(settings, cells, workers=workers)
    if plan:
        return
    results = results or home() / "study" / f"{settings.name}.csv"
    run_study(settings, cells, results=results, workers=workers)
    typer.echo(str(results))


@study_app.command()
def report(
    results: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="CSV that `star study run` wrote.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Page to write; its charts go into a folder of its name beside it.")
    ],
    config: ConfigArgument = "study-tiny",
    seed_data: SeedDataOption = None,
    notes: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Text (Markdown) about what was tried, which becomes a section of the page.",
        ),
    ] = None,
) -> None:
    """Write the page of a study from its recorded values: tables with intervals, the paper's claims, learning curves, compute.

    Lines that other settings made are left out, and named.

    Example: `star study report --config configs/study-tiny.yaml --results docs/study/tiny.csv --out docs/study.md`
    """
    from star.config.load import load_config
    from star.progress import print_line
    from star.study.claims import left_out
    from star.study.report import Names, write_report
    from star.study.results import read_results

    settings = load_config(config, seed_data=seed_data)
    recorded = write_report(
        settings,
        read_results(results),
        out=out,
        names=Names(
            config=config,
            results=str(results),
            out=str(out),
            seed_data=str(seed_data) if seed_data else None,
            notes=str(notes) if notes else None,
        ),
        notes=notes.read_text(encoding="utf-8") if notes else "",
    )
    if recorded.others and settings.study:
        print_line(left_out(recorded.others, settings.study))
    if recorded.unknown:
        print_line(
            f"lines of {results} that do not say which settings made them, because an older version wrote them: {recorded.unknown}; "
            "they were taken as they are"
        )
