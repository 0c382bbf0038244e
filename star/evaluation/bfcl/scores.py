"""BFCL's two formulas over its categories, with intervals, and the score of a model that never calls anything.

v3: the mean of non-live (mean of simple, multiple, parallel, parallel multiple and irrelevance; simple is the mean over three
languages), live (mean over all its entries) and multi-turn (mean of four categories). It is the formula of the STAR paper's tables.
v4: 10% non-live and 10% live without the irrelevance categories, 10% irrelevance, 30% multi-turn, 40% agentic. The agentic
categories need the open web and are not run, so the score is over the other 60%.
"""

from collections.abc import Mapping
from math import sqrt
from statistics import fmean

from star.config.bfcl_categories import CATEGORIES, IRRELEVANCE, LIVE, LIVE_CALLS, MULTI_TURN, SIMPLE
from star.evaluation.intervals import mean_interval

Weights = dict[str, float]


def formulas(sizes: Mapping[str, int]) -> dict[str, Weights]:
    """Every score of several categories as weights of the categories' accuracies.

    Args:
        sizes: entries of each category in the whole data set, by which the live categories are weighted.
    """
    simple = _mean([{name: 1.0} for name in SIMPLE])
    calls = [simple, *({name: 1.0} for name in ("multiple", "parallel", "parallel_multiple"))]
    multi_turn = _mean([{name: 1.0} for name in MULTI_TURN])
    non_live, live = _mean([*calls, {"irrelevance": 1.0}]), _by_size(LIVE, sizes)
    irrelevance = _mean([{name: 1.0} for name in IRRELEVANCE])
    v4 = [(1 / 6, _mean(calls)), (1 / 6, _by_size(LIVE_CALLS, sizes)), (1 / 6, irrelevance), (3 / 6, multi_turn)]
    return {
        "overall_v3": _mean([non_live, live, multi_turn]),
        "overall_v4_without_agentic": _sum(v4),
        "non_live": non_live,
        "live": live,
        "multi_turn": multi_turn,
        "irrelevance_both": irrelevance,
    }


def bfcl_scores(verdicts: list[dict], sizes: Mapping[str, int]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of one model.

    Args:
        verdicts: one dict an entry with `category` and `valid`.

    Returns:
        `scores`: the formulas whose categories were all run, and the categories where that is not the overall one; `categories`: every
        category, with its `rows`; `floor`: the same scores of a model that never calls. A score is {"mean", "low", "high"} with a
        95 % interval (Wilson's for a category, Zou & Donner's MOVER over Wilson's for a weighted sum of categories).
    """
    columns: dict[str, list[float]] = {}
    for verdict in verdicts:
        columns.setdefault(verdict["category"], []).append(float(verdict["valid"]))
    categories = {}
    for name in sorted(columns, key=CATEGORIES.index):
        low, high = mean_interval(columns[name], seed=0)
        categories[name] = {"mean": fmean(columns[name]), "low": low, "high": high, "rows": len(columns[name])}
    # A formula over a category that was not run is left out, so the size of such a category does not matter.
    weights_of = formulas({**dict.fromkeys(CATEGORIES, 1), **sizes})
    known = {name: weights for name, weights in weights_of.items() if weights.keys() <= columns.keys()}
    if "overall_v3" not in known:  # of chosen categories each stands for itself
        known |= {name: {name: 1.0} for name in categories}
    return {
        "scores": {name: combined(weights, categories) for name, weights in known.items()},
        "categories": categories,
        "floor": {
            name: sum(weight for category, weight in weights.items() if category in IRRELEVANCE)
            for name, weights in known.items()
        },
    }


def combined(weights: Weights, categories: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """A weighted sum of independent shares: the distances to their own limits add up in squares (Zou & Donner 2008)."""
    mean = sum(weight * categories[name]["mean"] for name, weight in weights.items())
    below, above = (
        sqrt(
            sum((weight * (categories[name]["mean"] - categories[name][end])) ** 2 for name, weight in weights.items())
        )
        for end in ("low", "high")
    )
    return {"mean": mean, "low": max(0.0, mean - below), "high": min(1.0, mean + above)}


def _by_size(names: tuple[str, ...], sizes: Mapping[str, int]) -> Weights:
    total = sum(sizes[name] for name in names)
    return {name: sizes[name] / total for name in names}


def _mean(parts: list[Weights]) -> Weights:
    return _sum([(1 / len(parts), part) for part in parts])


def _sum(parts: list[tuple[float, Weights]]) -> Weights:
    total: Weights = {}
    for share, part in parts:
        for name, weight in part.items():
            total[name] = total.get(name, 0.0) + share * weight
    return total
