"""The three statistics every evaluation reports: pass@k, the interval of a mean, and the difference of two models.

All are deterministic: the same values and the same seed give the same numbers. Memory stays flat in the number of rows,
because resampling runs in blocks.
"""

from collections.abc import Sequence
from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2_000_000  # numbers held at once while resampling: 16 MB
_FLIPS = 10_000  # sign flips a permutation test draws, so the smallest p value is about 1e-4


class Difference(NamedTuple):
    """Mean of a - b over paired rows, its 95 % interval, and the two-sided p value of "no difference"."""

    mean: float
    low: float
    high: float
    p_value: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of `k` samples is right, estimated without bias from `n` samples of which `c` are right.

    1 - C(n-c, k) / C(n, k), Chen et al. 2021 (arXiv 2107.03374, eq. 1). The binomials are whole numbers and Python
    rounds their quotient once, so the value is exact to the last digit for any n.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"pass@k needs 0 <= c <= n, got n={n}, c={c}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n, got n={n}, k={k}: k draws cannot be judged from fewer samples")
    draws = comb(n, k)
    return (draws - comb(n - c, k)) / draws


def mean_interval(
    values: Sequence[float] | NDArray,
    *,
    seed: int,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval (low, high) of the mean of `values`, one value a row, that covers the truth as often as it says.

    Values inside known `bounds` (the lowest and the highest a row can have) get Wilson's score interval (1927) with an effective number
    of rows: how many rows that are all right or all wrong would say as much. For shares (all values 0 or 1, bounds or not) that is
    Wilson's own: a bootstrap of them is too short near 0 and 1, and empty there. Values without bounds get the studentized bootstrap.
    benchmarks/intervals.py measures the coverage of each.
    Raises ValueError for no values, values that are not finite or out of bounds, or a level outside (0, 1).
    """
    rows = _rows(values)
    if np.isin(rows, (0.0, 1.0)).all():
        bounds = bounds or (0.0, 1.0)
    if bounds is None:
        return bootstrap_interval(rows, seed=seed, level=level)
    lowest, highest = bounds
    if rows.min() < lowest or rows.max() > highest:
        raise ValueError(f"scores lie outside of their bounds: {rows.min()} to {rows.max()}, not in {bounds}")
    low, high = _bounded((rows - lowest) / (highest - lowest), level)
    return lowest + (highest - lowest) * low, lowest + (highest - lowest) * high


def bootstrap_interval(
    values: Sequence[float] | NDArray, *, seed: int, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Studentized bootstrap interval (low, high) of the mean of `values`, one value a row (Efron 1981, Hall 1988).

    The rows are resampled with replacement `draws` times; a resample's distance to the mean counts in its own standard errors, which
    follows skewed values where the percentile bootstrap is too short. The interval stays within the values seen. Where many resamples
    hold one value only, there is nothing to studentize, and the percentile interval stands in.
    Raises ValueError as `mean_interval` does.
    """
    _z(level)
    rows = _rows(values)
    mean = float(rows.mean())
    rng = np.random.default_rng([seed, 0])
    samples = (rows[rng.integers(len(rows), size=(n, len(rows)))] for n in _blocks(draws, rows))
    means, errors = (np.concatenate(column) for column in zip(*((s.mean(1), s.std(1)) for s in samples), strict=True))
    tail = (1 - level) / 2
    if (errors <= 1e-12).mean() > tail / 2:
        low, high = np.quantile(means, [tail, 1 - tail])
        return float(low), float(high)
    distances = (means - mean) / np.maximum(errors, 1e-12)
    far_low, far_high = np.quantile(distances, [tail, 1 - tail])
    error = float(rows.std())
    low, high = min(mean - far_high * error, mean), max(mean - far_low * error, mean)
    return max(float(low), float(rows.min())), min(float(high), float(rows.max()))


def paired_difference(a: Sequence[float] | NDArray, b: Sequence[float] | NDArray, *, seed: int) -> Difference:
    """Compare two models on the same rows: `a[i]` and `b[i]` are their scores on row i.

    The interval of mean(a - b) is Agresti and Min's (2005) where both score right or wrong, else the studentized bootstrap of the rows'
    differences. The p value is of the sign-flip permutation test: if the models are alike, each row's difference is as likely to be its
    negative; the share of 10 000 random flips at least as far from 0, the observed one counted among them (Phipson & Smyth 2010), so it
    is never 0.
    Raises ValueError when the lengths differ, and for whatever `mean_interval` refuses.
    """
    first, second = _rows(a), _rows(b)
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs one score a row from both: got {len(first)} and {len(second)}")
    differences = first - second
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        low, high = _agresti_min(int((differences > 0).sum()), int((differences < 0).sum()), len(differences))
    else:
        low, high = bootstrap_interval(differences, seed=seed) if np.ptp(differences) else (differences[0],) * 2
    return Difference(float(differences.mean()), float(low), float(high), _sign_flip_p_value(differences, seed=seed))


def _bounded(shares: NDArray, level: float) -> tuple[float, float]:
    """Wilson's interval of the mean of values in [0, 1], whose rows count by what their variance says.

    The largest variance that values of that mean can have is that of right-or-wrong ones, mean * (1 - mean); rows that vary less say
    more, each as much as `possible / variance` of those (a design effect, Kish 1965, with Wilson as in Dean & Pagano 2015). Both
    variances count one row more at 0 and one at 1 (Laplace), as a few equal rows do not prove that there are no others.
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
    """Wald's interval of (gained - lost) / count after half a row is added to each of the four cells of the paired table."""
    more, all_rows = gained + lost + 1, count + 2
    centre = (gained - lost) / all_rows
    spread = _z(0.95) * sqrt(more - (gained - lost) ** 2 / all_rows) / all_rows
    observed = (gained - lost) / count
    return max(-1.0, min(centre - spread, observed)), min(1.0, max(centre + spread, observed))


def _z(level: float) -> float:
    """Standard normal quantile that leaves half of 1 - level on each side."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def _sign_flip_p_value(differences: NDArray, *, seed: int) -> float:
    """Two-sided p value of the hypothesis that the differences are symmetric about 0."""
    rng = np.random.default_rng([seed, 1])
    observed = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()  # equal sums may differ in their last digit
    signs = (rng.integers(2, size=(n, len(differences)), dtype=np.int8) * 2 - 1 for n in _blocks(_FLIPS, differences))
    as_far = sum(int((np.abs(block @ differences) >= observed).sum()) for block in signs)
    return (as_far + 1) / (_FLIPS + 1)


def _blocks(draws: int, rows: NDArray) -> list[int]:
    """`draws` cut into blocks whose resamples of `rows` fit in memory."""
    size = max(1, _BLOCK // len(rows))
    return [min(size, draws - start) for start in range(0, draws, size)]


def _rows(values: Sequence[float] | NDArray) -> NDArray:
    """One finite float a row."""
    rows = np.asarray(values, dtype=float)
    if rows.ndim != 1 or not rows.size:
        raise ValueError(f"statistics need a flat, non-empty list of scores, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{int((~np.isfinite(rows)).sum())} of {rows.size} scores are not finite numbers")
    return rows
