"""The exit handler: closes the MLflow runs of killed pods, notifies the webhook, and never fails the pipeline itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from star.cluster.exit_handler import close_pipeline
from star.cluster.pipeline_end import find_end
from star.tracking.accelerators import Accelerators
from star.tracking.server import connect, experiment_id
from tests.kfp_replay.recording import Planned, recording
from tests.kfp_replay.server import KfpReplay

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
    held = Accelerators(1000).to_json()
    environment = {**os.environ, "KFP_RUN_ID": "0123456789", "STAR_ACCELERATORS": held}
    pod = subprocess.Popen([sys.executable, "-c", STAGE], env=environment, stdout=subprocess.PIPE, text=True)
    assert pod.stdout.readline() == "open\n"
    pod.send_signal(signal.SIGKILL)
    pod.wait()
    assert runs()["distill"] == "RUNNING"
    summary = close_pipeline("0123456789", state="CANCELED", error=None)
    assert "distill" in summary["closed_runs"] or runs()["distill"] != "RUNNING"
    assert set(runs().values()) == {"KILLED"}
    # Up to the last event that it has left.
    assert 0 < summary["accelerators"]["seconds"]["distill"] < 60_000


@pytest.mark.parametrize(
    ("host", "in_cluster", "sent"),
    [
        ("ml-pipeline.kubeflow", True, True),
        ("ml-pipeline.kubeflow.svc.cluster.local", True, True),
        ("ml-pipeline.kubeflow.svc.cluster.local", False, False),
        ("kfp.example.invalid", True, False),
        ("evil.invalid.svc.cluster.local.example.invalid", True, False),
    ],
)
def test_the_token_for_kfp_goes_over_http_within_the_cluster_only(
    host: str,
    in_cluster: bool,
    sent: bool,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    run = recording([Planned("register", 30, 60), Planned("finish", 70, None, hook=True)])
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *rest, **options: resolve("127.0.0.1", *rest, **options))
    (tmp_path / "token").write_text("the-token\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_cluster:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with KfpReplay() as server:
        server.token = "the-token"
        monkeypatch.setenv("KFP_HOST", f"http://{host}:{server.server_address[1]}")
        assert find_end(server.run_of(run, at=1000.0), given="").state == ("SUCCEEDED" if sent else "ENDED")
        assert bool(server.requests) == sent
    assert ("STAR_PLAIN_HTTP" in capsys.readouterr().out) == (not sent)


@pytest.mark.parametrize(
    ("word", "state"), [("COMPLETE", "SUCCEEDED"), ("CANCELLED", "CANCELED"), ("Failed", "FAILED")]
)
def test_other_words_for_a_state_are_understood(home: Path, word: str, state: str) -> None:
    assert close_pipeline("1", state=word, error="")["state"] == state


def test_a_run_that_may_not_be_closed_keeps_no_other_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    client = connect()
    tags = {"kfp.pipeline_run_id": "0123456789"}
    foreign, _ = (
        client.create_run(experiment_id(client), run_name=name, tags=tags).info.run_id for name in ("foreign", "own")
    )
    close = MlflowClient.set_terminated

    def refuse(client: MlflowClient, run_id: str, status: str) -> None:
        if run_id == foreign:
            raise MlflowException("Permission denied")
        close(client, run_id, status)

    monkeypatch.setattr(MlflowClient, "set_terminated", refuse)
    summary = close_pipeline("0123456789", state="FAILED", error=None)
    assert summary["closed_runs"] == ["own"]
    assert f"MLflow run {foreign} could not be closed: Permission denied" in capsys.readouterr().out


@pytest.mark.parametrize("state", ["FAILED", ""])
def test_whatever_mlflow_answers_the_summary_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, state: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("Permission denied")

    monkeypatch.setattr(MlflowClient, "search_runs", refuse)
    summary = close_pipeline("0123456789", state=state, error=None)
    assert (summary["closed_runs"], summary["state"]) == ([], state or "ENDED")
    assert "MLflow runs could not be closed: Permission denied" in capsys.readouterr().out


def test_runs_of_another_pipeline_stay_open() -> None:
    client = connect()
    client.create_run(experiment_id(client), run_name="other", tags={"kfp.pipeline_run_id": "another"})
    close_pipeline("0123456789", state="SUCCEEDED", error=None)
    assert runs() == {"other": "RUNNING"}


def test_unfinished_work_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path))
    (tmp_path / "distill-0011").mkdir()
    (tmp_path / "distill-0011" / "fingerprint").write_text("0011")
    (tmp_path / "rollout-0022.done").write_text("/elsewhere")
    assert close_pipeline("1", state="FAILED", error="x")["kept"] == ["distill-0011"]


def test_the_files_shared_with_train_jobs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path))
    for run_id in ("1", "2"):
        (tmp_path / "jobs" / run_id / "star-distill-0011" / "out").mkdir(parents=True)
    close_pipeline("1", state="SUCCEEDED", error=None)
    assert [folder.name for folder in (tmp_path / "jobs").iterdir()] == ["2"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/hook?key=hidden-key", "no-address", "file:///dev/null?hidden-key"])
def test_a_webhook_that_does_not_answer_is_a_log_line_without_its_address(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("STAR_WEBHOOK", url)
    close_pipeline("1", state="FAILED", error="x")
    printed = capsys.readouterr().out
    assert "could not be notified" in printed and "hidden-key" not in printed


def test_a_tracking_server_that_does_not_answer_is_a_log_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    assert close_pipeline("1", state="SUCCEEDED", error=None)["closed_runs"] == []
    assert "runs could not be closed" in capsys.readouterr().out and time.monotonic() - began < 30


def test_a_secret_in_an_error_is_removed_from_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    summary = close_pipeline("1", state="FAILED", error="bad key very-secret-value")
    assert summary["error"] == "bad key ***"
