"""The tracking server dies in the middle of a real training and comes back: the same weights, and every figure on the server."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star import stages
from star.config.load import load_config
from star.folders.manifest import read_manifest
from star.home import spools_folder
from star.tracking.sender import replay
from star.tracking.server import connect

pytestmark = pytest.mark.slow
# Long enough for a server to die and start again meanwhile.
LONG = """
extends: {micro}
distill: {{steps: 200, save_steps: 50}}
"""


def wait_for(file: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.01)


def test_a_training_whose_server_is_killed_has_the_same_weights_and_all_its_metrics(
    local_server, home: Path, finished: dict[str, Path], tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    config, topk, out = tmp_path / "long.yaml", finished["extract-topk"], tmp_path / "disturbed"
    config.write_text(LONG.format(micro=Path(__file__).parents[1] / "micro.yaml"))
    environment.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'undisturbed.db'}")
    # Outside the home, so that the second training does not take this result instead of training.
    undisturbed = tmp_path.with_name(f"{tmp_path.name}-undisturbed")
    stages.distill(load_config(config), topk=topk, out=undisturbed)

    environment.setenv("MLFLOW_TRACKING_URI", local_server.uri)
    command = [sys.executable, "-m", "star.cli", "distill", f"--config={config}", f"--topk={topk}", f"--out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / ".disturbed.partial" / "state" / "ckd"
    wait_for(checkpoints / "checkpoint-50" / "complete", process)
    local_server.kill()
    wait_for(checkpoints / "checkpoint-100" / "complete", process)  # it went on alone
    local_server.start()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert read_manifest(out).digest == read_manifest(undisturbed).digest

    assert replay(spools_folder())[1] == []  # what was left, if the training ended before its server was back
    assert list(spools_folder().iterdir()) == []
    client = connect()
    [run] = client.search_runs([client.get_experiment_by_name("star").experiment_id])
    assert (run.info.run_name, run.info.status) == ("distill", "FINISHED")
    curve = json.loads((out / "ckd_curve.json").read_text())
    assert len(curve) == 200
    for name in ("loss", "fkl", "tail"):
        history = client.get_metric_history(run.info.run_id, f"ckd/{name}")
        assert [(entry.step, entry.value) for entry in sorted(history, key=lambda entry: entry.step)] == [
            (record["step"], record[name]) for record in curve
        ]
    assert run.data.metrics["ckd_loss"] == json.loads((out / "metrics.json").read_text())["ckd_loss"]
