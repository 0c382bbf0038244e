"""Computes means over seeds, differences of two cells by seed, and their 95% intervals (Student's t).

The intervals say how far another set of seeds may fall from this one. All cells are evaluated on the same rows, and a difference is paired
by seed. Pairing removes what a row does to both cells alike, such as being hard. It does not remove what a row does to one of them: other
rows can still give another difference, and no interval here says how far.
"""

from collections.abc import Mapping
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL_QUANTILE = 1.960  # that of infinitely many


class Estimate(NamedTuple):
    """A mean over seeds; half the width of its 95% interval, None with one seed; and the number of seeds."""

    mean: float
    half: float | None
    seeds: int

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below 0, else 0."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1


def estimate(values: list[float], *, resolution: float = 0.0) -> Estimate:
    """The mean of one value per seed.

    Args:
        resolution: the step in which a value can change, such as 1/300 for a share of 300 rows. Seeds that agree more closely than that do
            so by chance, so the standard deviation counts as at least this step.
    """
    if len(values) < 2:
        return Estimate(fmean(values), None, len(values))
    freedom = len(values) - 1
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else NORMAL_QUANTILE
    spread = max(stdev(values), resolution)
    return Estimate(fmean(values), quantile * spread / sqrt(len(values)), len(values))


def difference(left: Mapping[int, float], right: Mapping[int, float], *, resolution: float = 0.0) -> Estimate | None:
    """The mean of left - right over the seeds that both have, paired by seed; None if there are none."""
    seeds = sorted(left.keys() & right.keys())
    return estimate([left[seed] - right[seed] for seed in seeds], resolution=resolution) if seeds else None
