"""The exit handler: closes the MLflow runs of killed pods, notifies the webhook, and never fails the pipeline itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from star.cluster.exit_handler import close_pipeline
from star.cluster.pipeline_state import final_state
from star.tracking.accelerators import Accelerators
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
    held = Accelerators(1000).to_json()
    environment = {**os.environ, "KFP_RUN_ID": "0123456789", "STAR_ACCELERATORS": held}
    pod = subprocess.Popen([sys.executable, "-c", STAGE], env=environment, stdout=subprocess.PIPE, text=True)
    assert pod.stdout.readline() == "open\n"
    pod.send_signal(signal.SIGKILL)
    pod.wait()
    assert runs()["distill"] == "RUNNING"
    summary = close_pipeline("0123456789", state="CANCELLED", failed_task="stages", error=None)
    assert "distill" in summary["closed_runs"] or runs()["distill"] != "RUNNING"
    assert set(runs().values()) == {"KILLED"}
    # Up to the last event that it has left.
    assert 0 < summary["accelerators"]["seconds"]["distill"] < 60_000


class Kfp(ThreadingHTTPServer):
    """KFP's API: answers a question for a run with the next of these groups' states, the last one again and again."""

    def __init__(self, states: list[str], history: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _KfpRequest)
        self.states, self.history, self.asked = list(states), history, list[tuple[str, str | None]]()
        Thread(target=self.serve_forever, daemon=True).start()

    def run(self) -> dict:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        # In the form of a server 2.17: the run still runs, retried groups come twice, some tasks have no name.
        names = {
            "exit-handler-1(0)": "FAILED",
            "exit-handler-1.onExit": "RUNNING",
            "exit-handler-1-driver": "SUCCEEDED",
            None: None,
            "exit-handler-1": state,
            "finish": "RUNNING",
        }
        tasks = [{"display_name": name, "state": of} for name, of in names.items()]
        history = [{"state": of} for of in self.history]
        return {"state": "RUNNING", "state_history": history, "run_details": {"task_details": tasks}}


class _KfpRequest(BaseHTTPRequestHandler):
    server: Kfp

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.run()).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answers", "history", "state", "status"),
    [
        (["SUCCEEDED"], ["RUNNING"], "SUCCEEDED", "FINISHED"),
        (
            ["RUNNING", "RUNNING", "FAILED"],
            ["RUNNING"],
            "FAILED",
            "FAILED",
        ),  # the server hears of it some seconds later
        (["FAILED"], ["RUNNING", "CANCELING"], "CANCELLED", "KILLED"),
        (["RUNNING"], ["RUNNING"], "ENDED", "KILLED"),
    ],
    ids=["succeeded", "failed", "cancelled", "unknown"],
)
def test_a_state_that_no_run_ends_with_is_asked_of_kfp(
    answers: list[str],
    history: list[str],
    state: str,
    status: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    server = Kfp(answers, history)
    monkeypatch.setattr("star.cluster.pipeline_state.PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("KFP_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    (tmp_path / "token").write_text("the-token\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    client = connect()
    client.create_run(experiment_id(client), run_name="left", tags={"kfp.pipeline_run_id": "0123"})
    summary = close_pipeline("0123", state="RUNNING", failed_task="exit-handler-1", error="")
    assert (summary["state"], runs()["left"]) == (state, status)
    assert server.asked[0] == ("/apis/v2beta1/runs/0123", "Bearer the-token")
    where = " in exit-handler-1" if state in ("FAILED", "CANCELLED") else ""
    assert summary["text"] == f"STAR pipeline 0123: {state}{where}"


@pytest.mark.parametrize(
    ("host", "in_cluster", "token"),
    [
        ("ml-pipeline.kubeflow", True, "Bearer the-token"),
        ("ml-pipeline.kubeflow.svc.cluster.local", True, "Bearer the-token"),
        ("ml-pipeline.kubeflow.svc.cluster.local", False, None),
        ("kfp.example.invalid", True, None),
        ("evil.invalid.svc.cluster.local.example.invalid", True, None),
    ],
)
def test_the_token_for_kfp_goes_over_http_within_the_cluster_only(
    host: str,
    in_cluster: bool,
    token: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    server = Kfp(["SUCCEEDED"], ["RUNNING"])
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, *rest, **options: resolve("127.0.0.1", *rest, **options))
    monkeypatch.setenv("KFP_HOST", f"http://{host}:{server.server_address[1]}")
    (tmp_path / "token").write_text("the-token\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if in_cluster:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr("star.cluster.pipeline_state._ask_mlflow", lambda run: None)
    assert final_state("0123", "RUNNING") == ("SUCCEEDED" if token else "ENDED")
    assert [sent for _, sent in server.asked] == ([token] if token else [])
    assert ("STAR_PLAIN_HTTP" in capsys.readouterr().out) == (token is None)


@pytest.mark.parametrize(
    ("stages", "state"),
    [
        ({"refine": "FINISHED", "register": "FINISHED"}, "SUCCEEDED"),
        ({"distill": "FAILED", "refine": "FINISHED", "register": "FINISHED"}, "SUCCEEDED"),  # a second attempt
        ({"distill": "FAILED"}, "FAILED"),
        ({"refine": "FINISHED"}, "ENDED"),
    ],
)
def test_without_kfp_the_runs_of_the_stages_tell_how_the_pipeline_ended(
    stages: dict[str, str], state: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_HOST", "http://127.0.0.1:9")
    client = connect()
    for name, status in stages.items():
        tags = {"kfp.pipeline_run_id": "0123", "star.stage": name}
        client.set_terminated(client.create_run(experiment_id(client), run_name=name, tags=tags).info.run_id, status)
    assert close_pipeline("0123", state="RUNNING", failed_task="stages", error="")["state"] == state


@pytest.mark.parametrize(
    ("word", "state"), [("COMPLETE", "SUCCEEDED"), ("CANCELED", "CANCELLED"), ("Failed", "FAILED")]
)
def test_other_words_for_a_state_are_understood(home: Path, word: str, state: str) -> None:
    assert close_pipeline("1", state=word, failed_task="stages", error="")["state"] == state


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
    summary = close_pipeline("0123456789", state="FAILED", failed_task="distill", error=None)
    assert summary["closed_runs"] == ["own"]
    assert f"MLflow run {foreign} could not be closed: Permission denied" in capsys.readouterr().out


@pytest.mark.parametrize("state", ["FAILED", ""])
def test_whatever_mlflow_answers_the_summary_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, state: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("Permission denied")

    monkeypatch.setattr(MlflowClient, "search_runs", refuse)
    summary = close_pipeline("0123456789", state=state, failed_task="distill", error=None)
    assert (summary["closed_runs"], summary["state"]) == ([], state or "ENDED")
    assert "MLflow runs could not be closed: Permission denied" in capsys.readouterr().out


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
