"""Compares two models row by row: the mean difference of every measure, its interval and its p value."""

from collections.abc import Iterator
from typing import Any

from star.evaluation.intervals import paired_difference
from star.evaluation.suites import SUITES

Outcomes = dict[str, list[dict[str, Any]]]  # rows by suite, each with `id`, `kind` and the suite's measures


def paired_differences(a: str, b: str, outcomes: dict[str, Outcomes], *, seed: int = 0) -> list[dict[str, Any]]:
    """Paired differences a - b on the rows that both models answered, for every measure of every suite.

    Args:
        a: name of the first model, as in `outcomes`.
        b: name of the second one.
        outcomes: by model.

    Returns:
        For each measure `a`, `b`, `metric`, `rows`, `difference`, `low`, `high`, `p_value`.
    """
    comparisons = []
    for suite in SUITES.values():
        rows_a, rows_b = ({row["id"]: row for row in outcomes[name].get(suite.name, [])} for name in (a, b))
        # A difference is paired only where both models answered the same row.
        common = [row_id for row_id in rows_a if row_id in rows_b]
        if not common:
            continue
        for metric, key in suite.measures.items():
            values_a, values_b = ([float(rows[row_id][key]) for row_id in common] for rows in (rows_a, rows_b))
            found = paired_difference(values_a, values_b, seed=seed)
            comparisons.append(
                {
                    "a": a,
                    "b": b,
                    "metric": metric,
                    "rows": len(common),
                    "difference": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "p_value": found.p_value,
                }
            )
    return comparisons


def paired_differences_by_kind(a: str, b: str, outcomes: dict[str, Outcomes]) -> Iterator[dict[str, Any]]:
    """`paired_differences` on each kind of row alone, because the registration's gate looks at every kind."""
    kinds = sorted({row["kind"] for rows in outcomes[a].values() for row in rows})
    for kind in kinds:
        of_kind = {
            name: {suite: [row for row in rows if row["kind"] == kind] for suite, rows in outcomes[name].items()}
            for name in (a, b)
        }
        yield from ({**found, "kind": kind} for found in paired_differences(a, b, of_kind))
