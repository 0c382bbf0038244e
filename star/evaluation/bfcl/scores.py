"""Computes BFCL's two overall scores from its categories, with intervals, and those of a model that never calls.

v3: the mean of non-live (mean of simple, multiple, parallel, parallel multiple and irrelevance; simple is the mean
over three languages), live (mean over all its entries) and multi-turn (mean of four categories). The STAR paper's
tables use this formula.
v4: 10% non-live and 10% live without the irrelevance categories, 10% irrelevance, 30% multi-turn, 40% agentic. The
agentic categories need the open web and are not run, so the score is over the other 60%.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from star.config.bfcl_categories import CATEGORIES, IRRELEVANCE, LIVE, LIVE_CALLS, MULTI_TURN, RELEVANCE, SIMPLE
from star.evaluation.intervals import mean_score, weighted_score
from star.evaluation.suite_scores import CategoryScore, Score

Weights = dict[str, float]  # weight of each category's accuracy


class BfclScores(TypedDict):
    """The scores of one model: of the formulas, of every category, and of a model that never calls (`floor`).

    `began_call` counts, per category of RELEVANCE, the entries with an answer that holds the start of a call. The
    harness counts a call that it cannot read as no call, so a broken call is right where no call is due.
    """

    scores: dict[str, Score]
    categories: dict[str, CategoryScore]
    floor: dict[str, float]
    began_call: dict[str, int]


def formulas(sizes: Mapping[str, int]) -> dict[str, Weights]:
    """Every score over several categories, as the weights of the categories' accuracies.

    For example, `irrelevance_both` is {"irrelevance": 0.5, "live_irrelevance": 0.5}.

    Args:
        sizes: entries of each category in the whole data set. The live categories are weighted by them.
    """
    simple = _mean_of([{name: 1.0} for name in SIMPLE])
    calls = [simple, *({name: 1.0} for name in ("multiple", "parallel", "parallel_multiple"))]
    multi_turn = _mean_of([{name: 1.0} for name in MULTI_TURN])
    non_live, live = _mean_of([*calls, {"irrelevance": 1.0}]), _weighted_by_size(LIVE, sizes)
    irrelevance = _mean_of([{name: 1.0} for name in IRRELEVANCE])
    v4 = [
        (1 / 6, _mean_of(calls)),
        (1 / 6, _weighted_by_size(LIVE_CALLS, sizes)),
        (1 / 6, irrelevance),
        (3 / 6, multi_turn),
    ]
    return {
        "overall_v3": _mean_of([non_live, live, multi_turn]),
        "overall_v4_without_agentic": _weighted_sum_of(v4),
        "non_live": non_live,
        "live": live,
        "multi_turn": multi_turn,
        "irrelevance_both": irrelevance,
    }


def bfcl_scores(verdicts: Iterable[Mapping[str, Any]], sizes: Mapping[str, int]) -> BfclScores:
    """Scores one model. Intervals are 95%: Wilson's for a category, MOVER over Wilson's for a weighted sum.

    Args:
        verdicts: one per entry, with `category`, `valid`, and `began_call` where it is known.
        sizes: entries of each category in the whole data set.

    Returns:
        As `scores` the formulas whose categories were all run. Where those of the overall formula were not, also each
        category by itself. Also, as `<category>_began_call`, the shares of `began_call`.
    """
    columns: dict[str, list[float]] = {}
    began_call: dict[str, list[float]] = {}
    for verdict in verdicts:
        columns.setdefault(verdict["category"], []).append(float(verdict["valid"]))
        if verdict["category"] in RELEVANCE and "began_call" in verdict:
            began_call.setdefault(verdict["category"], []).append(float(verdict["began_call"]))
    categories: dict[str, CategoryScore] = {
        name: {**mean_score(columns[name], seed=0), "rows": len(columns[name])}
        for name in sorted(columns, key=CATEGORIES.index)
    }
    # A formula over a category that was not run is left out, so the size of such a category does not matter.
    weights_of = formulas({**dict.fromkeys(CATEGORIES, 1), **sizes})
    complete = {name: weights for name, weights in weights_of.items() if weights.keys() <= columns.keys()}
    if "overall_v3" not in complete:
        complete |= {name: {name: 1.0} for name in categories}
    scores = {name: weighted_score(weights, categories) for name, weights in complete.items()}
    began_call = {name: began_call[name] for name in RELEVANCE if name in began_call}
    return {
        "scores": scores | {f"{name}_began_call": mean_score(found, seed=0) for name, found in began_call.items()},
        "categories": categories,
        "floor": {
            # Without a call only the entries of irrelevance are right.
            name: sum(weight for category, weight in weights.items() if category in IRRELEVANCE)
            for name, weights in complete.items()
        },
        "began_call": {name: round(sum(found)) for name, found in began_call.items()},
    }


def _weighted_by_size(names: tuple[str, ...], sizes: Mapping[str, int]) -> Weights:
    total = sum(sizes[name] for name in names)
    return {name: sizes[name] / total for name in names}


def _mean_of(parts: list[Weights]) -> Weights:
    return _weighted_sum_of([(1 / len(parts), part) for part in parts])


def _weighted_sum_of(parts: list[tuple[float, Weights]]) -> Weights:
    total: Weights = {}
    for share, part in parts:
        for name, weight in part.items():
            total[name] = total.get(name, 0.0) + share * weight
    return total
