"""The benchmark of the CKD loss runs, and prints a row per loss."""

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "ckd_loss.py"


def test_the_benchmark_of_the_loss_runs(tmp_path):
    command = [
        sys.executable,
        str(BENCHMARK),
        "--rows",
        "256",
        "--vocab",
        "4000",
        "--repeats",
        "1",
        "--without",
        "trl",
        "liger",
    ]
    ended = subprocess.run(
        [*command, "--plot", str(tmp_path / "plot.svg")], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    rows = [line.split("|")[1:-1] for line in ended.stdout.splitlines() if line.startswith("| 256 |")]
    assert len(rows) == 3
    assert all(float(row[3]) > 0 and float(row[6]) > 0 for row in rows), ended.stdout
    assert (tmp_path / "plot.svg").read_text().count("<svg") == 1
