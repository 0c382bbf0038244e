"""The exit handler: closes the MLflow runs of killed pods, notifies the webhook, and never fails the pipeline itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star.cluster.exit_handler import close_pipeline
from star.tracking.server import connect, experiment_id

STAGE = """
import time
from star.tracking.runs import stage_run
with stage_run("distill") as run:
    run.log_metrics({"loss": 1.0}, step=1)
    time.sleep(3)
    print("open", flush=True)
    time.sleep(60)
"""


def runs() -> dict[str, str]:
    client = connect()
    return {run.info.run_name: run.info.status for run in client.search_runs([experiment_id(client)])}


def test_the_mlflow_runs_of_a_killed_pod_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "KFP_RUN_ID": "0123456789"}
    pod = subprocess.Popen([sys.executable, "-c", STAGE], env=environment, stdout=subprocess.PIPE, text=True)
    assert pod.stdout.readline() == "open\n"
    pod.send_signal(signal.SIGKILL)
    pod.wait()
    assert runs()["distill"] == "RUNNING"
    summary = close_pipeline("0123456789", state="CANCELLED", failed_task="stages", error=None)
    assert "distill" in summary["closed_runs"] or runs()["distill"] != "RUNNING"
    assert set(runs().values()) == {"KILLED"}


def test_runs_of_another_pipeline_stay_open() -> None:
    client = connect()
    client.create_run(experiment_id(client), run_name="other", tags={"kfp.pipeline_run_id": "another"})
    close_pipeline("0123456789", state="SUCCEEDED", failed_task="stages", error=None)
    assert runs() == {"other": "RUNNING"}


def test_unfinished_work_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path))
    (tmp_path / "distill-0011").mkdir()
    (tmp_path / "distill-0011" / "fingerprint").write_text("0011")
    (tmp_path / "rollout-0022.done").write_text("/elsewhere")
    assert close_pipeline("1", state="FAILED", failed_task="stages", error="x")["kept"] == ["distill-0011"]


def test_the_files_shared_with_train_jobs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path))
    for run_id in ("1", "2"):
        (tmp_path / "jobs" / run_id / "star-distill-0011" / "out").mkdir(parents=True)
    close_pipeline("1", state="SUCCEEDED", failed_task="stages", error=None)
    assert [folder.name for folder in (tmp_path / "jobs").iterdir()] == ["2"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/hook?key=hidden-key", "no-address", "file:///dev/null?hidden-key"])
def test_a_webhook_that_does_not_answer_is_a_log_line_without_its_address(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("STAR_WEBHOOK", url)
    close_pipeline("1", state="FAILED", failed_task="stages", error="x")
    printed = capsys.readouterr().out
    assert "could not be notified" in printed and "hidden-key" not in printed


def test_a_tracking_server_that_does_not_answer_is_a_log_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    assert close_pipeline("1", state="SUCCEEDED", failed_task="stages", error=None)["closed_runs"] == []
    assert "runs could not be closed" in capsys.readouterr().out and time.monotonic() - began < 30


def test_a_secret_in_an_error_is_removed_from_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    summary = close_pipeline("1", state="FAILED", failed_task="stages", error="bad key very-secret-value")
    assert summary["error"] == "bad key ***"
