"""A stage killed in the middle of a training goes on and ends with the same bytes as one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star.config.experiment import Config
from star.folders.manifest import read_manifest
from star.stages import stage_named

pytestmark = pytest.mark.slow
MICRO = Path(__file__).parent / "micro.yaml"
# The stage, and a file whose appearance says that the training is under way and has something to go on from.
KILLS = [
    ("refine-teacher", "warmup/checkpoint-2/complete"),
    ("refine-teacher", "sft/checkpoint-100/complete"),
    ("refine-teacher", "simrl/checkpoint-2/complete"),
    ("rollout", "part-00000.parquet"),
    ("distill", "warmup/checkpoint-2/complete"),
    ("distill", "ckd/checkpoint-2/complete"),
    ("distill", "ckd/checkpoint-6/complete"),
    ("refine", "simrl/checkpoint-2/complete"),
    ("evaluate", "teacher.jsonl"),
]


def command(name: str, finished: dict[str, Path], out: Path) -> list[str]:
    inputs = [f"--{key}={finished[source]}" for key, source in stage_named(name).inputs.items()]
    return [sys.executable, "-m", "star.cli", name, f"--config={MICRO}", *inputs, f"--out={out}"]


@pytest.mark.parametrize(
    ("name", "sign"), KILLS, ids=[f"{name}-{sign.removesuffix('/complete')}" for name, sign in KILLS]
)
def test_a_killed_stage_ends_with_the_same_bytes(
    name: str, sign: str, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(name, finished, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    waited_for = tmp_path / ".out.partial" / "state" / sign
    deadline = time.monotonic() + 120
    while not waited_for.exists():
        assert process.poll() is None, f"the stage ended before {sign} appeared"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    again = subprocess.run(command(name, finished, out), capture_output=True, text=True, env={**os.environ})
    assert again.returncode == 0, again.stderr
    assert read_manifest(out).digest == read_manifest(finished[name]).digest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []
