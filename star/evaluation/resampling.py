"""Draws the resamples behind intervals and p values: the bootstrap's means, and the sums of randomly flipped signs.

Columns of one length share their random numbers. Each column gets the same resamples as it would get alone, because the
draws depend on the seed and the number of rows only. So many comparisons on the same rows cost little more than one.

N rows, C columns, B resamples of one block. Memory is bounded: blocks are small enough for the processor's cache, which
also makes them fast.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SIGN_FLIPS = 10_000  # sign flips a permutation test draws, so the smallest p value is about 1e-4
# The next two decide how random numbers are cut into blocks. Another number of signs per block draws other signs.
_SIGNS_DRAWN = 2_000_000
_NUMBERS_IN_CACHE = 1 << 17
_PANEL_ROWS = 4096


def bootstrap_means(columns: Sequence[NDArray], *, seed: int, draws: int) -> list[tuple[NDArray, NDArray]]:
    """Resamples the rows with replacement, `draws` times.

    Args:
        columns: C columns of N finite values.

    Returns:
        For each column (means, standard deviations) of its resamples, `draws` of each.
    """
    count = len(columns[0])
    rng = np.random.default_rng([seed, 0])
    means, deviations = np.empty((len(columns), draws)), np.empty((len(columns), draws))
    size = max(1, _NUMBERS_IN_CACHE // 2 // count)
    buffer_BN = np.empty((min(size, draws), count))
    for start in range(0, draws, size):
        block = slice(start, min(start + size, draws))
        rows_BN = rng.integers(count, size=(block.stop - start, count))
        values_BN = buffer_BN[: len(rows_BN)]
        for index, column in enumerate(columns):
            # "clip" needs no check of the indices, all of which are valid.
            np.take(column, rows_BN, out=values_BN, mode="clip")
            means[index, block] = values_BN.mean(1)
            # As numpy's `std` computes it, to the last digit, without a copy.
            np.subtract(values_BN, means[index, block, None], out=values_BN)
            np.multiply(values_BN, values_BN, out=values_BN)
            deviations[index, block] = np.sqrt(values_BN.sum(1) / count)
    return list(zip(means, deviations, strict=True))


def sign_flip_p_values(columns: Sequence[NDArray], *, seed: int) -> list[float]:
    """Two-sided p value, for each of C columns of N differences, of the hypothesis that they are symmetric about 0.

    It is the share of `SIGN_FLIPS` random sign flips whose sum is at least as far from 0 as the observed one. The
    observed sum counts as one of the flips.
    """
    values_NC = np.stack(columns, axis=1)
    totals_C = values_NC.sum(0)
    # Equal sums may differ in their last digit.
    observed_C = np.abs(totals_C) - 1e-9 * np.abs(values_NC).sum(0)
    as_far_C = np.zeros(len(columns), dtype=int)
    for signs_BN in random_signs(len(values_NC), seed=seed):
        # A sign of 1 or -1 is 2 s - 1 with s of 1 or 0.
        as_far_C += (np.abs(2 * _sums(signs_BN, values_NC) - totals_C) >= observed_C).sum(0)
    return [(int(found) + 1) / (SIGN_FLIPS + 1) for found in as_far_C]


def random_signs(count: int, *, seed: int) -> Iterator[NDArray]:
    """Yields SIGN_FLIPS rows of `count` random bits, each 0 or 1, in blocks.

    They are the bits of `rng.integers(2, size=(B, count), dtype=np.int8)`, which takes the highest bit of each random
    byte, at a fifth of its time.
    """
    generator = np.random.PCG64([seed, 1])  # the bootstrap draws from [seed, 0]
    left = np.empty(0, dtype="<u4")
    size = max(1, _SIGNS_DRAWN // count)
    for start in range(0, SIGN_FLIPS, size):
        flips = min(size, SIGN_FLIPS - start)
        # A block starts with a whole number of 4 bytes. The generator makes 8 at once, so that 4 can be left.
        words = -(-flips * count // 4)
        drawn = generator.random_raw((words - len(left) + 1) // 2).astype("<u8", copy=False).view("<u4")
        stream = np.concatenate([left, drawn])
        left = stream[words:]
        yield (stream[:words].view(np.uint8)[: flips * count] >> 7).reshape(flips, count)


def _sums(signs_BN: NDArray, values_NC: NDArray) -> NDArray:
    """signs_BN @ values_NC, in panels of float64 that fit into the cache."""
    sums_BC = np.zeros((len(signs_BN), values_NC.shape[1]))
    flips = max(1, _NUMBERS_IN_CACHE // min(_PANEL_ROWS, len(values_NC)))
    for first in range(0, len(values_NC), _PANEL_ROWS):
        panel = slice(first, first + _PANEL_ROWS)
        for start in range(0, len(signs_BN), flips):
            block = slice(start, start + flips)
            sums_BC[block] += signs_BN[block, panel].astype(float) @ values_NC[panel]
    return sums_BC
