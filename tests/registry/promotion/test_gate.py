"""The gate's verdicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.config.evaluation import Gate
from star.registry.promotion.gate import Measurements, check_gate, check_scores

GATE = Gate(min_exact_match=0.5, max_format_errors=0.1, max_regression=0.1)
GOOD = {"exact_match": 0.8, "mean_reward": 0.9, "format_errors": 0.02}
share = st.floats(0, 1)
scores = st.fixed_dictionaries({"exact_match": share, "mean_reward": share, "format_errors": share})
gates = st.builds(Gate, min_exact_match=share, max_format_errors=share, max_regression=share)


def test_a_first_candidate_needs_only_the_bars() -> None:
    decision = check_scores(GOOD, None, GATE)
    assert decision.passed
    assert decision.reasons == [
        "exact match 0.8000 reaches 0.5000 (the gate's minimum)",
        "format errors 0.0200 stay within 0.1000 (the gate's maximum)",
    ]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exact_match": 0.49}, "exact match 0.4900 is below 0.5000 (the gate's minimum)"),
        ({"format_errors": 0.11}, "format errors 0.1100 exceed 0.1000 (the gate's maximum)"),
        ({"exact_match": 0.79}, "exact match 0.7900 is below 0.8000 (the champion's 0.9000 less 0.1000)"),
        (
            {"mean_reward": 0.7},
            "mean reward (official reading) 0.7000 is below 0.8500 (the champion's 0.9500 less 0.1000)",
        ),
        ({"exact_match": float("nan")}, "exact match nan is below 0.5000 (the gate's minimum)"),
        ({"format_errors": float("nan")}, "format errors nan exceed 0.1000 (the gate's maximum)"),
    ],
)
def test_each_bar_can_fail(changed: dict[str, float], reason: str) -> None:
    best = {"exact_match": 0.9, "mean_reward": 0.95, "format_errors": 0.0}
    assert check_scores(GOOD, best, GATE).passed
    decision = check_scores(GOOD | changed, best, GATE)
    assert not decision.passed
    assert reason in decision.reasons


@pytest.mark.parametrize("missing", ["exact_match", "mean_reward", "format_errors"])
def test_a_score_that_was_not_measured_does_not_pass(missing: str) -> None:
    decision = check_scores({score: value for score, value in GOOD.items() if score != missing}, GOOD, GATE)
    assert not decision.passed
    assert any(missing.replace("_", " ") in reason and "not measured" in reason for reason in decision.reasons)


def test_a_fall_of_just_what_is_allowed_passes() -> None:
    gate = Gate(min_exact_match=0, max_format_errors=1, max_regression=0.1)
    assert check_scores(GOOD | {"exact_match": 0.3}, GOOD | {"exact_match": 0.4}, gate).passed


@given(candidate=scores, best=st.none() | scores, gate=gates, better=scores)
def test_a_better_score_never_turns_a_pass_into_a_fail(
    candidate: dict, best: dict | None, gate: Gate, better: dict
) -> None:
    improved = {score: max(candidate[score], better[score]) for score in ("exact_match", "mean_reward")}
    improved["format_errors"] = min(candidate["format_errors"], better["format_errors"])
    if check_scores(candidate, best, gate).passed:
        assert check_scores(improved, best, gate).passed


@given(candidate=scores, best=scores, gate=gates)
def test_the_champion_only_raises_the_bar(candidate: dict, best: dict, gate: Gate) -> None:
    if check_scores(candidate, best, gate).passed:
        assert check_scores(candidate, None, gate).passed


def measured(right: dict[str, tuple[str, float]], **more) -> Measurements:
    return Measurements(GOOD, benchmark="rows", decoding="greedy", outcomes=right, **more)


def answers(wrong_dates: int, rows: int = 40) -> dict[str, tuple[str, float]]:
    """Half of the rows are dates, of which some are answered wrong."""
    return {str(i): ("dates" if i % 2 else "places", float(i % 2 == 0 or i // 2 >= wrong_dates)) for i in range(rows)}


def test_a_category_that_falls_behind_for_certain_stops_a_candidate() -> None:
    verdict = check_gate(measured(answers(wrong_dates=12)), measured(answers(wrong_dates=0)), GATE)
    assert not verdict.passed
    checks = {check.name: check for check in verdict.checks}
    assert not checks["category dates"].passed and checks["category places"].passed
    assert (
        "dates: -0.6000" in checks["category dates"].reason and "worse by more than" in checks["category dates"].reason
    )
    # One wrong row of twenty could be chance; an improvement is none the worse for its size.
    assert check_gate(measured(answers(wrong_dates=1)), measured(answers(wrong_dates=0)), GATE).passed
    assert check_gate(measured(answers(wrong_dates=0)), measured(answers(wrong_dates=12)), GATE).passed


def test_what_was_measured_otherwise_is_not_compared_and_that_is_said() -> None:
    rival = Measurements({"exact_match": 1.0}, benchmark="other rows", decoding="greedy", outcomes=answers(0))
    verdict = check_gate(measured(answers(wrong_dates=12)), rival, GATE)
    assert verdict.passed
    assert verdict.reasons[-1] == "the champion was measured on other rows or with other decoding, and is not compared"
    assert not check_gate(
        measured({}), Measurements({"exact_match": 1.0}, benchmark="rows", decoding="greedy"), GATE
    ).passed


def test_format_errors_of_an_older_star_do_not_pass() -> None:
    verdict = check_gate(measured({}, older_reading=True), None, GATE)
    assert [check.name for check in verdict.checks if not check.passed] == ["reading"]
    assert "run `star evaluate` again" in verdict.reasons[-1]


def test_a_champion_that_an_older_star_measured_is_compared_and_that_is_said() -> None:
    older = measured(answers(wrong_dates=0), older_reading=True)
    verdict = check_gate(measured(answers(wrong_dates=12)), older, GATE)
    assert not verdict.passed and "its exact match can be too high" in verdict.reasons[-1]
    assert check_gate(measured(answers(wrong_dates=0)), older, GATE).passed


def test_size_and_speed_have_limits_where_they_are_set() -> None:
    gate = GATE.model_copy(update={"max_parameters": 1000, "min_tokens_per_second": 50.0})
    assert check_gate(measured({}, parameters=1000, tokens_per_second=50.0), None, gate).passed
    large = check_gate(measured({}, parameters=1001, tokens_per_second=49.0), None, gate)
    assert [check.name for check in large.checks if not check.passed] == ["size", "speed"]
    assert [check.passed for check in check_gate(measured({}), None, gate).checks[-2:]] == [False, False]
