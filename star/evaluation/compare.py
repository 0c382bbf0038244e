"""Two evaluated models side by side: what `star compare` prints."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from star.errors import InputError
from star.evaluation.labels import metric_label, show, show_range
from star.evaluation.suite import EVALUATION, OUTCOMES, compare
from star.html_kit import visible

Rows = dict[str, list[dict]]


def print_comparison(a: Path, b: Path) -> None:
    """Prints both models' scores and the paired differences a - b on the rows that both answered.

    Args:
        a, b: folders that `star evaluate` wrote, with `:MODEL` where they hold several; the last model of it else.

    Raises:
        InputError: a folder holds no evaluation or not that model, or the two have no row in common.
    """
    (first, first_rows), (second, second_rows) = _read(a), _read(b)
    differences = compare("a", "b", {"a": first_rows, "b": second_rows})
    if not differences:
        raise InputError(f"{a} and {b} have no row in common: evaluate both on the same suites and data")
    console = Console()
    console.print(_scores(first, second))
    console.print(_differences(differences))


def _scores(first: dict, second: dict) -> Table:
    table = Table(title="Scores, each with its 95% interval")
    for heading in ("score", *(visible(model["name"]) for model in (first, second))):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name in [name for name in first["scores"] if name in second["scores"]]:
        cells = [
            f"{show(name, score['mean'])} ({show_range(name, score['low'], score['high'])})"
            for score in (first["scores"][name], second["scores"][name])
        ]
        table.add_row(metric_label(name), *cells)
    return table


def _differences(differences: list[dict]) -> Table:
    table = Table(title="First minus second on the rows both answered (p of a permutation test)")
    for heading in ("measure", "rows", "difference", "95% interval", "p"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for found in differences:
        name = found["metric"]
        interval = show_range(name, found["low"], found["high"], signed=True)
        difference = show(name, found["difference"], signed=True)
        table.add_row(metric_label(name), str(found["rows"]), difference, interval, f"{found['p_value']:.4f}")
    return table


def _read(place: Path) -> tuple[dict, Rows]:
    """One model's entry of an evaluation, and its rows by suite."""
    folder, wanted = (
        (place, None) if place.is_dir() else (Path(str(place).rpartition(":")[0]), str(place).rpartition(":")[2])
    )
    try:
        models = {
            model["name"]: model for model in json.loads((folder / EVALUATION).read_text(encoding="utf-8"))["models"]
        }
        lines = [json.loads(line) for line in (folder / OUTCOMES).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{place} holds no evaluation ({type(error).__name__}): give a folder that `star evaluate` wrote whole"
        ) from None
    name = wanted or list(models)[-1]
    if name not in models:
        raise InputError(f"{folder} has no model {name}: it has {', '.join(models)}")
    rows: Rows = {}
    for line in lines:
        if line["model"] == name:
            rows.setdefault(line["suite"], []).append(line)
    return models[name], rows
