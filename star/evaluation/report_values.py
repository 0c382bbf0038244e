"""Reads what the reports show out of an evaluation: models, scores, and the rows of the comparison table.

The HTML page and the Markdown table share these. Every key of an evaluation is optional, and whatever JSON holds in
the place of a finite number counts as missing.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from star.evaluation.labels import metric_of
from star.evaluation.number_format import format_range, format_score
from star.units import format_bytes, format_count, format_number, format_rate, format_seconds

Evaluation = dict[str, Any]  # evaluation.json, with the timing in the entries of the models
Model = dict[str, Any]  # a model's entry in it

_MISSING = "–"
_UNSCORED_SHOWN = 5  # rows that are named per reason; evaluation.json names all
_SIZE_AND_SPEED: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("Parameters", "parameters", format_count),
    ("Memory of the weights", "memory", format_bytes),
    ("Tokens per second", "tokens_per_second", format_rate),
    ("Seconds an answer, asked alone", "latency", format_number),
    ("Time", "seconds", format_seconds),
    ("Accelerator time of its training", "training_accelerator_seconds", format_seconds),
)


@dataclass(frozen=True)
class ShownScore:
    """A score with its interval, where that is known."""

    mean: float
    interval: tuple[float, float] | None


def title_of(evaluation: Evaluation) -> str:
    """The title of the report, or "Evaluation" where none is given."""
    return str(evaluation.get("title") or "Evaluation")


def models_of(evaluation: Evaluation) -> list[Model]:
    """The evaluated models' entries, in the order of the report; empty where there are none."""
    return evaluation.get("models") or []


def final_model(models: list[Model]) -> Model | None:
    """The model that the report is about: the last one."""
    return models[-1] if models else None


def score_of(model: Model, name: str) -> ShownScore | None:
    """One score of a model; None when its mean is missing."""
    found = (model.get("scores") or {}).get(name) or {}
    mean, low, high = (as_number(found.get(key)) for key in ("mean", "low", "high"))
    if mean is None:
        return None
    return ShownScore(mean, None if low is None or high is None else (low, high))


def pass_at_k_names(models: list[Model]) -> list[str]:
    """Names of the pass@k scores that any model has, by rising k."""
    names = {name for model in models for name in model.get("scores") or {}}
    return sorted((name for name in names if re.fullmatch(r"pass_at_[1-9]\d*", name)), key=k_of)


def k_of(name: str) -> int:
    """The k of a pass@k: 4 for `pass_at_4`."""
    return int(name.rpartition("_")[2])


def as_number(value: object) -> float | None:
    """A finite number, or None for whatever else JSON may hold."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def interval_text(name: str, score: ShownScore) -> str:
    """The score's interval as in "70.1 to 74.3%"; "" where it is missing."""
    return format_range(name, *score.interval) if score.interval else ""


def unscored_text(evaluation: Evaluation) -> str:
    """Which held-out rows are left out of all scores, and why; "" where none is."""
    # The same for all models, because the rows' own targets are at fault.
    rows = (final_model(models_of(evaluation)) or {}).get("unscored") or []
    if not rows:
        return ""
    ids: dict[str, list[str]] = {}
    for row in rows:
        ids.setdefault(row["reason"], []).append(row["id"])
    reasons = "; ".join(f"{reason} ({_some_of(found)})" for reason, found in ids.items())
    count = f"{len(rows):,} held-out {'row is' if len(rows) == 1 else 'rows are'}"
    return f"{count} left out of all scores, because no answer can be right: {reasons}."


def _some_of(ids: list[str]) -> str:
    more = f" and {len(ids) - _UNSCORED_SHOWN:,} more" if len(ids) > _UNSCORED_SHOWN else ""
    return ", ".join(ids[:_UNSCORED_SHOWN]) + more


def comparison_rows(models: list[Model]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The rows of the comparison table: every score, size and speed that at least one model has.

    Returns:
        For each row its label, and for each model (value, interval) as text.
    """
    first = ["exact_match", *pass_at_k_names(models), "mean_reward", "format_errors", "entropy"]
    names = list(dict.fromkeys([*first, *(name for model in models for name in model.get("scores") or {})]))
    rows = []
    for name in names:
        scores = [score_of(model, name) for model in models]
        cells = [
            (format_score(name, score.mean), interval_text(name, score)) if score else (_MISSING, "")
            for score in scores
        ]
        rows.append((metric_of(name).label + _never_calling_text(name, models), cells))
    for label, key, format_value in _SIZE_AND_SPEED:
        numbers = [as_number(model.get(key)) for model in models]
        rows.append((label, [(_MISSING if number is None else format_value(number), "") for number in numbers]))
    return [(label, cells) for label, cells in rows if any(value != _MISSING for value, _ in cells)]


def _never_calling_text(name: str, models: list[Model]) -> str:
    """Beside a BFCL score, the score of a model that never calls. It is the same for all models."""
    floors = {
        f"bfcl_{key}": floor for model in models for key, floor in (model.get("bfcl") or {}).get("floor", {}).items()
    }
    return f" (never calling: {format_score(name, floors[name])})" if name in floors else ""
