"""A benchmark that measures two checkouts takes turns, prints medians and ratios, and says in a line what went wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = f"""
import argparse, os, sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from command_line import run_main
from side_by_side import SPEEDS, add_options, answer, largest_peak, measure_in_turns, parse_options, print_head, print_rows
from star.errors import InputError

def measure(options):
    if options.measure == "faulty":
        raise InputError("no rows: give some")
    if options.measure == "broken":
        os._exit(7)
    turns = options.log.open("a+")
    turns.seek(0)
    turn = turns.read().count("b" if options.is_before else "a")
    turns.write("b" if options.is_before else "a")
    seconds = [9, 2, 1][turn] if options.is_before else 0.5
    return {{"tokens": 10, "seconds": seconds, "cpu": 1, "peak_gib": turn}}

def main():
    from pathlib import Path
    parser = argparse.ArgumentParser()
    add_options(parser, turns=3, same="the drawn ids")
    parser.add_argument("--phase", default="step")
    parser.add_argument("--log", type=Path)
    options = parse_options(parser)
    options.is_before = os.environ["PYTHONPATH"].endswith("before")
    if options.measure:
        return answer(measure, options)
    columns = {{**SPEEDS, "peak memory": largest_peak}}
    print_head(columns)
    print_rows(options.phase, measure_in_turns(options.phase, options), columns)

run_main(main)
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A script, a model folder, and a checkout."""
    (tmp_path / "script.py").write_text(SCRIPT)
    for name in ("model", "before"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "before" / "star").symlink_to(ROOT / "star")
    return tmp_path


def run(folders: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "script.py", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(command, cwd=folders, env=environment, capture_output=True, text=True, check=False)


def test_two_checkouts_are_measured_in_turns(folders: Path) -> None:
    done = run(folders, "model", "--against", "before", "--log", "log")
    assert (folders / "log").read_text() == "bababa"
    assert done.stdout.splitlines()[2:] == [
        "| step | before | 5 | 10 | 2.00 GiB |",
        "| step | after | 20 | 10 | 2.00 GiB |",
        "| step | after / before | 4.00 | 1.00 |  |",
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["model", "--phase", "faulty"], 2, "star: no rows: give some"),
        (["model", "--phase", "broken"], 1, f"measuring broken with the code of {ROOT} ended with status 7, see above"),
        (["before"], 2, "before is no model folder: it has no config.json"),
        (
            ["model", "--against", "model"],
            2,
            "model is no checkout of STAR: `git worktree add FOLDER COMMIT` makes one",
        ),
        (["model", "--same"], 2, "--same compares two checkouts: give --against CHECKOUT too"),
        (["model", "--turns", "0"], 2, "'0' is no number from 1 on"),
    ],
)
def test_what_went_wrong_is_one_line(folders: Path, arguments: list[str], status: int, said: str) -> None:
    done = run(folders, *arguments)
    assert done.returncode == status
    assert done.stderr.rstrip().endswith(said) and "Traceback" not in done.stderr
