"""Measures how often the 95% intervals contain the truth, on models whose accuracy, reward, pass@k or entropy is known.

    python benchmarks/intervals.py --exact     # shares: every possible outcome is counted, half a minute
    python benchmarks/intervals.py             # both tables, about a minute on one core
    python benchmarks/intervals.py --cost 1000 10000 100000   # time, memory and files of a report about three models

Shares need no simulation: of n rows a model gets x right with a binomial probability, and an interval contains the
truth or does not. The first table is over the accuracies 2%, 2.1%, ... 98%. A cell says for how many of them the
coverage is between 93 and 97%, and the mean and the worst coverage. The line `any at all` is an upper bound for every
interval: right answers are whole numbers, so for some accuracies no range of outcomes has a probability between 93
and 97%. The last line is the same for paired differences, over pairs of models.

The second table is simulated. A row is a kind of score, a column a number of evaluated rows. A cell is the share of
evaluations whose interval contains the true mean, and in brackets that of the percentile bootstrap. Its sampling
error is about 0.5 points.

The table of `--cost` has one line per number of held-out rows: scoring, comparing and reporting three models on them,
each size in a process of its own. The answers are made up, because how they were generated does not change the cost.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from math import log
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy import stats

from star.evaluation.intervals import mean_interval, paired_difference, pass_at_k

ROWS, EVALUATIONS = (20, 50, 200), 2000
GAINS = np.arange(0.02, 0.49, 0.02)
ACCURACIES = np.linspace(0.02, 0.98, 961)
Draw = Callable[[Generator, int], np.ndarray]
Bounds = tuple[float, float] | None
Limits = tuple[np.ndarray, np.ndarray]


def ours(count: int) -> Limits:
    """The limits of `mean_interval` for 0, 1, ... count right answers."""
    limits = [mean_interval(np.arange(count) < right, seed=0) for right in range(count + 1)]
    return np.array([low for low, _ in limits]), np.array([high for _, high in limits])


def agresti_coull(count: int) -> Limits:
    z2 = stats.norm.ppf(0.975) ** 2
    share = (np.arange(count + 1) + z2 / 2) / (count + z2)
    spread = np.sqrt(z2 * share * (1 - share) / (count + z2))
    return share - spread, share + spread


def jeffreys(count: int) -> Limits:
    right = np.arange(count + 1)
    low = stats.beta.ppf(0.025, right + 0.5, count - right + 0.5)
    high = stats.beta.ppf(0.975, right + 0.5, count - right + 0.5)
    return np.where(right == 0, 0.0, low), np.where(right == count, 1.0, high)


def clopper_pearson(count: int) -> Limits:
    right = np.arange(count + 1)
    low = stats.beta.ppf(0.025, np.maximum(right, 1), count - right + 1)
    high = stats.beta.ppf(0.975, right + 1, np.maximum(count - right, 1))
    return np.where(right == 0, 0.0, low), np.where(right == count, 1.0, high)


def exact_coverage(limits: Limits) -> np.ndarray:
    """Returns the coverage for each of ACCURACIES: the probability of an outcome whose limits contain it."""
    low, high = limits
    held = (low <= ACCURACIES[:, None] + 1e-12) & (ACCURACIES[:, None] <= high + 1e-12)
    return (outcomes(len(low) - 1) * held).sum(1)


def outcomes(count: int) -> np.ndarray:
    return stats.binom.pmf(np.arange(count + 1), count, ACCURACIES[:, None])


def reachable_share(count: int) -> float:
    """Returns the share of ACCURACIES for which some range of outcomes has a probability between 93 and 97%."""
    below = np.concatenate([np.zeros((len(ACCURACIES), 1)), outcomes(count).cumsum(1)], axis=1)
    ranges = below[:, None, :] - below[:, :, None]
    return float(((ranges >= 0.93) & (ranges <= 0.97)).any((1, 2)).mean())


def exact_table() -> Iterator[str]:
    yield "| interval of a share | " + " | ".join(f"{count} rows" for count in ROWS) + " |"
    yield "|---|" + "---:|" * len(ROWS)
    methods = {
        "ours: Wilson": ours,
        "Agresti-Coull": agresti_coull,
        "Jeffreys": jeffreys,
        "Clopper-Pearson": clopper_pearson,
    }
    for name, method in methods.items():
        cells = [_coverage_cell(exact_coverage(method(count))) for count in ROWS]
        yield f"| {name} | {' | '.join(cells)} |"
    yield "| any at all | " + " | ".join(f"{reachable_share(count):.1%}" for count in ROWS) + " |"
    yield f"| difference of two models: Agresti-Min | {' | '.join(exact_paired(count) for count in ROWS[:2])} | |"


def _coverage_cell(coverage: np.ndarray) -> str:
    inside = ((coverage >= 0.93) & (coverage <= 0.97)).mean()
    return f"{inside:.1%} (mean {coverage.mean():.1%}, worst {coverage.min():.1%})"


def exact_paired(count: int) -> str:
    """The coverage of `paired_difference` for two models, each right alone on 2%, 4%, ... 48% of the rows."""
    pairs = [(gained, lost) for gained in range(count + 1) for lost in range(count + 1 - gained)]
    rows = np.arange(count)
    found = [
        paired_difference(rows < gained, (rows >= gained) & (rows < gained + lost), seed=0) for gained, lost in pairs
    ]
    held = []
    for gain in GAINS:
        for loss in GAINS:
            odds = stats.multinomial.pmf(
                [(gained, lost, count - gained - lost) for gained, lost in pairs], count, (gain, loss, 1 - gain - loss)
            )
            held.append(sum(chance for chance, at in zip(odds, found, strict=True) if at.low <= gain - loss <= at.high))
    return _coverage_cell(np.array(held))


def reward(rng: Generator, count: int) -> np.ndarray:
    """Draws rewards: mostly 1, some partial credit, some format errors."""
    kind = rng.random(count)
    return np.where(kind < 0.7, 1.0, np.where(kind < 0.9, rng.random(count), -1.0))


def good_reward(rng: Generator, count: int) -> np.ndarray:
    """Draws rewards of a model with few mistakes."""
    kind = rng.random(count)
    return np.where(kind < 0.93, 1.0, np.where(kind < 0.99, rng.random(count), -1.0))


def pass_at(k: int, rng: Generator, count: int) -> np.ndarray:
    table = np.array([pass_at_k(8, right, k) for right in range(9)])
    return table[rng.binomial(8, rng.beta(1.0, 0.7, size=count))]


def entropy(rng: Generator, count: int) -> np.ndarray:
    return rng.gamma(1.0, 0.2, size=count)


def percentile_bootstrap(values: np.ndarray, rng: Generator) -> tuple[float, float]:
    means = values[rng.integers(len(values), size=(400, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return low, high


def coverage(draw: Draw, truth: float, count: int, bounds: Bounds) -> tuple[float, float]:
    rng = np.random.default_rng([count, 7])
    held = np.zeros(2)
    for seed in range(EVALUATIONS):
        values = draw(rng, count)
        limits = (mean_interval(values, seed=seed, bounds=bounds), percentile_bootstrap(values, rng))
        for index, (low, high) in enumerate(limits):
            held[index] += low - 1e-12 <= truth <= high + 1e-12
    return tuple(held / EVALUATIONS)


def paired_coverage(gain: float, loss: float, count: int) -> tuple[float, float]:
    """The coverage for two models: one is right alone on a share `gain` of the rows, the other on `loss`."""
    rng = np.random.default_rng([count, 8])
    held = np.zeros(2)
    for seed in range(EVALUATIONS // 4):
        kind = rng.random(count)
        a, b = np.where(kind < gain, 1.0, 0.0), np.where((kind >= gain) & (kind < gain + loss), 1.0, 0.0)
        difference = paired_difference(a, b, seed=seed)
        for index, (low, high) in enumerate(((difference.low, difference.high), percentile_bootstrap(a - b, rng))):
            held[index] += low - 1e-12 <= gain - loss <= high + 1e-12
    return tuple(held / (EVALUATIONS // 4))


def simulated_table() -> Iterator[str]:
    yield "| score | " + " | ".join(f"{count} rows" for count in ROWS) + " |"
    yield "|---|" + "---:|" * len(ROWS)
    draws: dict[str, tuple[Draw, Bounds]] = {f"pass@{k}": (partial(pass_at, k), (0.0, 1.0)) for k in (1, 4, 8)}
    draws |= {"mean reward": (reward, (-1.0, 1.0)), "mean reward, few mistakes": (good_reward, (-1.0, 1.0))}
    draws |= {"entropy": (entropy, None)}
    for name, (draw, bounds) in draws.items():
        truth = draw(np.random.default_rng(1), 4_000_000).mean()
        yield _line(name, [coverage(draw, truth, count, bounds) for count in ROWS])
    for gain, loss in ((0.05, 0.03), (0.2, 0.1)):
        yield _line(f"difference, +{gain} -{loss}", [paired_coverage(gain, loss, count) for count in ROWS])


def _line(name: str, shares: list[tuple[float, float]]) -> str:
    return f"| {name} | " + " | ".join(f"{ours:.3f} ({plain:.3f})" for ours, plain in shares) + " |"


def made_up_answers(rows: int, *, right: float, seed: int) -> list[dict]:
    """Outcomes as `star.evaluation.heldout.ask_heldout` returns them: five kinds of rows, rewards of six values."""
    rng = np.random.default_rng(seed)
    exact, partly, broken = rng.random(rows) < right, rng.integers(6, size=rows) / 6, rng.random(rows) < 0.02
    rewards, passes, entropies = (
        np.where(exact, 1.0, np.where(broken, -1.0, partly)),
        rng.integers(9, size=rows),
        rng.random(rows),
    )
    call = '<think>\n\n</think>\n\n<tool_call>\n{"name": "set_alarm", "arguments": {"hour": %d, "minute": 49}}\n</tool_call>'
    return [
        {
            "row": index,
            "id": f"gen-7-{index}",
            "kind": ("simple", "multiple", "parallel", "parallel-multiple", "irrelevance")[index % 5],
            "source": "generated",
            "query": f"Please wake me up at {index % 24}:49, and say nothing more about it.",
            "expected": call % (index % 24),
            "predicted": call % (index % 24 if exact[index] else index % 7),
            "exact_match": float(exact[index]),
            "reward": float(rewards[index]),
            "format_error": float(broken[index] and not exact[index]),
            "mistake": None if exact[index] else "bad format" if broken[index] else "wrong number",
            "passes": int(passes[index]),
            "entropy": float(entropies[index]),
            "unseen_tool": index % 50 == 0,
            "expected_call": "call",
            "predicted_call": "none" if broken[index] and not exact[index] else "call",
        }
        for index in range(rows)
    ]


def report_on_made_up_answers(rows: int) -> dict[str, float]:
    """Scores and compares three models on `rows` rows and writes the report, in this process. Returns its cost."""
    from star.evaluation.evaluate import score_and_write
    from star.evaluation.gathered import Gathered, GatheredModel, Timing

    def gathered(count: int) -> Gathered:
        answers = [made_up_answers(count, right=right, seed=seed) for seed, right in enumerate((0.75, 0.7, 0.72))]
        names = ("teacher", "distilled", "refined")
        models = [
            GatheredModel(name, 1, 1, Timing(1, 1.0, 1.0), {"heldout": found})
            for name, found in zip(names, answers, strict=True)
        ]
        settings = {"seed": 7, "evaluate": {"suites": ["heldout"], "samples": 8, "bfcl_categories": None}}
        return Gathered("made up", settings, models, {}, {}, [])

    with tempfile.TemporaryDirectory() as folder:
        score_and_write([gathered(10)], out=Path(folder))  # loads what is loaded late, which is not measured
        models = gathered(rows)
        before = resource.getrusage(resource.RUSAGE_SELF)
        score_and_write([models], out=Path(folder))
        after = resource.getrusage(resource.RUSAGE_SELF)
        sizes = {file.name: file.stat().st_size / 1e6 for file in sorted(Path(folder).iterdir())}
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rows": rows,
        "seconds": seconds,
        "answers": before.ru_maxrss / 1024,
        "peak": after.ru_maxrss / 1024,
        "files": sizes,
    }


def cost_table(sizes: list[int]) -> Iterator[str]:
    yield "| rows | CPU seconds | growth | MiB at the start | MiB at most | files in MB |"
    yield "|---:|---:|---:|---:|---:|---|"
    last = None
    for rows in sizes:
        child = subprocess.run([sys.executable, __file__, "--cost-of", str(rows)], check=True, capture_output=True)
        cost = json.loads(child.stdout)
        growth = f"{log(cost['seconds'] / last['seconds']) / log(rows / last['rows']):.2f}" if last else ""
        files = ", ".join(f"{name} {size:.2f}" for name, size in cost["files"].items())
        yield f"| {rows:,} | {cost['seconds']:.1f} | {growth} | {cost['answers']:.0f} | {cost['peak']:.0f} | {files} |"
        last = cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exact", action="store_true", help="the table of shares only")
    parser.add_argument("--cost", type=int, nargs="+", metavar="ROWS", help="what a report about three models costs")
    parser.add_argument("--cost-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cost_of:
        print(json.dumps(report_on_made_up_answers(arguments.cost_of)))
        return
    if arguments.cost:
        for line in cost_table(arguments.cost):
            print(line, flush=True)
        return
    for line in (*exact_table(), ""):
        print(line, flush=True)
    if not arguments.exact:
        for line in simulated_table():
            print(line, flush=True)


if __name__ == "__main__":
    main()
