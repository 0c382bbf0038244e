"""Requests to a KFP server: submitted runs, outages, refusals, answers of another form."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from star.cli.pipeline import pipeline_app
from star.errors import InputError, PipelineError
from star.pipelines import kfp_client as module
from star.pipelines import star_pipeline
from star.pipelines.kfp_client import KfpClient
from tests.kfp_replay.recording import Planned, recording
from tests.kfp_replay.server import KfpReplay

SNAPSHOT = Path(__file__).parents[2] / "deploy" / "pipelines" / "tiny.yaml"
SHORT = [Planned("preflight", 30, 60), Planned("finish", 70, 80, hook=True)]


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpReplay]:
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp writes its context there, and a kubeconfig would be there
    monkeypatch.setattr(module, "PAUSE", 0.001)
    with KfpReplay(recording(SHORT)) as server:
        server.token = "good"
        yield server


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles by copying what this pipeline was compiled to before."""

    def copy(_config: object, output: Path, *, image: str) -> None:
        output.write_bytes(SNAPSHOT.read_bytes())

    monkeypatch.setattr(star_pipeline, "compile_pipeline", copy)


def star(kfp: KfpReplay, *arguments: str, token: str = "good"):
    if arguments[0] == "submit" and "--image" not in arguments:
        arguments = (*arguments, "--image", "example/star:1")
    return CliRunner().invoke(pipeline_app, [*arguments, "--host", kfp.host], env={"KFP_TOKEN": token})


def test_a_submitted_run_has_the_compiled_pipeline_with_its_image(kfp: KfpReplay) -> None:
    done = star(kfp, "submit", "--config", "tiny", "--image", "example/star:1")
    assert done.exit_code == 0, done.output
    [(run_id, run)] = kfp.runs.items()
    assert done.stdout.strip() == run_id
    assert f"{kfp.host}/#/runs/details/{run_id}" in done.stderr
    assert run.fields["experiment_id"] == kfp.experiments[0]["experiment_id"]
    assert run.fields["display_name"].startswith("tiny-")
    spec = run.fields["pipeline_spec"]
    executors = spec["pipeline_spec"]["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {"example/star:1"}
    assert "platforms" in spec["platform_spec"]


@pytest.mark.usefixtures("compiled")
def test_the_service_account_of_the_configuration_runs_the_tasks(kfp: KfpReplay, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: tiny\nname: mine\ncluster: {service_account: star}\n")
    assert star(kfp, "submit", "--config", str(profile)).exit_code == 0
    assert next(iter(kfp.runs.values())).fields["service_account"] == "star"


def test_an_expired_token_is_an_error_that_says_where_a_new_one_goes(kfp: KfpReplay) -> None:
    done = star(kfp, "status", "r-1", token="expired")
    assert isinstance(done.exception, InputError)
    assert "does not accept the token" in str(done.exception) and "KFP_TOKEN" in str(done.exception)


def test_a_token_that_expires_while_following_does_not_affect_the_run(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(SHORT))
    following = KfpClient(kfp.host, "good").follow(run_id, poll_seconds=0)
    assert next(following).state == "PENDING"
    kfp.token = "another"
    with pytest.raises(InputError, match=f"run {run_id} is not affected"):
        next(following)


@pytest.mark.usefixtures("compiled")
def test_requests_are_retried_while_the_server_is_unavailable(kfp: KfpReplay) -> None:
    kfp.faults = {"GET /apis/v2beta1/healthz": [503, 502], "GET /apis/v2beta1/experiments": [503]}
    assert star(kfp, "submit").stdout.strip() in kfp.runs
    assert len(kfp.runs) == 1


def test_a_server_that_stays_unavailable_ends_the_command_but_not_the_run(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(SHORT))
    kfp.faults = {f"GET /apis/v2beta1/runs/{run_id}": [503] * 100}
    done = star(kfp, "status", run_id)
    assert isinstance(done.exception, PipelineError)
    assert "is unavailable (HTTP 503)" in str(done.exception)
    assert f"star pipeline status {run_id}" in str(done.exception)


def test_a_run_is_followed_over_an_outage_that_ends(kfp: KfpReplay, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = kfp.run_of(recording(SHORT), at=50)
    following = KfpClient(kfp.host, "good").follow(run_id, poll_seconds=0)
    assert next(following).state == "RUNNING"
    path = f"GET /apis/v2beta1/runs/{run_id}"
    kfp.faults = {path: [503] * (2 * module.ATTEMPTS)}
    assert list(following)[-1].is_complete
    kfp.run_of(recording(SHORT))
    following = KfpClient(kfp.host, "good").follow(run_id, poll_seconds=0)
    next(following)
    kfp.faults = {path: [503] * 100}
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with pytest.raises(PipelineError, match="is unavailable"):
        list(following)


def test_a_run_that_is_deleted_while_it_is_followed_ends_in_a_sentence(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(SHORT))
    following = KfpClient(kfp.host, "good").follow(run_id, poll_seconds=0)
    next(following)
    del kfp.runs[run_id]
    with pytest.raises(PipelineError, match=f"run {run_id} was deleted"):
        next(following)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("arrives", [True, False])
def test_a_submission_whose_connection_breaks_starts_one_run(kfp: KfpReplay, arrives: bool) -> None:
    for number in (1, 2):
        kfp.run_of(recording(SHORT, run_id=f"r-{number}"), display_name=f"nightly {number}")
    kfp.faults, kfp.arrives = {"POST /apis/v2beta1/runs": [503]}, arrives
    assert star(kfp, "submit").stdout.strip() in set(kfp.runs) - {"r-1", "r-2"}
    assert len(kfp.runs) == 3


@pytest.mark.usefixtures("compiled")
def test_a_refused_submission_shows_the_reason_of_the_server(kfp: KfpReplay) -> None:
    kfp.faults, kfp.arrives = {"POST /apis/v2beta1/runs": [400]}, False
    done = star(kfp, "submit")
    assert isinstance(done.exception, InputError) and str(done.exception).endswith("HTTP 400: upstream connect error")
    kfp.faults = {"POST /apis/v2beta1/runs": [403]}
    assert "may not do this in namespace" in str(star(kfp, "submit").exception)


def test_an_unknown_run_is_an_error_with_its_id(kfp: KfpReplay) -> None:
    assert "has no run r-7" in str(star(kfp, "status", "r-7").exception)


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
        (b'{"run_id": "r", "created_at": "yesterday"}', "cannot be read"),
        (b'{"run_id": "an other"}', ""),
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
