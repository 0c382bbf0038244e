"""A training that is told to end saves first, and the next try goes on from there: on the same disk, or from the object store."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from star.stages import stage_named
from star.storage import read_manifest

pytestmark = pytest.mark.slow
MICRO = Path(__file__).parent / "micro.yaml"
# The stage, its checkpoints' folder, and a figure of its progress at which it is told to end.
TRAININGS = [
    ("refine-teacher", "sft", "train the teacher"),
    ("distill", "ckd", "distil"),
    ("refine", "simrl", "refine"),
]


def command(name: str, finished: dict[str, Path], out: Path) -> list[str]:
    inputs = [f"--{key}={finished[source]}" for key, source in stage_named(name).inputs.items()]
    return [sys.executable, "-m", "star.cli", name, f"--config={MICRO}", *inputs, f"--out={out}"]


def told_to_end(name: str, phase: str, finished: dict[str, Path], out: Path) -> int:
    """Runs a stage until its training has begun, tells it to end, and returns the step of the checkpoint it left."""
    events = out.with_suffix(".events")
    environment = {**os.environ, "STAR_EVENTS": str(events)}
    process = subprocess.Popen(
        command(name, finished, out), env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    curve_before = {"sft": "warmup_curve.json"}.get(phase)
    state = out.parent / f".{out.name}.partial" / "state"
    deadline = time.monotonic() + 120
    while not (_steps(events, phase) and (curve_before is None or (state / curve_before).exists())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(timeout=30) == 143
    assert time.monotonic() - began < 30
    assert not out.exists()
    [*_, newest] = sorted(
        int(folder.parent.name.split("-")[1]) for folder in (state / phase).glob("checkpoint-*/complete")
    )
    return newest


def _steps(events: Path, phase: str) -> bool:
    label = {phase: text for _, phase, text in TRAININGS}[phase]
    lines = events.read_text().splitlines() if events.exists() else []
    shown = [json.loads(line) for line in lines if line.endswith("}")]
    return any(event["kind"] == "progress" and label in event["label"] and event["done"] >= 1 for event in shown)


@pytest.mark.parametrize(("name", "phase", "label"), TRAININGS, ids=[phase for _, phase, _ in TRAININGS])
def test_a_training_told_to_end_goes_on_with_the_same_bytes(
    name: str, phase: str, label: str, finished: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert told_to_end(name, phase, finished, out) >= 1
    again = subprocess.run(command(name, finished, out), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert read_manifest(out).digest == read_manifest(finished[name]).digest


def test_a_training_goes_on_where_the_disk_is_gone(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
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
        step = told_to_end("distill", "ckd", finished, out)
        shutil.rmtree(tmp_path / ".out.partial")
        again = subprocess.run(command("distill", finished, out), capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert f"distil the student (CKD): {step}/6" in again.stderr
        assert read_manifest(out).digest == read_manifest(finished["distill"]).digest
        assert store.list_objects_v2(Bucket="star").get("KeyCount") == 0
    finally:
        server.stop()
