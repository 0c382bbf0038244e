"""Defines what every suite gets to score with and what it returns: the types that all suites share."""

from dataclasses import dataclass, field
from typing import Any, TypedDict


class Score(TypedDict):
    """The mean of a score over its rows, with its 95% interval."""

    mean: float
    low: float
    high: float


class CategoryScore(Score):
    """The score of one category of a benchmark, with the number of its entries."""

    rows: int


@dataclass(frozen=True)
class ScoringSettings:
    """The settings that the scores depend on, read from the `settings` of an evaluation.

    Attributes:
        suites: names of the suites, in the order in which the user gave them.
        samples: samples per held-out row.
        bfcl_categories: the BFCL categories in the user's order; None for all of them.
    """

    seed: int
    suites: tuple[str, ...]
    samples: int
    bfcl_categories: tuple[str, ...] | None

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> "ScoringSettings":
        """Reads the settings from the sections `seed` and `evaluate` of a configuration, as JSON."""
        evaluate = settings["evaluate"]
        categories = evaluate["bfcl_categories"]
        return cls(
            seed=settings["seed"],
            suites=tuple(evaluate["suites"]),
            samples=evaluate["samples"],
            bfcl_categories=tuple(categories) if categories else None,
        )


@dataclass(frozen=True)
class SuiteScores:
    """The scores of one model on one suite.

    Attributes:
        scores: the suite's scores by the names that reports and MLflow show, such as `exact_match` or `bfcl_live`.
        details: further keys of the model's entry in evaluation.json, such as `by_kind` or `bfcl`.
        outcomes: one entry per row, each with `id`, `kind` and the keys of the suite's measures.
        failures: the outcomes of the wrong answers, worst first, with the columns of star/evaluation/failures.py;
            empty for a suite whose report shows none.
    """

    scores: dict[str, Score]
    details: dict[str, Any]
    outcomes: list[dict[str, Any]]
    failures: list[dict[str, Any]] = field(default_factory=list)
