"""Prints two evaluated models side by side: what `star compare` does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from star.errors import InputError
from star.evaluation.evaluate import EVALUATION, OUTCOMES, READING
from star.evaluation.labels import metric_of
from star.evaluation.number_format import format_range, format_score
from star.evaluation.paired_differences import Outcomes, paired_differences
from star.evaluation.suites import SUITES
from star.terminal import console


@dataclass(frozen=True)
class _Evaluated:
    """One model of an evaluation folder: its entry in evaluation.json, and its outcomes by suite.

    `reading` says which texts counted as valid answers; None in a folder that an older STAR wrote.
    """

    place: Path
    entry: dict[str, Any]
    outcomes: Outcomes
    reading: str | None


def print_comparison(a: Path, b: Path) -> None:
    """Prints both models' scores and the paired differences a - b on the rows that both answered.

    Args:
        a: a folder that `star evaluate` wrote, with `:MODEL` where it holds several models. Without it, the last
            model is taken.
        b: the same for the other model.

    Raises:
        InputError: a folder holds no evaluation or not that model, the two have no row in common, or an older STAR
            counted other answers as valid in one of them.
    """
    first, second = _read_model(a), _read_model(b)
    _require_same_reading(first, second)
    differences = paired_differences([("a", "b")], {"a": first.outcomes, "b": second.outcomes})
    if not differences:
        raise InputError(f"{a} and {b} have no row in common: evaluate both on the same suites and data")
    screen = console()
    screen.print(_scores_table(first, second))
    screen.print(_differences_table(differences))


def _require_same_reading(first: _Evaluated, second: _Evaluated) -> None:
    shared = [name for name in first.outcomes if name in second.outcomes]
    if first.reading == second.reading or not any(SUITES[name].parsed_by_star for name in shared):
        return
    older = next(found for found in (first, second) if found.reading != READING)
    raise InputError(
        f"{older.place} was written by an older STAR, which counted other answers as valid: evaluate that model again with "
        "`star evaluate`, and compare the new folder"
    )


def _scores_table(first: _Evaluated, second: _Evaluated) -> Table:
    table = Table(title="Scores, each with its 95% interval")
    for heading in ("score", *(str(model.entry["name"]) for model in (first, second))):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    mine, theirs = first.entry["scores"], second.entry["scores"]
    # In the order of the first model, without what only one of them was asked.
    for name in [name for name in mine if name in theirs]:
        scores = (mine[name], theirs[name])
        cells = [
            f"{format_score(name, score['mean'])} ({format_range(name, score['low'], score['high'])})"
            for score in scores
        ]
        # Two folders of an older STAR are compared as they are; their format errors are those of the reward.
        older = name == "format_errors" and first.reading != READING
        table.add_row(metric_of(name).label + (" (official reading)" if older else ""), *cells)
    return table


def _differences_table(differences: list[dict]) -> Table:
    table = Table(title="First minus second on the rows both answered (p of a permutation test)")
    for heading in ("measure", "rows", "difference", "95% interval", "p"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for found in differences:
        name = found["metric"]
        interval = format_range(name, found["low"], found["high"], signed=True)
        difference = format_score(name, found["difference"], signed=True)
        table.add_row(metric_of(name).label, str(found["rows"]), difference, interval, f"{found['p_value']:.4f}")
    return table


def _read_model(place: Path) -> _Evaluated:
    """Reads one model of an evaluation. `place` is FOLDER or FOLDER:MODEL."""
    # A path may hold a colon itself, so it is split only where the whole of it is no folder.
    folder, wanted = place, ""
    if not place.is_dir() and ":" in str(place):
        path, _, wanted = str(place).rpartition(":")
        folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"no folder at {place}: give a folder that `star evaluate` finished, or FOLDER:MODEL")
    try:
        evaluation = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        models = {model["name"]: model for model in evaluation["models"]}
        lines = [json.loads(line) for line in (folder / OUTCOMES).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{place} holds no evaluation ({type(error).__name__}): give a folder that `star evaluate` finished"
        ) from None
    name = wanted or list(models)[-1]
    if name not in models:
        raise InputError(f"{folder} has no model {name}: it has {', '.join(models)}")
    outcomes: Outcomes = {}
    for line in lines:
        if line["model"] == name:
            outcomes.setdefault(line["suite"], []).append(line)
    return _Evaluated(place, models[name], outcomes, evaluation.get("reading"))
