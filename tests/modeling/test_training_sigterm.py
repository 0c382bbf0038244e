"""After SIGTERM a training saves a checkpoint, and the retry resumes from it: on the same disk, or from S3."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from star.folders.manifest import read_manifest
from star.stages import stage_named

pytestmark = pytest.mark.slow
MICRO = Path(__file__).parents[1] / "micro.yaml"
# The stage, its training, and a checkpoint whose appearance says that the training is under way.
TRAININGS = [
    ("refine-teacher", "sft", "checkpoint-100"),
    ("distill", "ckd", "checkpoint-2"),
    ("refine", "simrl", "checkpoint-1"),
]


def command(name: str, finished: dict[str, Path], out: Path) -> list[str]:
    inputs = [f"--{key}={finished[source]}" for key, source in stage_named(name).inputs.items()]
    return [sys.executable, "-m", "star.cli", name, f"--config={MICRO}", *inputs, f"--out={out}"]


def interrupt(name: str, first_checkpoint: str, finished: dict[str, Path], out: Path) -> int:
    """Runs a stage until a checkpoint is there, sends SIGTERM, and returns the step of its last checkpoint."""
    process = subprocess.Popen(command(name, finished, out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoint = out.parent / f".{out.name}.partial" / "state" / first_checkpoint / "complete"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, f"the stage ended before {first_checkpoint} appeared"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=30) == 143
    assert time.monotonic() - began < 30
    assert not out.exists()
    return max(int(folder.parent.name.split("-")[1]) for folder in checkpoint.parents[1].glob("checkpoint-*/complete"))


@pytest.mark.parametrize(("name", "phase", "checkpoint"), TRAININGS, ids=[phase for _, phase, _ in TRAININGS])
def test_an_interrupted_training_ends_with_the_same_bytes(
    name: str, phase: str, checkpoint: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # The step that SIGTERM interrupted is not lost: the last checkpoint is newer than the first one.
    assert interrupt(name, f"{phase}/{checkpoint}", finished, out) > int(checkpoint.split("-")[1])
    again = subprocess.run(command(name, finished, out), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert read_manifest(out).digest == read_manifest(finished[name]).digest


def test_a_training_resumes_from_s3_when_its_disk_is_gone(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(f"http://{host}:{port}/moto-api/reset")  # servers of one process share what they hold
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("STAR_CHECKPOINTS", "s3://star/checkpoints"),
    ):
        monkeypatch.setenv(name, value)
    store = boto3.client("s3")
    store.create_bucket(Bucket="star")
    try:
        out = tmp_path / "out"
        step = interrupt("distill", "ckd/checkpoint-2", finished, out)
        shutil.rmtree(tmp_path / ".out.partial")
        again = subprocess.run(command("distill", finished, out), capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert f"distil the student (CKD): {step}/6" in again.stderr
        assert read_manifest(out).digest == read_manifest(finished["distill"]).digest
        assert store.list_objects_v2(Bucket="star").get("KeyCount") == 0
    finally:
        server.stop()
