"""Prints the scores of the three models and the seconds per stage of a finished run, as Markdown for docs/results.md.

/usr/bin/time -v make run 2> time.txt
.venv/bin/python benchmarks/pipeline.py runs --time time.txt       # with the wall time and the peak memory
"""

import argparse
import json
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from star.evaluation.report import markdown_table
from star.stages import STAGES


def lines(runs: Path, time_file: Path | None) -> Iterator[str]:
    latest = runs / "latest"
    evaluation = json.loads((latest / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    timing = json.loads((latest / "evaluate" / "timing.json").read_text(encoding="utf-8"))
    models = [{**model, **timing[model["name"]]} for model in evaluation["models"]]
    yield f"{evaluation['suite']['heldout']['rows']} held-out rows, 95% intervals in brackets.\n"
    yield markdown_table({**evaluation, "models": models})
    yield "| stage | seconds |\n|---|---:|"
    total = 0.0
    for stage in STAGES:
        seconds = json.loads((latest / stage.name / "metrics.json").read_text(encoding="utf-8"))["seconds"]
        total += seconds
        yield f"| {stage.name} | {seconds:.0f} |"
    yield f"| total | {total:.0f} |\n"
    if time_file:
        yield from command_total(time_file.read_text(encoding="utf-8"))
    yield f"Machine: {platform.processor() or platform.machine()}, Python {platform.python_version()}, no GPU used."


def command_total(text: str) -> Iterator[str]:
    """Reads the wall time and the size of the largest process from the output of `/usr/bin/time -v`."""
    wall = re.search(r"Elapsed \(wall clock\) time .*: ([\d:.]+)", text)
    memory = re.search(r"Maximum resident set size \(kbytes\): (\d+)", text)
    if wall and memory:
        yield f"The whole command: {wall[1]} wall, {int(memory[1]) / 2**20:.2f} GiB in its largest process.\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="STAR_HOME of the run")
    parser.add_argument("--time", type=Path, help="output of /usr/bin/time -v")
    arguments = parser.parse_args()
    print("\n".join(lines(arguments.runs, arguments.time)))
