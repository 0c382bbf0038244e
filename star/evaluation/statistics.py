"""The three statistics every evaluation reports: pass@k, the interval of a mean, and the difference of two models.

All are deterministic: the same values and the same seed give the same numbers. Memory stays flat in the number of rows,
because resampling runs in blocks.
"""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2_000_000  # numbers held at once while resampling: 16 MB
_FLIPS = 10_000  # sign flips a permutation test draws, so the smallest p value is about 1e-4


class Difference(NamedTuple):
    """Mean of a - b over paired rows, its 95 % bootstrap interval, and the two-sided p value of "no difference"."""

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


def bootstrap_interval(
    values: Sequence[float] | NDArray, *, seed: int, level: float = 0.95, draws: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of `values`, one value a row (Efron 1979).

    The rows are resampled with replacement `draws` times. A single row gives an interval of width 0.
    Raises ValueError for no values, values that are not finite, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    rows = _rows(values)
    rng = np.random.default_rng([seed, 0])
    means = np.concatenate([rows[rng.integers(len(rows), size=(n, len(rows)))].mean(1) for n in _blocks(draws, rows)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float] | NDArray, *, seed: int) -> tuple[float, float]:
    return bootstrap_interval(values, seed=seed)


def paired_difference(a: Sequence[float] | NDArray, b: Sequence[float] | NDArray, *, seed: int) -> Difference:
    """Compare two models on the same rows: `a[i]` and `b[i]` are their scores on row i.

    The interval is the paired bootstrap of mean(a - b). The p value is of the sign-flip permutation test: if the models
    are alike, each row's difference is as likely to be its negative; the share of 10 000 random flips at least as far
    from 0, the observed one counted among them (Phipson & Smyth 2010), so it is never 0.
    Raises ValueError when the lengths differ, and for whatever `bootstrap_interval` refuses.
    """
    first, second = _rows(a), _rows(b)
    if len(first) != len(second):
        raise ValueError(f"a paired comparison needs one score a row from both: got {len(first)} and {len(second)}")
    differences = first - second
    low, high = bootstrap_interval(differences, seed=seed)
    return Difference(float(differences.mean()), low, high, _sign_flip_p_value(differences, seed=seed))


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
