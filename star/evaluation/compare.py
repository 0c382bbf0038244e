"""Prints evaluated models side by side: what `star compare` does."""

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

    @property
    def name(self) -> str:
        return str(self.entry["name"])


def print_comparison(*places: Path) -> None:
    """Prints the scores of all models, and the paired differences of the first one from each other on the rows of both.

    Args:
        places: two or more folders that `star evaluate` wrote, with `:MODEL` where one holds several models. Without
            it, the last model is taken.

    Raises:
        InputError: there is one place only, a folder holds no evaluation or not that model, a model has no row in common
            with the first one, or an older STAR counted other answers as valid in one of the two.
    """
    if len(places) < 2:
        raise InputError(
            f"{places[0]} alone cannot be compared: give two or more evaluations, as FOLDER or FOLDER:MODEL"
        )
    first, *others = models = [_read_model(place) for place in places]
    for other in others:
        _require_same_reading(first, other)
    # Numbered, because models of two folders may have one name.
    outcomes = {str(number): model.outcomes for number, model in enumerate(models)}
    differences = paired_differences([("0", number) for number in list(outcomes)[1:]], outcomes)
    for number, other in enumerate(others, 1):
        if not any(found["b"] == str(number) for found in differences):
            raise InputError(
                f"{first.place} and {other.place} have no row in common: evaluate both on the same suites and data"
            )
    screen = console()
    screen.print(_scores_table(models))
    screen.print(_differences_table(differences, models))


def _require_same_reading(first: _Evaluated, second: _Evaluated) -> None:
    shared = [name for name in first.outcomes if name in second.outcomes]
    if first.reading == second.reading or not any(SUITES[name].parsed_by_star for name in shared):
        return
    older = next(found for found in (first, second) if found.reading != READING)
    raise InputError(
        f"{older.place} was written by an older STAR, which counted other answers as valid: evaluate that model again with "
        "`star evaluate`, and compare the new folder"
    )


def _scores_table(models: list[_Evaluated]) -> Table:
    table = Table(title="Scores, each with its 95% interval")
    table.add_column("score")
    for model in models:
        table.add_column(model.name, justify="right")
    # In the order of the first model, without what only one of them was asked.
    first, *others = (model.entry["scores"] for model in models)
    for name in [name for name in first if any(name in scores for scores in others)]:
        cells = [_score_text(name, scores.get(name)) for scores in (first, *others)]
        # Folders of an older STAR are compared as they are; their format errors are those of the reward.
        older = name == "format_errors" and models[0].reading != READING
        table.add_row(metric_of(name).label + (" (official reading)" if older else ""), *cells)
    return table


def _score_text(name: str, score: dict[str, float] | None) -> str:
    if score is None:
        return "–"
    return f"{format_score(name, score['mean'])} ({format_range(name, score['low'], score['high'])})"


def _differences_table(differences: list[dict], models: list[_Evaluated]) -> Table:
    """One row per measure; with more than two models, each names the one that is subtracted."""
    several = len(models) > 2
    subtracted = "each other" if several else "second"
    table = Table(title=f"First minus {subtracted} on the rows both answered (p of a permutation test)")
    for heading in (*(("minus",) if several else ()), "measure", "rows", "difference", "95% interval", "p"):
        table.add_column(heading, justify="left" if heading in ("minus", "measure") else "right")
    for found in differences:
        name = found["metric"]
        interval = format_range(name, found["low"], found["high"], signed=True)
        difference = format_score(name, found["difference"], signed=True)
        cells = (metric_of(name).label, str(found["rows"]), difference, interval, f"{found['p_value']:.4f}")
        table.add_row(*((models[int(found["b"])].name,) if several else ()), *cells)
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
