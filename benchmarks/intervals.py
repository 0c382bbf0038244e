"""How often the 95% intervals hold the truth: simulated models of known accuracy, rewards, pass@k, entropies and paired models.

python benchmarks/intervals.py            (about four minutes on one core)

Every row of a table is one kind of score, every column a number of evaluated rows; a cell is the share of simulated evaluations whose
interval held the true mean, and in brackets that of the percentile bootstrap. Its own sampling error is about 0.5 points.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.random import Generator

from star.evaluation.statistics import mean_interval, paired_difference, pass_at_k

ROWS, EVALUATIONS = (50, 200, 1000), 2000
Draw = Callable[[Generator, int], np.ndarray]


def right(accuracy: float, rng: Generator, count: int) -> np.ndarray:
    return (rng.random(count) < accuracy).astype(float)


def reward(rng: Generator, count: int) -> np.ndarray:
    """Mostly 1, some partial credit, some format errors."""
    kind = rng.random(count)
    return np.where(kind < 0.7, 1.0, np.where(kind < 0.9, rng.random(count), -1.0))


def pass_at_4(rng: Generator, count: int) -> np.ndarray:
    table = np.array([pass_at_k(8, right, 4) for right in range(9)])
    return table[rng.binomial(8, rng.beta(1.0, 0.7, size=count))]


def entropy(rng: Generator, count: int) -> np.ndarray:
    return rng.gamma(1.0, 0.2, size=count)


def percentile(values: np.ndarray, rng: Generator) -> tuple[float, float]:
    means = values[rng.integers(len(values), size=(400, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return low, high


def coverage(draw: Draw, truth: float, count: int) -> tuple[float, float]:
    rng = np.random.default_rng([count, 7])
    held = np.zeros(2)
    for seed in range(EVALUATIONS):
        values = draw(rng, count)
        for index, (low, high) in enumerate((mean_interval(values, seed=seed), percentile(values, rng))):
            held[index] += low - 1e-12 <= truth <= high + 1e-12
    return tuple(held / EVALUATIONS)


def paired_coverage(gain: float, loss: float, count: int) -> tuple[float, float]:
    """Two models that differ on few rows: one gains `gain` of them and loses `loss`."""
    rng = np.random.default_rng([count, 8])
    held = np.zeros(2)
    for seed in range(EVALUATIONS // 4):
        kind = rng.random(count)
        a, b = np.where(kind < gain, 1.0, 0.0), np.where((kind >= gain) & (kind < gain + loss), 1.0, 0.0)
        difference = paired_difference(a, b, seed=seed)
        for index, (low, high) in enumerate(((difference.low, difference.high), percentile(a - b, rng))):
            held[index] += low - 1e-12 <= gain - loss <= high + 1e-12
    return tuple(held / (EVALUATIONS // 4))


def main() -> None:
    draws: dict[str, Draw] = {f"accuracy {p}": partial(right, p) for p in (0.05, 0.2, 0.5, 0.8, 0.95)}
    draws |= {"mean reward": reward, "pass@4": pass_at_4, "entropy": entropy}
    print("| score | " + " | ".join(f"{count} rows" for count in ROWS) + " |\n|---|" + "---:|" * len(ROWS))
    for name, draw in draws.items():
        truth = (
            float(name.split()[1]) if name.startswith("accuracy") else draw(np.random.default_rng(1), 4_000_000).mean()
        )
        shares = [coverage(draw, truth, count) for count in ROWS]
        print(f"| {name} | " + " | ".join(f"{ours:.3f} ({plain:.3f})" for ours, plain in shares) + " |", flush=True)
    for gain, loss in ((0.05, 0.03), (0.2, 0.1)):
        shares = [paired_coverage(gain, loss, count) for count in ROWS]
        cells = " | ".join(f"{ours:.3f} ({plain:.3f})" for ours, plain in shares)
        print(f"| difference, +{gain} -{loss} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
