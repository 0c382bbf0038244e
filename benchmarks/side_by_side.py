"""Runs a benchmark for this checkout and another one in turns, and prints medians and ratios.

    python benchmarks/real_training.py MODEL --against ../before

Each measurement is a process of its own, which runs the script of this checkout with the package `star` of the checkout
that is measured. So both are measured in one way, and the script must get along with an earlier `star`. In the tables
`before` is the checkout of --against, and `after` is this one.

A measurement is a dictionary of numbers: `tokens`, `seconds` and `cpu` (of all threads), `peak_gib`, and what else the
script prints.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from command_line import model_folder, positive

from star.cli.fail import fail

HERE = Path(__file__).resolve().parents[1]
Results = dict[str, list[dict[str, Any]]]  # by the code's name: a measurement per turn
# What makes a cell of a code's measurements; of a speed, the name of the seconds by which the tokens are divided.
Column = str | Callable[[list[dict[str, Any]]], str]
SPEEDS: dict[str, Column] = {"tokens per second": "seconds", "per CPU second": "cpu"}


def add_options(parser: argparse.ArgumentParser, *, turns: int, same: str | None = None) -> None:
    """Adds the model folder and the options of every comparison. `options.measure` is the phase that a child measures.

    Args:
        turns: default of --turns.
        same: what --same compares, for a script that has it.
    """
    parser.add_argument("model", type=model_folder, help="model folder")
    parser.add_argument("--against", type=_checkout, metavar="CHECKOUT", help="checkout of STAR to compare with")
    parser.add_argument(
        "--turns", type=positive, default=turns, help=f"measurements per checkout; the median counts ({turns})"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    if same:
        parser.add_argument(
            "--same", action="store_true", help=f"compute in fp32, and compare {same} of both checkouts"
        )
        parser.add_argument(
            "--precision",
            choices=("auto", "bf16", "fp32"),
            default="auto",
            help="the setting, for this checkout (auto)",
        )


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    options = parser.parse_args()
    if getattr(options, "same", False):
        if not options.against:
            parser.error("--same compares two checkouts: give --against CHECKOUT too")
        options.precision = "fp32"
    return options


def _checkout(text: str) -> Path:
    if not (Path(text) / "star" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} is no checkout of STAR: `git worktree add FOLDER COMMIT` makes one")
    return Path(text).resolve()


def measure_in_turns(
    phase: str, options: argparse.Namespace, *, more: Callable[[str], list[str]] = lambda name: []
) -> Results:
    """Measures a phase with each checkout, in turns. The script is started again with its own arguments and --measure.

    Args:
        more: further arguments for the code of this name.
    """
    checkouts = {**({"before": options.against} if options.against else {}), "after": HERE}
    results: Results = {name: [] for name in checkouts}
    for turn in range(options.turns):
        for name, checkout in checkouts.items():
            result = _measure_with(checkout, [*sys.argv[1:], "--measure", phase, *more(name)], phase=phase)
            results[name].append(result)
            figures = {key: round(value, 3) for key, value in result.items() if isinstance(value, int | float)}
            print(f"{phase}, turn {turn + 1}, {name}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    return results


def _measure_with(checkout: Path, arguments: list[str], *, phase: str) -> dict[str, Any]:
    """The measurement of a process that imports STAR from a checkout."""
    command = [sys.executable, "-W", "ignore", sys.argv[0], *arguments]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        try:
            output, _ = child.communicate()
        except BaseException:
            # SIGTERM, so that it removes its temporary folders.
            child.terminate()
            raise
    if child.returncode == 2:  # it has said what the user can do
        sys.exit(2)
    if child.returncode:
        status = f"status {child.returncode}" if child.returncode > 0 else signal.Signals(-child.returncode).name
        fail(f"measuring {phase} with the code of {checkout} ended with {status}, see above", status=1)
    return json.loads(output.splitlines()[-1])


def answer(measure: Callable[[argparse.Namespace], dict[str, Any]], options: argparse.Namespace) -> None:
    """Measures in this process, and prints the result for `measure_in_turns`."""
    print(json.dumps(measure(options)))


def reset_peak() -> None:
    """Lets the peak of this process's memory count from here on, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib() -> float:
    """The peak of this process's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def largest_peak(runs: list[dict[str, Any]]) -> str:
    """A cell for a column of memory."""
    return f"{max(run['peak_gib'] for run in runs):.2f} GiB"


def print_head(columns: Mapping[str, Column]) -> None:
    """Prints the head of a table of `print_rows`."""
    print("| phase | code | " + " | ".join(columns) + " |")
    print("|---|---|" + "---:|" * len(columns), flush=True)


def print_rows(phase: str, results: Results, columns: Mapping[str, Column]) -> None:
    """Prints a line per code; for two codes, a line with the ratios of their speeds too."""

    def speed(runs: list[dict[str, Any]], seconds: str) -> float:
        return statistics.median(run["tokens"] / run[seconds] for run in runs)

    for name, runs in results.items():
        cells = [
            f"{speed(runs, column):,.0f}" if isinstance(column, str) else column(runs) for column in columns.values()
        ]
        print(f"| {phase} | {name} | " + " | ".join(cells) + " |", flush=True)
    if len(results) == 2:
        before, after = results.values()
        ratios = [
            f"{speed(after, column) / speed(before, column):.2f}" if isinstance(column, str) else ""
            for column in columns.values()
        ]
        print(f"| {phase} | after / before | " + " | ".join(ratios) + " |", flush=True)
