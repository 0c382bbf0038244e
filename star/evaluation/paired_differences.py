"""Compares models row by row: the mean difference of every measure, its interval and its p value."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from star.evaluation.intervals import differences_of
from star.evaluation.suites import SUITES, Suite

Outcomes = dict[str, list[dict[str, Any]]]  # rows by suite, each with `id`, `kind` and the suite's measures


@dataclass(frozen=True)
class _Answered:
    """What one model reached on some rows of a suite: each row's place by its id, and its values by measure."""

    places: dict[str, int]
    values: dict[str, NDArray]

    @classmethod
    def of(cls, rows: list[dict[str, Any]], suite: Suite) -> "_Answered":
        places = {row["id"]: place for place, row in enumerate(rows)}
        return cls(places, {key: np.array([row[key] for row in rows], float) for key in suite.measures.values()})


def paired_differences(
    pairs: Sequence[tuple[str, str]], outcomes: dict[str, Outcomes], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Paired differences a - b on the rows that both models answered, for every measure of every suite.

    Args:
        pairs: names (a, b) of models, as in `outcomes`.
        outcomes: by model.

    Returns:
        For each pair and measure `a`, `b`, `metric`, `rows`, `difference`, `low`, `high`, `p_value`.
    """
    answered = {
        (name, suite): _Answered.of(rows, SUITES[suite]) for name in outcomes for suite, rows in outcomes[name].items()
    }
    return _compare([(a, b, {}, answered) for a, b in pairs], seed=seed)


def paired_differences_by_kind(
    pairs: Sequence[tuple[str, str]], outcomes: dict[str, Outcomes], *, seed: int = 0
) -> list[dict[str, Any]]:
    """`paired_differences` on each kind of row alone, because the registration's gate looks at every kind."""
    by_kind: dict[str, dict[tuple[str, str], _Answered]] = defaultdict(dict)
    for name, suites in outcomes.items():
        for suite, rows in suites.items():
            kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for row in rows:
                kinds[row["kind"]].append(row)
            for kind, of_kind in kinds.items():
                by_kind[kind][name, suite] = _Answered.of(of_kind, SUITES[suite])
    asked = [(a, b, {"kind": kind}, by_kind[kind]) for a, b in pairs for kind in sorted(by_kind)]
    return _compare(asked, seed=seed)


def _compare(
    asked: list[tuple[str, str, dict[str, str], dict[tuple[str, str], _Answered]]], *, seed: int
) -> list[dict[str, Any]]:
    """One entry for each asked pair, suite that both answered, and measure, in this order.

    Args:
        asked: the models a and b, further keys of their entries, and what was answered by (model, suite).
    """
    entries: list[tuple[dict[str, Any], dict[str, str]]] = []
    scores: list[tuple[NDArray, NDArray]] = []
    for name_a, name_b, labels, answered in asked:
        for suite in SUITES.values():
            a, b = answered.get((name_a, suite.name)), answered.get((name_b, suite.name))
            if a is None or b is None:
                continue
            # A difference is paired only where both models answered the same row.
            common = [row for row in a.places if row in b.places]
            if not common:
                continue
            places_a, places_b = ([answers.places[row] for row in common] for answers in (a, b))
            for metric, key in suite.measures.items():
                entries.append(({"a": name_a, "b": name_b, "metric": metric, "rows": len(common)}, labels))
                scores.append((a.values[key][places_a], b.values[key][places_b]))
    # All at once, because comparisons of equally many rows share their random draws.
    found = differences_of(scores, seed=seed)
    return [
        {**entry, "difference": one.mean, "low": one.low, "high": one.high, "p_value": one.p_value, **labels}
        for (entry, labels), one in zip(entries, found, strict=True)
    ]
