"""Measures how the costs of STAR grow with the size of its input, for this checkout and another one side by side.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/scale.py                                # every case, half an hour
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/scale.py statistics import --times 10   # two of them, one size more
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/scale.py --against ../star-before

A case is measured at sizes that grow by ten, each in a process of its own, on input that another process made. Seconds
are processor time after the imports, with that of child processes; MiB is how much the peak of the resident memory grew
over what the imports took. `exponent` is the growth of the seconds between the two largest sizes: 1 is linear. Where
the seconds are too few to say, it is left out. `formula / measured` compares the seconds with the formulas of
docs/scale.md. Two checkouts are measured in turns, on the same input.

benchmarks/registry.py, sequences.py, hashing.py, ckd_loader.py and clean.py measure what has more than one process.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scale_cases import CASES

HERE = Path(__file__).resolve().parents[1]
SMALLEST_SECONDS = 0.05  # below, the clock and the caches decide, not the size


class Cost(NamedTuple):
    """What one size of one case cost: processor seconds, MiB of memory, and what the case itself counted."""

    seconds: float
    mebibytes: float
    counted: str


def measure_here(name: str, size: int, folder: Path) -> Cost:
    """Measures a case in this process, which must do nothing else."""
    steps = CASES[name].measure(size, folder)
    next(steps)  # the imports, and what is opened once
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = _processor_seconds()
    counted = next(steps, "") or ""
    seconds = _processor_seconds() - before
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return Cost(seconds, max(0.0, peak / 1024 - resident / 2**20), counted)


def measure(checkout: Path, name: str, size: int, folder: Path) -> Cost:
    """Measures a case of a checkout in a process of its own."""
    command = [sys.executable, __file__, "--child", "measure", name, "--size", str(size), "--folder", str(folder)]
    return Cost(**json.loads(_run(command, checkout=checkout)))


def growth(sizes: list[int], costs: list[Cost]) -> str:
    """The exponent between the two largest sizes."""
    if len(costs) < 2 or costs[-2].seconds < SMALLEST_SECONDS:
        return ""
    return f"{math.log(costs[-1].seconds / costs[-2].seconds) / math.log(sizes[-1] / sizes[-2]):.2f}"


def formula_over_measured(formula: Callable[[int], float] | None, sizes: list[int], costs: list[Cost]) -> str:
    """What docs/scale.md's formula gives, over what was measured, by size."""
    if formula is None:
        return ""
    return ", ".join(f"{formula(size) / cost.seconds:.2f}" for size, cost in zip(sizes, costs, strict=True))


def table_row(name: str, label: str, sizes: list[int], costs: list[Cost]) -> str:
    """One line of the table: a case of one checkout at all sizes."""
    cells = [
        f"{name}{label}",
        ", ".join(f"{size:,}" for size in sizes) + f" {CASES[name].unit}",
        ", ".join(f"{cost.seconds:.2f}" for cost in costs),
        growth(sizes, costs),
        formula_over_measured(CASES[name].formula, sizes, costs),
        ", ".join(f"{cost.mebibytes:.0f}" for cost in costs),
        ", ".join(cost.counted for cost in costs if cost.counted),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table, a line as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all of them by default")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument(
        "--times", type=int, default=1, choices=(1, 10), help="multiplies the largest size of each case"
    )
    parser.add_argument("--child", choices=("prepare", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child == "prepare":
        CASES[given.cases[0]].prepare(given.size, given.folder)
        return
    if given.child:
        print(json.dumps(measure_here(given.cases[0], given.size, given.folder)._asdict()))
        return
    checkouts = {"": HERE} | ({", before": given.against.resolve()} if given.against else {})
    columns = ("case", "sizes", "CPU seconds", "exponent", "formula / measured", "MiB above the imports", "counted")
    print(f"| {' | '.join(columns)} |\n|---|---|---:|---:|---:|---:|---|", flush=True)
    for name in given.cases or CASES:
        sizes = [*CASES[name].sizes, *([CASES[name].sizes[-1] * 10] if given.times == 10 else [])]
        costs: dict[str, list[Cost]] = {label: [] for label in checkouts}
        with tempfile.TemporaryDirectory() as folder:
            for size in sizes:
                place = Path(folder) / str(size)
                place.mkdir()
                command = [sys.executable, __file__, "--child", "prepare", name, "--size", str(size)]
                _run([*command, "--folder", str(place)], checkout=HERE)
                for label, checkout in checkouts.items():
                    costs[label].append(measure(checkout, name, size, place))
        for label in reversed(checkouts):
            print(table_row(name, label, sizes, costs[label]), flush=True)


def _run(command: list[str], *, checkout: Path) -> str:
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed in {checkout}:\n{done.stderr[-3000:]}")
    return done.stdout.splitlines()[-1] if done.stdout else ""


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
