"""pass@k against its definition, the bootstrap against known distributions, the p value against enumeration.

Resampling in blocks and for many columns at once gives what one column in one block gives. Computed limits are those
of the resamples.
"""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.evaluation.intervals import (
    bootstrap_interval,
    differences_of,
    mean_interval,
    paired_difference,
    pass_at_k,
)
from star.evaluation.resampling import bootstrap_means, random_signs


@pytest.mark.parametrize(("n", "c", "k"), [(6, 2, 3), (5, 0, 2), (5, 5, 1), (8, 3, 8), (7, 1, 1), (4, 3, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int, c: int, k: int) -> None:
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == sum(any(subset) for subset in subsets) / len(subsets)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_laws(case: tuple[int, int, int]) -> None:
    n, c, k = case
    value = pass_at_k(n, c, k)
    assert 0 <= value <= 1
    assert pass_at_k(n, c, 1) == c / n
    assert k == n or value <= pass_at_k(n, c, k + 1)
    assert c == n or value <= pass_at_k(n, c + 1, k)
    assert value == (1.0 if n - c < k else pytest.approx(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1))))


def test_pass_at_k_keeps_its_digits_where_floats_lose_them() -> None:
    assert pass_at_k(10**6, 1, 1) == 1e-6
    assert pass_at_k(20_000, 1, 10_000) == 0.5  # binomials of 6000 digits


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_what_has_no_answer(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


def test_bootstrap_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, size=2500)
    low, high = bootstrap_interval(values, seed=0, draws=4000)
    half = 1.96 * values.std() / 50
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    inside = 0
    for seed in range(300):
        low, high = bootstrap_interval(rng.random(60) < 0.3, seed=seed, level=0.9, draws=400)
        inside += low <= 0.3 <= high
    assert 0.84 <= inside / 300 <= 0.95


def test_bootstrap_interval_is_deterministic_and_follows_level_and_seed() -> None:
    values = [0.0, 1.0, 0.5, 0.25, 1.0, 0.0, 0.75]
    low, high = bootstrap_interval(values, seed=7)
    assert (low, high) == bootstrap_interval(values, seed=7)
    assert (low, high) != bootstrap_interval(values, seed=8, draws=300)
    narrow_low, narrow_high = bootstrap_interval(values, seed=7, level=0.5)
    assert low < narrow_low < np.mean(values) < narrow_high < high


def test_resamples_in_blocks_are_those_of_numpy_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(6).random((2, 23))
    drawn = columns[:, np.random.default_rng([3, 0]).integers(23, size=(40, 23))]
    for numbers in (50, 1 << 17):
        monkeypatch.setattr("star.evaluation.resampling._NUMBERS_IN_CACHE", numbers)
        for values, (means, deviations) in zip(drawn, bootstrap_means(columns, seed=3, draws=40), strict=True):
            assert means.tolist() == values.mean(1).tolist()
            assert deviations.tolist() == values.std(1).tolist()
    assert bootstrap_interval([2.25] * 20, seed=0, draws=7) == (2.25, 2.25)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 4097])
def test_random_signs_are_those_of_numpys_integers(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.evaluation.resampling.SIGN_FLIPS", 60)
    monkeypatch.setattr("star.evaluation.resampling._SIGNS_DRAWN", 7 * count)
    rng = np.random.default_rng([9, 1])
    for block in random_signs(count, seed=9):
        assert (block == rng.integers(2, size=block.shape, dtype=np.int8)).all()


def test_many_comparisons_at_once_are_the_same_as_one_by_one() -> None:
    rng = np.random.default_rng(12)
    pairs = [(rng.integers(2, size=(2, 30)) / 1.0, rng.random((2, 30)), rng.random((2, 9))) for _ in range(3)]
    columns = [tuple(pair) for found in pairs for pair in found]
    assert differences_of(columns, seed=4) == [paired_difference(a, b, seed=4) for a, b in columns]
    assert differences_of([], seed=4) == []


@pytest.mark.parametrize("name", ["rewards", "entropies"])
def test_limits_of_many_rows_are_those_of_the_resamples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(13)
    steps = np.round(np.where(rng.random(3000) < 0.6, 0.0, rng.random(3000) - 0.7), 1)
    values = {"rewards": steps, "entropies": rng.gamma(1.0, 0.2, size=3000)}[name]
    error = values.std() / np.sqrt(len(values))
    drawn = np.array([bootstrap_interval(values, seed=seed) for seed in range(10)])
    monkeypatch.setattr("star.evaluation.intervals.MANY_ROWS", 3000)
    computed = np.array(bootstrap_interval(values, seed=0))
    assert np.abs(drawn - computed).max() < 0.25 * error  # what another seed changes
    assert np.abs(drawn.mean(0) - computed).max() < 0.06 * error  # a normal interval of these entropies is off by 0.13
    # A few rows that differ decide the mean. No expansion describes it.
    few = np.where(np.arange(3000) < 8, 1.5, 0.0)
    assert bootstrap_interval(few, seed=0) != pytest.approx(
        few.mean() + np.array([-1.96, 1.96]) * few.std() / 55, rel=0.1
    )


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")], [[1.0], [2.0]]])
def test_bootstrap_interval_refuses_bad_values(values: list) -> None:
    with pytest.raises(ValueError, match="scores"):
        bootstrap_interval(values, seed=0)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_bootstrap_interval_refuses_bad_levels(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], seed=0, level=level)


def test_p_value_is_that_of_all_sign_flips() -> None:
    a, b = np.array([0.9, 0.4, 0.8, 0.3, 1.0, 0.6, 0.7, 0.2]), np.array([0.7, 0.5, 0.3, 0.3, 0.4, 0.5, 0.6, 0.3])
    difference = a - b
    sums = [abs(np.dot(signs, difference)) for signs in product([-1, 1], repeat=len(a))]
    exact = np.mean([value >= abs(difference.sum()) - 1e-9 for value in sums])
    result = paired_difference(a, b, seed=5)
    assert result.mean == pytest.approx(difference.mean())
    assert result.low <= result.mean <= result.high
    assert result.p_value == pytest.approx(exact, abs=0.02)


def test_paired_difference_is_antisymmetric_and_sees_no_difference_in_equals() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(80), rng.random(80)
    forth, back = paired_difference(a, b, seed=1), paired_difference(b, a, seed=1)
    assert forth == pytest.approx((-back.mean, -back.high, -back.low, back.p_value))
    assert paired_difference(a, a, seed=1) == (0.0, 0.0, 0.0, 1.0)


def test_paired_difference_finds_a_small_steady_gain_that_unpaired_noise_would_hide() -> None:
    hard = np.random.default_rng(2).random(200)
    gain = paired_difference(hard + 0.02 + 0.01 * np.sin(np.arange(200)), hard, seed=0)
    assert 0 < gain.low < 0.02 < gain.high + 0.001
    assert gain.p_value < 0.001


def test_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(4)
    found = [paired_difference(rng.normal(size=20), rng.normal(size=20), seed=seed).p_value for seed in range(200)]
    assert np.mean(np.array(found) < 0.05) <= 0.09
    assert 0.4 < np.mean(found) < 0.6


def test_paired_difference_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([0.0, 1.0], [0.0, 1.0, 1.0], seed=0)


@pytest.mark.parametrize(("accuracy", "rows"), [(0.5, 100), (0.8, 200), (0.3, 300), (0.95, 200), (0.92, 500)])
def test_intervals_of_a_known_accuracy_hold_it_93_to_97_times_in_100(accuracy: float, rows: int) -> None:
    rng = np.random.default_rng(17)
    right = rng.random((4000, rows)) < accuracy
    inside = [low <= accuracy <= high for low, high in (mean_interval(run.astype(float), seed=0) for run in right)]
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize("rows", [20, 50, 200])
def test_intervals_of_partial_credit_hold_the_truth(rows: int) -> None:
    rng = np.random.default_rng(18)
    kind, partial = rng.random((4000, rows)), rng.random((4000, rows))
    rewards = np.where(kind < 0.7, 1.0, np.where(kind < 0.9, partial, -1.0))
    truth = 0.7 + 0.2 * 0.5 - 0.1
    limits = [mean_interval(run, seed=0, bounds=(-1.0, 1.0)) for run in rewards]
    assert 0.93 <= np.mean([low <= truth <= high for low, high in limits]) <= 0.97


def test_intervals_of_paired_models_hold_the_true_difference() -> None:
    rng = np.random.default_rng(19)
    inside = []
    for seed in range(300):
        kind = rng.random(200)
        a, b = (kind < 0.08).astype(float), ((kind >= 0.08) & (kind < 0.13)).astype(float)
        found = paired_difference(a, b, seed=seed)
        inside.append(found.low <= 0.03 <= found.high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_nothing_seen_is_not_nothing_possible() -> None:
    low, high = mean_interval([1.0] * 50, seed=0)
    assert 0.9 < low < 0.94 and high == 1.0
    assert mean_interval([0.0] * 50, seed=0) == pytest.approx((0.0, 1 - low))
    same = paired_difference([1.0] * 50, [1.0] * 50, seed=0)
    assert same.mean == 0 and same.low < 0 < same.high and same.p_value == 1.0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.sampled_from([None, (-1.0, 1.0)]))
def test_an_interval_holds_its_mean_and_stays_inside_the_values(values: list[float], bounds) -> None:
    low, high = mean_interval(values, seed=0, bounds=bounds)
    mean = float(np.mean(values))
    assert low <= mean + 1e-9 and mean - 1e-9 <= high
    assert -1 - 1e-9 <= low <= high <= 1 + 1e-9


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40))
def test_rows_that_vary_less_say_more_and_right_or_wrong_ones_are_wilsons(values: list[float]) -> None:
    low, high = mean_interval(values, seed=0, bounds=(-1.0, 1.0))
    right = [float(value > 0) for value in values]
    shares = mean_interval(right, seed=0)
    assert mean_interval([2 * value - 1 for value in right], seed=0, bounds=(-1.0, 1.0)) == pytest.approx(
        (2 * shares[0] - 1, 2 * shares[1] - 1)
    )
    mean = float(np.mean(values))
    closer = mean_interval([mean + (value - mean) / 2 for value in values], seed=0, bounds=(-1.0, 1.0))
    assert closer[1] - closer[0] <= high - low + 1e-9


def test_scores_out_of_their_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="outside of their bounds"):
        mean_interval([0.5, -0.1], seed=0, bounds=(0.0, 1.0))
