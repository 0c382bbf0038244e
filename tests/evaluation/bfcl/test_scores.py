"""BFCL's formulas: their weights, the floor of a model that never calls, intervals that hold the truth."""

import numpy as np
import pytest

from star.config.bfcl_categories import CATEGORIES, IRRELEVANCE
from star.evaluation.bfcl.scores import bfcl_scores, formulas
from star.evaluation.report import markdown_table
from star.evaluation.report_benchmarks import benchmarks_section

# Entries of the categories in the data of bfcl-eval 2026.3.23.
SIZES = dict(
    zip(CATEGORIES, (400, 100, 50, 200, 200, 200, 240, 258, 1053, 16, 24, 884, 16, 200, 200, 200, 200), strict=True)
)


def verdicts(right: dict[str, float]) -> list[dict]:
    return [
        {"category": name, "valid": index < round(right[name] * SIZES[name])}
        for name in CATEGORIES
        for index in range(SIZES[name])
    ]


def test_every_formula_is_a_weighted_mean() -> None:
    for name, weights in formulas(SIZES).items():
        assert sum(weights.values()) == pytest.approx(1), name
        assert all(weight > 0 for weight in weights.values())


def test_a_model_that_never_calls_scores_the_known_floor() -> None:
    found = bfcl_scores(verdicts({name: float(name in IRRELEVANCE) for name in CATEGORIES}), SIZES)
    assert found["scores"]["overall_v3"]["mean"] == pytest.approx(0.198, abs=0.001)
    assert {name: score["mean"] for name, score in found["scores"].items()} == pytest.approx(found["floor"])


def test_a_formula_is_left_out_when_a_category_was_not_run() -> None:
    some = [verdict for verdict in verdicts(dict.fromkeys(CATEGORIES, 1.0)) if verdict["category"] != "live_parallel"]
    found = bfcl_scores(some, {name: size for name, size in SIZES.items() if name != "live_parallel"})
    assert set(found["scores"]) == {"non_live", "multi_turn", "irrelevance_both", *found["categories"]}
    assert "live_parallel" not in found["categories"] and len(found["categories"]) == len(CATEGORIES) - 1


def test_chosen_categories_stand_for_themselves_beside_their_floor() -> None:
    given = [{"category": "irrelevance", "valid": index < 30} for index in range(40)]
    given += [{"category": "live_parallel", "valid": index < 4} for index in range(16)]
    found = bfcl_scores(given, SIZES)
    assert {name: score["mean"] for name, score in found["scores"].items()} == {
        "irrelevance": 0.75,
        "live_parallel": 0.25,
    }
    for name, score in found["scores"].items():
        assert score == pytest.approx({end: found["categories"][name][end] for end in ("mean", "low", "high")})
    assert found["floor"] == {"irrelevance": 1.0, "live_parallel": 0.0}
    scores = {f"bfcl_{name}": score for name, score in found["scores"].items()}
    table = markdown_table({"models": [{"name": "tiny", "scores": scores, "bfcl": found}]})
    assert "| BFCL irrelevance (never calling: 100.0%) | 75.0% [" in table
    assert "| BFCL live parallel (never calling: 0.0%) | 25.0% [" in table


def test_answers_that_begin_a_call_are_counted_beside_irrelevance() -> None:
    """The harness finds a broken call right where no call is due, so its score alone says too little."""
    given = [{"category": "irrelevance", "valid": True, "began_call": index < 9} for index in range(12)]
    given += [{"category": "live_relevance", "valid": False, "began_call": index < 3} for index in range(12)]
    given += [{"category": "live_parallel", "valid": False, "began_call": True} for _ in range(16)]
    found = bfcl_scores(given, SIZES)
    assert found["began_call"] == {"irrelevance": 9, "live_relevance": 3}
    assert found["scores"]["irrelevance_began_call"]["mean"] == 0.75
    scores = {f"bfcl_{name}": score for name, score in found["scores"].items()}
    details = {**found, "package": "bfcl-eval", "data": "v4", "data_sha256": "0" * 64}
    evaluation = {"models": [{"name": "tiny", "scores": scores, "bfcl": details}]}
    assert "| BFCL irrelevance, answers that begin a call | 75.0% [" in markdown_table(evaluation)
    assert "hold the start of a call: 9 of 12 in irrelevance, 3 of 12 in live relevance." in benchmarks_section(
        evaluation
    )


def test_the_intervals_of_a_formula_cover() -> None:
    rng = np.random.default_rng(5)
    truth = {name: float(rng.uniform(0.02, 0.98)) for name in CATEGORIES}
    rows, runs, inside = 25, 400, 0
    weights = formulas(SIZES)["overall_v3"]
    expected = sum(weight * truth[name] for name, weight in weights.items())
    for _ in range(runs):
        drawn = [{"category": c, "valid": bool(v)} for c in CATEGORIES for v in rng.random(rows) < truth[c]]
        score = bfcl_scores(drawn, SIZES)["scores"]["overall_v3"]
        inside += score["low"] <= expected <= score["high"]
    assert 0.92 <= inside / runs <= 0.98
