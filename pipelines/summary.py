"""Prints the end of `star run`: a table of the models' scores, and where model, report and log are."""

import json

from rich.table import Table

from star.config.files import FileRef, packaged_file
from star.evaluation.bases import BASES
from star.home import home
from star.pipelines.local_runner import PipelineResult
from star.terminal import console
from star.tracking.server import shown_uri, tracking_uri
from star.units import format_seconds

STAGE_OF_MODEL = {"teacher": "refine-teacher", "distilled": "distill", "refined": "refine"}
HEADINGS = {
    "exact_match": "exact match",
    "mean_reward": "mean reward\n(official reading)",
    "format_errors": "format errors",
    "pass_at_8": "pass@8",
}


def print_summary(result: PipelineResult, *, tools: FileRef) -> None:
    """Prints the table of scores, the paths of the results, and an example call of the champion with these tools."""
    evaluation = result.metrics("evaluate")
    table = Table(title="Held-out rows")
    table.add_column("model")
    for heading in (*HEADINGS.values(), "seconds"):
        table.add_column(heading, justify="right")
    for model in (*BASES, *STAGE_OF_MODEL):
        scores = [f"{evaluation[f'{model}_{key}']:.3f}" if f"{model}_{key}" in evaluation else "" for key in HEADINGS]
        if stage := STAGE_OF_MODEL.get(model):
            table.add_row(model, *scores, f"{result.metrics(stage)['seconds']:.0f}")
        elif any(scores):  # a base that the evaluation shows; nothing made it
            table.add_row(model, *scores, "")
    registration = json.loads((result.folders["register"] / "registration.json").read_text(encoding="utf-8"))
    screen = console()
    screen.print(table)
    for line in _result_lines(result, registration, tools):
        screen.print(line, highlight=False, soft_wrap=True)


def _result_lines(result: PipelineResult, registration: dict, tools: FileRef) -> list[str]:
    name, version = registration["model"], registration["version"]
    status = _champion_status(version, registration["champion"])
    latest = home() / "latest"
    lines = [
        f"model     {name} version {version} {status}",
        *(f"          {reason}" for reason in registration["reasons"]),
        f"folder    {latest / 'refine'}",
        f"report    {latest / 'evaluate' / 'report.html'}",
        *(
            (f"run       {result.run_id or 'not tracked'} in {shown_uri(tracking_uri())}", f"log       {result.log}")
            if result.log
            else ()
        ),
        f"time      {format_seconds(round(result.seconds))}, stages run: {', '.join(result.ran) or 'none'}",
    ]
    # `star call` loads the champion, so without one the example would fail.
    if registration["champion"] is not None:
        lines.append(f"try       star call {_example_arguments(tools)}{'' if name == 'star' else f' --name {name}'}")
    return lines


def _example_arguments(tools: FileRef) -> str:
    if tools.is_local:
        return f'"your request to these tools" --tools {tools.path}'
    return f'"Book a flight from Oslo to Rome" --tools {packaged_file("travel.json")}'


def _champion_status(version: int, champion: int | None) -> str:
    if champion == version:
        return "is the champion"
    return "is not the champion: " + ("there is none yet" if champion is None else f"version {champion} stays")
