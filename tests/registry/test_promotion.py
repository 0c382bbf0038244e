"""The gate's verdicts, and the aliases after promotions and rollbacks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.errors import InputError
from star.registry.promotion import Gate, champion, decide, promote, rollback
from star.registry.publish import list_versions, register_model
from star.registry.tracking import connect

GATE = Gate(min_exact_match=0.5, max_format_errors=0.1, max_regression=0.1)
GOOD = {"exact_match": 0.8, "mean_reward": 0.9, "format_errors": 0.02}
share = st.floats(0, 1)
scores = st.fixed_dictionaries({"exact_match": share, "mean_reward": share, "format_errors": share})
gates = st.builds(Gate, min_exact_match=share, max_format_errors=share, max_regression=share)


def test_a_first_candidate_needs_only_the_bars() -> None:
    decision = decide(GOOD, None, GATE)
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
        ({"mean_reward": 0.7}, "mean reward 0.7000 is below 0.8500 (the champion's 0.9500 less 0.1000)"),
        ({"exact_match": float("nan")}, "exact match nan is below 0.5000 (the gate's minimum)"),
        ({"format_errors": float("nan")}, "format errors nan exceed 0.1000 (the gate's maximum)"),
    ],
)
def test_each_bar_can_fail(changed: dict[str, float], reason: str) -> None:
    best = {"exact_match": 0.9, "mean_reward": 0.95, "format_errors": 0.0}
    assert decide(GOOD, best, GATE).passed
    decision = decide(GOOD | changed, best, GATE)
    assert not decision.passed
    assert reason in decision.reasons


@pytest.mark.parametrize("missing", ["exact_match", "mean_reward", "format_errors"])
def test_a_score_that_was_not_measured_does_not_pass(missing: str) -> None:
    decision = decide({score: value for score, value in GOOD.items() if score != missing}, GOOD, GATE)
    assert not decision.passed
    assert any(missing.replace("_", " ") in reason and "not measured" in reason for reason in decision.reasons)


def test_a_fall_of_just_what_is_allowed_passes() -> None:
    gate = Gate(min_exact_match=0, max_format_errors=1, max_regression=0.1)
    assert decide(GOOD | {"exact_match": 0.3}, GOOD | {"exact_match": 0.4}, gate).passed


@given(candidate=scores, best=st.none() | scores, gate=gates, better=scores)
def test_a_better_score_never_turns_a_pass_into_a_fail(
    candidate: dict, best: dict | None, gate: Gate, better: dict
) -> None:
    improved = {score: max(candidate[score], better[score]) for score in ("exact_match", "mean_reward")}
    improved["format_errors"] = min(candidate["format_errors"], better["format_errors"])
    if decide(candidate, best, gate).passed:
        assert decide(improved, best, gate).passed


@given(candidate=scores, best=scores, gate=gates)
def test_the_champion_only_raises_the_bar(candidate: dict, best: dict, gate: Gate) -> None:
    if decide(candidate, best, gate).passed:
        assert decide(candidate, None, gate).passed


def aliases() -> dict[int, tuple[str, ...]]:
    return {version.version: version.aliases for version in list_versions("tiny")}


@pytest.fixture
def three_versions(home: Path, model: Path) -> None:
    for digest in ("d1", "d2", "d3"):
        register_model(model, name="tiny", scores=GOOD, lineage={}, model_digest=digest)


def test_promotion_and_the_way_back(three_versions: None) -> None:
    assert champion("tiny") is None
    assert promote("tiny", 1).version == 1
    assert aliases() == {3: (), 2: (), 1: ("champion",)}
    promote("tiny", 3)
    assert aliases() == {3: ("champion",), 2: (), 1: ("previous",)}
    assert promote("tiny", 3).aliases == ("champion",)  # again: nothing changes, above all not `previous`
    assert aliases() == {3: ("champion",), 2: (), 1: ("previous",)}
    assert rollback("tiny").version == 1
    assert aliases() == {3: ("previous",), 2: (), 1: ("champion",)}
    assert rollback("tiny").version == 3
    assert champion("tiny").scores == GOOD


def test_what_cannot_be_promoted(three_versions: None) -> None:
    with pytest.raises(InputError, match="no version 4: choose one of 3, 2, 1"):
        promote("tiny", 4)
    promote("tiny", 2)
    with pytest.raises(InputError, match="no version of tiny is called 'previous'"):
        rollback("tiny")
    assert champion("tiny").version == 2


def test_a_promotion_that_was_overtaken_is_not_reported_as_done(
    three_versions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = type(connect()).set_registered_model_alias

    def write_and_be_overtaken(self, name: str, alias: str, version: str) -> None:
        write(self, name, alias, version)
        write(self, name, alias, "2")

    monkeypatch.setattr(type(connect()), "set_registered_model_alias", write_and_be_overtaken)
    with pytest.raises(RuntimeError, match="tiny version 3 was promoted, but the champion is tiny version 2"):
        promote("tiny", 3)
