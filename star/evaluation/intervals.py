"""Computes the statistics of an evaluation: pass@k, the interval of a mean, and the difference of two models.

All are deterministic: the same values and the same seed give the same numbers. resampling.py draws the resamples, in
blocks, so that they take the same memory whatever the number of rows.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import comb, sqrt
from statistics import NormalDist, fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from star.evaluation.resampling import bootstrap_means, sign_flip_p_values
from star.evaluation.suite_scores import Score

DRAWS = 2000  # resamples of a bootstrap
MANY_ROWS = 20_000  # from here on the bootstrap's limits are computed, not drawn
LARGEST_REST = 0.01  # standard errors that a computed limit may be off


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
    values: Sequence[float] | NDArray, *, seed: int, level: float = 0.95, draws: int = DRAWS
) -> tuple[float, float]:
    """Studentized bootstrap interval (low, high) of the mean of `values`, one value per row (Efron 1981, Hall 1988).

    The rows are resampled with replacement `draws` times. The distance of a resample's mean to the mean is measured
    in the resample's own standard errors, which follows skewed values where the percentile bootstrap is too short.
    The interval stays within the values seen. Where many resamples hold one value only, there is no standard error to
    divide by, and the percentile interval is returned.

    From `MANY_ROWS` rows on, the limits are those that infinitely many resamples would give, to within `LARGEST_REST`
    standard errors of the mean (see `_expanded_limits`). 2000 resamples scatter around them by 0.06.

    Raises:
        ValueError: as `mean_interval` does.
    """
    [interval] = _bootstrap_intervals([_rows(values)], seed=seed, level=level, draws=draws)
    return interval


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
    [found] = differences_of([(a, b)], seed=seed)
    return found


def differences_of(
    pairs: Sequence[tuple[Sequence[float] | NDArray, Sequence[float] | NDArray]], *, seed: int
) -> list[Difference]:
    """`paired_difference` of each pair (a, b), in a fraction of the time: pairs of one length share their resamples."""
    scores = [(_rows(a), _rows(b)) for a, b in pairs]
    for a, b in scores:
        if len(a) != len(b):
            raise ValueError(f"a paired comparison needs one score per row from both: got {len(a)} and {len(b)}")
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, (a, _) in enumerate(scores):
        by_length[len(a)].append(index)
    found: dict[int, Difference] = {}
    for indices in by_length.values():
        found |= zip(indices, _differences_of_one_length([scores[i] for i in indices], seed=seed), strict=True)
    return [found[index] for index in range(len(pairs))]


def _differences_of_one_length(scores: list[tuple[NDArray, NDArray]], *, seed: int) -> list[Difference]:
    columns = [a - b for a, b in scores]
    limits: dict[int, tuple[float, float]] = {}
    for index, ((a, b), column) in enumerate(zip(scores, columns, strict=True)):
        # A bootstrap of such differences is empty where no row differs, and too short where few do.
        if np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all():
            limits[index] = _agresti_min(int((column > 0).sum()), int((column < 0).sum()), len(column))
        elif not np.ptp(column):  # Equal differences leave nothing to resample.
            limits[index] = (float(column[0]), float(column[0]))
    others = [index for index in range(len(columns)) if index not in limits]
    if others:
        drawn = _bootstrap_intervals([columns[index] for index in others], seed=seed, level=0.95, draws=DRAWS)
        limits |= zip(others, drawn, strict=True)
    p_values = sign_flip_p_values(columns, seed=seed)
    return [
        Difference(float(column.mean()), *limits[index], p_value)
        for index, (column, p_value) in enumerate(zip(columns, p_values, strict=True))
    ]


def _bootstrap_intervals(columns: list[NDArray], *, seed: int, level: float, draws: int) -> list[tuple[float, float]]:
    """`bootstrap_interval` of each column; all have one length, and those whose limits are drawn share the resamples."""
    found = {index: _expanded_limits(column, level) for index, column in enumerate(columns)}
    drawn = [index for index, limits in found.items() if limits is None]
    if drawn:
        resamples = bootstrap_means([columns[index] for index in drawn], seed=seed, draws=draws)
        for index, (means, deviations) in zip(drawn, resamples, strict=True):
            found[index] = _drawn_limits(columns[index], means, deviations, level)
    return [limits for index in range(len(columns)) if (limits := found[index]) is not None]


def _drawn_limits(rows: NDArray, means: NDArray, deviations: NDArray, level: float) -> tuple[float, float]:
    """The limits from the means and standard deviations of the resamples of `rows`."""
    mean, tail = float(rows.mean()), (1 - level) / 2
    # A resample of one value only has no standard error. With more of them, they alone would decide the quantiles.
    if (deviations <= 1e-12).mean() > tail / 2:
        low, high = np.quantile(means, [tail, 1 - tail])
        return float(low), float(high)
    # The ends change places below: where resamples lie far above the mean, the mean may lie as far above the truth.
    distances = (means - mean) / np.maximum(deviations, 1e-12)
    far_low, far_high = np.quantile(distances, [tail, 1 - tail])
    error = float(rows.std())
    # Both ends can come out on one side of the mean, which the interval has to hold.
    low, high = min(mean - far_high * error, mean), max(mean - far_low * error, mean)
    return max(float(low), float(rows.min())), min(float(high), float(rows.max()))


def _expanded_limits(rows: NDArray, level: float) -> tuple[float, float] | None:
    """The limits of the studentized bootstrap by its Edgeworth expansion; None where only resamples can tell.

    The distances of `bootstrap_interval` have the quantiles z - skewness (2 z^2 + 1) / (6 sqrt(n)), up to a rest of
    the order 1 / n (Hall 1992, The Bootstrap and Edgeworth Expansion, section 2.6). The rest's next term is known too.
    Where it exceeds LARGEST_REST, as where few of the rows differ from the others, or where the rows are fewer than
    MANY_ROWS, the resamples are drawn.
    """
    z, count = _z(level), len(rows)
    error = float(rows.std())
    if count < MANY_ROWS or not error:
        return None
    mean = float(rows.mean())
    scaled = (rows - mean) / error
    squared = scaled * scaled
    skewness, kurtosis = float((squared * scaled).mean()), float((squared * squared).mean()) - 3
    rest = (
        z * abs(kurtosis) * abs(z**2 - 3) / 12 + z * skewness**2 * abs(z**4 + 2 * z**2 - 3) / 18 + z * (z**2 + 3) / 4
    ) / count
    if rest > LARGEST_REST:
        return None
    shift = skewness * (2 * z**2 + 1) / (6 * sqrt(count))
    step = error / sqrt(count)
    return mean - (z - shift) * step, mean + (z + shift) * step


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


def _rows(values: Sequence[float] | NDArray) -> NDArray:
    """The values as one finite float per row. Raises ValueError where they are not."""
    rows = np.asarray(values, dtype=float)
    if rows.ndim != 1 or not rows.size:
        raise ValueError(f"statistics need a flat, non-empty list of scores, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{int((~np.isfinite(rows)).sum())} of {rows.size} scores are not finite numbers")
    return rows
