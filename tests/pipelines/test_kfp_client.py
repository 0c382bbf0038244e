"""`star pipeline submit|status|logs|cancel` against a fake server on this machine that speaks the KFP API v2beta1."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from star.cli.pipeline import pipeline_app
from star.errors import InputError, PipelineError
from star.pipelines import kfp_client as module
from star.pipelines.kfp_client import KfpClient

EXPERIMENT = {"experiment_id": "e-1", "display_name": "star", "storage_state": "AVAILABLE"}


def node(name: str, pod: str, state: str, *children: str, minute: int = 0, error: str | None = None) -> dict:
    """A node of the workflow, as the API returns it among the tasks."""
    detail = {
        "run_id": "r-1",
        "task_id": pod,
        "display_name": name,
        "create_time": f"2026-01-01T00:{minute:02d}:00Z",
        "state": state,
        "state_history": [{"update_time": "2026-01-01T00:00:00Z", "state": state}],
        "pod_name": pod,
        "child_tasks": [{"pod_name": child} for child in children],
    }
    return detail | ({"error": {"code": 2, "message": error}} if error else {})


class KFP(ThreadingHTTPServer):
    """A fake KFP server: the runs it created, the states to report for them in turn, and the faults to answer with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self.server_address[1]}"
        self.experiments: list[dict] = []
        self.runs: list[dict] = []
        self.states = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.tasks: list[dict] = []
        self.token = "good"
        self.faults: dict[str, list[int]] = {}  # "METHOD path" -> statuses of the next answers
        self.arrives = True  # whether a request that is answered with a fault took effect nevertheless
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: KFP

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_request("GET", {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.handle_request("POST", json.loads(body or "{}"))

    def handle_request(self, method: str, body: dict) -> None:
        kfp, url = self.server, urlsplit(self.path)
        kfp.requests.append(f"{method} {url.path}")
        if self.headers.get("Authorization") != f"Bearer {kfp.token}":
            self.answer(401, {"code": 16, "message": "Request header error: there is no user identity header."})
            return
        faults = kfp.faults.get(f"{method} {url.path}", [])
        fault = faults.pop(0) if faults else None
        if fault and not kfp.arrives:
            self.answer(fault, {"code": 14, "message": "upstream connect error"})
            return
        status, content = self.routed(method, url.path, parse_qs(url.query), body)
        self.answer(fault or status, content if not fault else {"code": 14, "message": "upstream connect error"})

    def routed(self, method: str, path: str, query: dict, body: dict) -> tuple[int, object]:
        kfp = self.server
        found = re.fullmatch(r"/apis/v2beta1/runs/([^/:]+)(:terminate)?", path)
        if path == "/apis/v2beta1/healthz":
            return 200, {"commit_sha": "0", "tag_name": "2.17.0", "multi_user": False}
        if path == "/apis/v2beta1/experiments" and method == "GET":
            return 200, {"experiments": kfp.experiments, "total_size": len(kfp.experiments)}
        if path == "/apis/v2beta1/experiments":
            kfp.experiments.append({**EXPERIMENT, "display_name": body["display_name"]})
            return 200, kfp.experiments[-1]
        if path == "/apis/v2beta1/runs" and method == "GET":
            assert query["experiment_id"] == ["e-1"]
            # It knows no filter and gives one run a page, so that a name is found only by whoever reads all pages.
            page = int(query.get("page_token", ["0"])[0])
            more = {"next_page_token": str(page + 1)} if page + 1 < len(kfp.runs) else {}
            return 200, {"runs": kfp.runs[page : page + 1], "total_size": len(kfp.runs), **more}
        if path == "/apis/v2beta1/runs":
            kfp.runs.append({**body, "run_id": f"r-{len(kfp.runs) + 1}", "state": "PENDING"})
            return 200, kfp.runs[-1]
        if found and found[1] in {run["run_id"] for run in kfp.runs} and found[2]:
            kfp.states = ["CANCELING", "CANCELED"]
            return 200, {}
        if found and found[1] in {run["run_id"] for run in kfp.runs}:
            state = kfp.states.pop(0) if len(kfp.states) > 1 else kfp.states[0]
            return 200, {**kfp.runs[0], "state": state, "run_details": {"task_details": kfp.tasks}}
        if log := re.fullmatch(r"/apis/v1alpha1/runs/r-1/nodes/([^/]+)/log", path):
            return 200, f"log of {log[1]}\n\x1b[31mred\n"
        return 404, {"code": 5, "message": f"{path} not found"}

    def answer(self, status: int, content: object) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KFP]:
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp writes its context there
    monkeypatch.setattr(module, "PAUSE", 0.001)
    server = KFP()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def star(kfp: KFP, *arguments: str, token: str = "good"):
    if arguments[0] == "submit" and "--image" not in arguments:
        arguments = (*arguments, "--image", "example/star:1")
    return CliRunner().invoke(pipeline_app, [*arguments, "--host", kfp.host], env={"KFP_TOKEN": token})


def test_a_submitted_run_is_followed_to_its_end(kfp: KFP) -> None:
    kfp.tasks = [
        node("root", "w-0", "RUNNING", "w-1"),
        node("rollout-driver", "w-9", "SUCCEEDED", minute=1),
        node("rollout", "w-1", "SUCCEEDED", "w-2", minute=2),
        node("executor", "w-2", "SUCCEEDED", minute=3),
    ]
    done = star(kfp, "submit", "--config", "tiny", "--image", "example/star:1", "--wait", "--poll", "0")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == "r-1"
    shown = [line.split() for line in done.stderr.splitlines()]
    assert ["SUCCEEDED", "run", "r-1"] in shown
    assert ["SUCCEEDED", "rollout"] in shown and not any("driver" in word for words in shown for word in words)
    assert f"{kfp.host}/#/runs/details/r-1" in done.stderr
    [run] = kfp.runs
    assert run["experiment_id"] == "e-1" and run["display_name"].startswith("tiny-")
    spec = run["pipeline_spec"]
    assert {e["container"]["image"] for e in spec["pipeline_spec"]["deploymentSpec"]["executors"].values()} == {
        "example/star:1"
    }
    assert "platforms" in spec["platform_spec"]


def test_a_failed_run_exits_with_status_1_and_names_the_task(kfp: KFP) -> None:
    kfp.states = ["RUNNING", "FAILED"]
    kfp.tasks = [node("rollout", "w-1", "FAILED", error="row 17 cannot be rendered")]
    done = star(kfp, "submit", "--wait", "--poll", "0")
    assert done.exit_code == 1
    assert "FAILED     rollout  row 17 cannot be rendered" in done.stderr


def test_the_service_account_of_the_configuration_runs_the_tasks(kfp: KFP, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: tiny\nname: mine\ncluster: {service_account: star}\n")
    assert star(kfp, "submit", "--config", str(profile)).exit_code == 0
    assert kfp.runs[0]["service_account"] == "star"


def test_an_expired_token_is_an_error_that_says_where_a_new_one_goes(kfp: KFP) -> None:
    done = star(kfp, "status", "r-1", token="expired")
    assert isinstance(done.exception, InputError)
    assert "does not accept the token" in str(done.exception) and "KFP_TOKEN" in str(done.exception)


def test_a_token_that_expires_while_following_does_not_affect_the_run(kfp: KFP) -> None:
    run_id = _submitted(kfp)
    following = KfpClient(kfp.host, "good").follow(run_id, poll_seconds=0)
    assert next(following).state == "PENDING"
    kfp.token = "another"
    with pytest.raises(InputError, match="run r-1 is not affected"):
        next(following)


def _submitted(kfp: KFP) -> str:
    return star(kfp, "submit").stdout.strip()


def test_requests_are_retried_while_the_server_is_unavailable(kfp: KFP) -> None:
    kfp.faults = {"GET /apis/v2beta1/healthz": [503, 502], "GET /apis/v2beta1/experiments": [503]}
    assert _submitted(kfp) == "r-1"
    assert len(kfp.runs) == 1


def test_a_server_that_stays_unavailable_ends_the_command_but_not_the_run(kfp: KFP) -> None:
    run_id = _submitted(kfp)
    kfp.faults = {f"GET /apis/v2beta1/runs/{run_id}": [503] * 100}
    done = star(kfp, "status", run_id)
    assert isinstance(done.exception, PipelineError)
    assert "is unavailable (HTTP 503)" in str(done.exception) and f"star pipeline status {run_id}" in str(
        done.exception
    )


@pytest.mark.parametrize("arrives", [True, False])
def test_a_submission_whose_connection_breaks_starts_one_run(kfp: KFP, arrives: bool) -> None:
    kfp.runs = [{"run_id": f"r-{number}", "display_name": f"nightly {number}"} for number in (1, 2)]
    kfp.faults, kfp.arrives = {"POST /apis/v2beta1/runs": [503]}, arrives
    assert _submitted(kfp) == "r-3"
    assert len(kfp.runs) == 3


def test_a_refused_submission_shows_the_reason_of_the_server(kfp: KFP) -> None:
    kfp.faults, kfp.arrives = {"POST /apis/v2beta1/runs": [400]}, False
    done = star(kfp, "submit")
    assert isinstance(done.exception, InputError) and "HTTP 400" in str(done.exception)
    kfp.faults = {"POST /apis/v2beta1/runs": [403]}
    assert "may not do this in namespace" in str(star(kfp, "submit").exception)


def test_a_cancelled_run_ends(kfp: KFP) -> None:
    run_id = _submitted(kfp)
    kfp.states = ["RUNNING"]
    assert star(kfp, "cancel", run_id).exit_code == 0
    assert f"POST /apis/v2beta1/runs/{run_id}:terminate" in kfp.requests
    done = star(kfp, "status", run_id, "--wait", "--poll", "0")
    assert done.exit_code == 1 and "CANCELED   run r-1" in done.stderr


def test_an_unknown_run_is_an_error_with_its_id(kfp: KFP) -> None:
    assert "has no run r-7" in str(star(kfp, "status", "r-7").exception)


def test_logs_contain_every_attempt_of_every_shard(kfp: KFP) -> None:
    run_id = _submitted(kfp)
    kfp.tasks = [
        node("rollout", "w-1", "FAILED", "w-2", minute=1),
        node("executor", "w-2", "FAILED", "w-3", "w-4", minute=2),
        node("executor(0)", "w-3", "FAILED", minute=3),
        node("executor(1)", "w-4", "FAILED", minute=4),
        node("rollout", "w-5", "SUCCEEDED", "w-6", minute=5),
        node("executor", "w-6", "SUCCEEDED", minute=6),
        node("distill", "w-7", "SUCCEEDED", "w-8", minute=7),
        node("executor", "w-8", "SUCCEEDED", minute=8),
    ]
    done = star(kfp, "logs", run_id, "--task", "rollout")
    assert [line for line in done.stdout.splitlines() if "log of" in line] == [
        f"rollout: log of w-{n}" for n in (3, 4, 6)
    ]
    assert "\x1b" not in done.stdout
    assert len(star(kfp, "logs", run_id).stdout.splitlines()) == 8
    assert "has no task refine: it has distill, rollout" in str(star(kfp, "logs", run_id, "--task", "refine").exception)


def test_a_missing_host_is_an_error_that_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_HOST", raising=False)
    with pytest.raises(InputError, match="give --host or KFP_HOST"):
        KfpClient(None).status("r-1")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>login</html>", "something else than a run"),
        (b"[]", "something else than a run"),
        (b"null", "something else than a run"),
        (b"", "something else than a run"),
        (b"[" * 100_000, "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"run_id": "r", "error": {"code": "x"}}', "cannot be read"),
        (b'{"run_id": "r", "run_details": {"task_details": [5]}}', ""),
        (b"1" * (2**20 + 1), "more than 1 MiB"),
    ],
)
def test_an_answer_of_another_form_is_one_line(body: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = b"{}" if "healthz" in self.path else body
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        client = KfpClient(f"http://127.0.0.1:{server.server_address[1]}", "token")
        if said:
            with pytest.raises((InputError, PipelineError), match=said):
                client.status("r")
        else:
            assert client.status("r").run_id == "r"
    finally:
        server.shutdown()
        server.server_close()
