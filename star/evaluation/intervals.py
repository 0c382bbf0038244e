"""Computes the statistics of an evaluation: pass@k, the interval of a mean, and the difference of two models.

All are deterministic: the same values and the same seed give the same numbers. Memory does not grow with the number
of rows, because resampling runs in blocks.
"""

from collections.abc import Mapping, Sequence
from math import comb, sqrt
from statistics import NormalDist, fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from star.evaluation.suite_scores import Score

_BLOCK_NUMBERS = 2_000_000  # numbers held at once while resampling: 16 MB
_SIGN_FLIPS = 10_000  # sign flips a permutation test draws, so the smallest p value is about 1e-4


class Difference(NamedTuple):
    """Mean of a - b over paired rows, its 95 % interval, and the two-sided p value of "no difference"."""

    mean: float
    low: float
    high: float
    p_value: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate, from `n` samples of which `c` are right, of the chance that at least one of `k` is right.

    1 - C(n-c, k) / C(n, k), Chen et al. 2021 (arXiv 2107.03374, eq. 1). The binomials are whole numbers and Python
    rounds their quotient once, so the value is exact to the last digit for any n.

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n, got n={n}, c={c}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n, got n={n}, k={k}: k draws cannot be estimated from fewer samples")
    draws = comb(n, k)
    return (draws - comb(n - c, k)) / draws


def mean_interval(
    values: Sequence[float] | NDArray,
    *,
    seed: int,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Confidence interval (low, high) of the mean of `values`, one value per row.

    Values with known `bounds` (the lowest and the highest value that a row can have) get Wilson's score interval
    (1927) with an effective number of rows: the number of right-or-wrong rows that would carry as much information.
    For shares (all values 0 or 1, with bounds or without) this is Wilson's interval itself, because a bootstrap of
    shares is too short near 0 and 1, and empty at them. Values without bounds get the studentized bootstrap.
    benchmarks/intervals.py measures the coverage of each.

    Raises:
        ValueError: there are no values, some are not finite or out of bounds, or the level lies outside (0, 1).
    """
    rows = _rows(values)
    # Shares have known bounds, also where the caller does not give them.
    if np.isin(rows, (0.0, 1.0)).all():
        bounds = bounds or (0.0, 1.0)
    if bounds is None:
        return bootstrap_interval(rows, seed=seed, level=level)
    lowest, highest = bounds
    if rows.min() < lowest or rows.max() > highest:
        raise ValueError(f"scores lie outside of their bounds: {rows.min()} to {rows.max()}, not in {bounds}")
    # Mapped to [0, 1] and back, so that one interval serves shares, rewards and all other bounded scores.
    low, high = _bounded((rows - lowest) / (highest - lowest), level)
    return lowest + (highest - lowest) * low, lowest + (highest - lowest) * high


def mean_score(
    values: Sequence[float] | NDArray, *, seed: int, bounds: tuple[float, float] | None = (0.0, 1.0)
) -> Score:
    """The mean of `values`, one value per row, with the 95% interval of `mean_interval`."""
    low, high = mean_interval(values, seed=seed, bounds=bounds)
    return {"mean": fmean(values), "low": low, "high": high}


def weighted_score(weights: Mapping[str, float], categories: Mapping[str, Score]) -> Score:
    """A weighted sum of independent shares with its 95% interval (MOVER, Zou & Donner 2008).

    The distances of the shares to their own limits add up in squares.

    Args:
        weights: weight of each category's share, by its name.
        categories: the share of each category with its interval, by its name.
    """
    # Categories share no rows, so their errors are independent.
    mean = sum(weight * categories[name]["mean"] for name, weight in weights.items())
    below = sqrt(
        sum((weight * (categories[name]["mean"] - categories[name]["low"])) ** 2 for name, weight in weights.items())
    )
    above = sqrt(
        sum((weight * (categories[name]["mean"] - categories[name]["high"])) ** 2 for name, weight in weights.items())
    )
    return {"mean": mean, "low": max(0.0, mean - below), "high": min(1.0, mean + above)}


def bootstrap_interval(
    values: Sequence[float] | NDArray, *, seed: int, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Studentized bootstrap interval (low, high) of the mean of `values`, one value per row (Efron 1981, Hall 1988).

    The rows are resampled with replacement `draws` times. The distance of a resample's mean to the mean is measured
    in the resample's own standard errors, which follows skewed values where the percentile bootstrap is too short.
    The interval stays within the values seen. Where many resamples hold one value only, there is no standard error to
    divide by, and the percentile interval is returned.

    Raises:
        ValueError: as `mean_interval` does.
    """
    _z(level)  # refuses a level outside (0, 1)
    rows = _rows(values)
    mean = float(rows.mean())
    rng = np.random.default_rng([seed, 0])
    samples = (rows[rng.integers(len(rows), size=(n, len(rows)))] for n in _blocks(draws, rows))
    means, errors = (np.concatenate(column) for column in zip(*((s.mean(1), s.std(1)) for s in samples), strict=True))
    tail = (1 - level) / 2
    # A resample of one value only has no standard error. With more of them, they alone would decide the quantiles.
    if (errors <= 1e-12).mean() > tail / 2:
        low, high = np.quantile(means, [tail, 1 - tail])
        return float(low), float(high)
    # The ends change places below: where resamples lie far above the mean, the mean may lie as far above the truth.
    distances = (means - mean) / np.maximum(errors, 1e-12)
    far_low, far_high = np.quantile(distances, [tail, 1 - tail])
    error = float(rows.std())
    # Both ends can come out on one side of the mean, which the interval has to hold.
    low, high = min(mean - far_high * error, mean), max(mean - far_low * error, mean)
    return max(float(low), float(rows.min())), min(float(high), float(rows.max()))


def paired_difference(a: Sequence[float] | NDArray, b: Sequence[float] | NDArray, *, seed: int) -> Difference:
    """Compares two models on the same rows: `a[i]` and `b[i]` are their scores on row i.

    The interval of mean(a - b) is that of Agresti and Min (2005) where all scores are right or wrong, else the
    studentized bootstrap of the rows' differences.

    The p value is that of the sign-flip permutation test: if the models are equally good, each row's difference could
    as well have the other sign. It is the share of 10 000 random sign flips whose mean is at least as far from 0 as
    the observed one. The observed mean counts as one of the flips (Phipson & Smyth 2010), so the p value is never 0.

    Raises:
        ValueError: the lengths differ, or as `mean_interval` does.
    """
    first, second = _rows(a), _rows(b)
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs one score per row from both: got {len(first)} and {len(second)}")
    differences = first - second
    # A bootstrap of such differences is empty where no row differs, and too short where few do.
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        low, high = _agresti_min(int((differences > 0).sum()), int((differences < 0).sum()), len(differences))
    else:
        # Equal differences leave nothing to resample.
        low, high = bootstrap_interval(differences, seed=seed) if np.ptp(differences) else (differences[0],) * 2
    return Difference(float(differences.mean()), float(low), float(high), _sign_flip_p_value(differences, seed=seed))


def _bounded(shares: NDArray, level: float) -> tuple[float, float]:
    """Wilson's interval of the mean of values in [0, 1], with an effective number of rows.

    Values of a given mean vary most when each is 0 or 1: their variance is mean * (1 - mean). A row that varies less
    carries more information, as much as `possible / variance` rows of 0 or 1 (a design effect, Kish 1965, with Wilson
    as in Dean & Pagano 2015). Both variances count one more row at 0 and one at 1 (Laplace), because a few equal rows
    do not prove that there are no others.
    """
    seen = np.concatenate([shares, (0.0, 1.0)])
    possible = seen.mean() * (1 - seen.mean())
    return _wilson(float(shares.mean()), len(shares) * possible / seen.var(), level)


def _wilson(share: float, count: float, level: float) -> tuple[float, float]:
    z2 = _z(level) ** 2
    centre, spread = share + z2 / (2 * count), sqrt(z2 * (share * (1 - share) + z2 / (4 * count)) / count)
    # At 0 and 1 the limit is exact; rounding must not push it inside.
    low = 0.0 if share == 0 else (centre - spread) / (1 + z2 / count)
    high = 1.0 if share == 1 else (centre + spread) / (1 + z2 / count)
    return max(0.0, low), min(1.0, high)


def _agresti_min(gained: int, lost: int, count: int) -> tuple[float, float]:
    """Wald's interval of (gained - lost) / count, with half a row added to each of the four cells of the paired table.

    Args:
        gained: rows that only the first model answered right.
        lost: rows that only the second model answered right.
        count: all rows.
    """
    more, all_rows = gained + lost + 1, count + 2
    centre = (gained - lost) / all_rows
    spread = _z(0.95) * sqrt(more - (gained - lost) ** 2 / all_rows) / all_rows
    observed = (gained - lost) / count
    # The added cells move the centre towards 0. The interval is widened so far that it holds the observed difference.
    return max(-1.0, min(centre - spread, observed)), min(1.0, max(centre + spread, observed))


def _z(level: float) -> float:
    """Standard normal quantile that leaves half of 1 - level on each side.

    Raises:
        ValueError: the level lies outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _sign_flip_p_value(differences: NDArray, *, seed: int) -> float:
    """Two-sided p value of the hypothesis that the differences are symmetric about 0."""
    rng = np.random.default_rng([seed, 1])  # the bootstrap draws from [seed, 0]
    observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()  # equal sums may differ in their last digit
    signs = (
        rng.integers(2, size=(n, len(differences)), dtype=np.int8) * 2 - 1 for n in _blocks(_SIGN_FLIPS, differences)
    )
    as_far = sum(int((np.abs(block @ differences) >= observed).sum()) for block in signs)
    return (as_far + 1) / (_SIGN_FLIPS + 1)


def _blocks(draws: int, rows: NDArray) -> list[int]:
    """Sizes of the blocks that `draws` resamples of `rows` are computed in, so that one block fits in memory."""
    size = max(1, _BLOCK_NUMBERS // len(rows))
    return [min(size, draws - start) for start in range(0, draws, size)]


def _rows(values: Sequence[float] | NDArray) -> NDArray:
    """The values as one finite float per row. Raises ValueError where they are not."""
    rows = np.asarray(values, dtype=float)
    if rows.ndim != 1 or not rows.size:
        raise ValueError(f"statistics need a flat, non-empty list of scores, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{int((~np.isfinite(rows)).sum())} of {rows.size} scores are not finite numbers")
    return rows
