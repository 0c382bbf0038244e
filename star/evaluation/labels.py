"""How an evaluation is read and how its numbers are written: names of scores, percentages, intervals, the rows of a comparison.

The report, its Markdown table and `star compare` share these. Whatever JSON may hold instead of a number counts as missing.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from star.number_format import format_bytes, format_count, format_number, format_rate, format_seconds

Evaluation = dict[str, Any]
Model = dict[str, Any]


class Metric(NamedTuple):
    """How one score is called and read: `better` is 1 if more is better, -1 if less is, 0 if neither."""

    label: str
    percent: bool = False
    better: int = 1


_METRICS = {
    "exact_match": Metric("Exact match", percent=True),
    "mean_reward": Metric("Mean reward"),
    "format_errors": Metric("Format errors", percent=True, better=-1),
    "entropy": Metric("Policy entropy (nats)", better=0),
    "bfcl_overall_v3": Metric("BFCL overall (v3)", percent=True),
    "bfcl_overall_v4_without_agentic": Metric("BFCL overall (v4, no agentic)", percent=True),
    "bfcl_non_live": Metric("BFCL non-live", percent=True),
    "bfcl_live": Metric("BFCL live", percent=True),
    "bfcl_multi_turn": Metric("BFCL multi-turn", percent=True),
    "bfcl_irrelevance_both": Metric("BFCL irrelevance, both", percent=True),
    "bfcl": Metric("BFCL entries right", percent=True),
    "acebench_normal": Metric("ACEBench normal", percent=True),
    "acebench": Metric("ACEBench conversations right", percent=True),
}
SUITE_NAMES = {"heldout": "held-out", "bfcl": "BFCL", "acebench": "ACEBench"}
_FACTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("Parameters", "parameters", format_count),
    ("Memory of the weights", "memory", format_bytes),
    ("Tokens per second", "tokens_per_second", format_rate),
    ("Seconds an answer, asked alone", "latency", format_number),
    ("Time", "seconds", format_seconds),
)


def title_of(evaluation: Evaluation) -> str:
    return str(evaluation.get("title") or "Evaluation")


def models_of(evaluation: Evaluation) -> list[Model]:
    return evaluation.get("models") or []


def final_model(models: list[Model]) -> Model | None:
    """The model that the page is about: the last one made."""
    return models[-1] if models else None


def score_of(model: Model, name: str) -> dict[str, float | None] | None:
    """Mean, low and high of one score; None when there is no mean."""
    found = (model.get("scores") or {}).get(name) or {}
    score = {key: as_number(found.get(key)) for key in ("mean", "low", "high")}
    return None if score["mean"] is None else score


def pass_names(models: list[Model]) -> list[str]:
    """The pass@k scores that any model has, k rising."""
    names = {name for model in models for name in model.get("scores") or {}}
    return sorted((name for name in names if re.fullmatch(r"pass_at_[1-9]\d*", name)), key=draws_of)


def draws_of(name: str) -> int:
    return int(name.rpartition("_")[2])


def as_number(value: object) -> float | None:
    """A finite number, or None for whatever else JSON may hold."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def metric_label(name: str) -> str:
    return metric_of(name).label


def metric_of(name: str) -> Metric:
    if name.startswith("pass_at_"):
        return Metric(f"pass@{name.removeprefix('pass_at_')}", percent=True)
    if name.startswith("bfcl_") and name not in _METRICS:
        return Metric(f"BFCL {name.removeprefix('bfcl_').replace('_', ' ')}", percent=True)
    return _METRICS.get(name) or Metric(name.replace("_", " "), better=0)


def comparison_rows(models: list[Model]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(label, [(value, interval) of every model]) of everything at least one model has."""
    first = ["exact_match", *pass_names(models), "mean_reward", "format_errors", "entropy"]
    names = list(dict.fromkeys([*first, *(name for model in models for name in model.get("scores") or {})]))
    rows = []
    for name in names:
        scores = [score_of(model, name) for model in models]
        cells = [(show(name, score["mean"]), interval_text(name, score)) if score else ("–", "") for score in scores]
        rows.append((metric_of(name).label + _floor(name, models), cells))
    for label, key, written in _FACTS:
        numbers = [as_number(model.get(key)) for model in models]
        rows.append((label, [("–" if number is None else written(number), "") for number in numbers]))
    return [(label, cells) for label, cells in rows if any(value != "–" for value, _ in cells)]


def _floor(name: str, models: list[Model]) -> str:
    """Beside a BFCL score what a model that never calls would get, which is the same for all models."""
    floors = {
        f"bfcl_{key}": floor for model in models for key, floor in (model.get("bfcl") or {}).get("floor", {}).items()
    }
    return f" (never calling: {show(name, floors[name])})" if name in floors else ""


def show(name: str, value: float, *, signed: bool = False) -> str:
    """A score as its metric is read: 71.2%, 0.423; a signed percentage is a difference in points: +3.1 pp."""
    unit = "" if not metric_of(name).percent else "\u00a0pp" if signed else "%"
    return _digits(name, value, signed) + unit


def show_range(name: str, low: float, high: float, *, signed: bool = False) -> str:
    return f"{_digits(name, low, signed)} to {show(name, high, signed=signed)}"


def _digits(name: str, value: float, signed: bool) -> str:
    sign = "+" if signed else ""
    return (f"{100 * value:{sign}.1f}" if metric_of(name).percent else f"{value:{sign}.3f}").replace("-", "−")


def interval_text(name: str, score: dict[str, float | None]) -> str:
    """ "70.1 to 74.3%", or "" when the interval is not known."""
    low, high = score["low"], score["high"]
    return "" if low is None or high is None else show_range(name, low, high)
