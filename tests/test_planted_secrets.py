"""Recognisable secrets in every place where a user may put one; then all that STAR wrote and printed is searched for them.

A whole run of the micro profile, and after it what fails: a teacher's server that repeats the key it got, unreachable services whose
addresses hold passwords, a webhook that nobody answers, configurations that are refused.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
MICRO = ROOT / "tests" / "micro.yaml"
MARK = "pLaNtEd"  # in every secret
NOWHERE = "127.0.0.1:9"  # nobody listens there
VARIABLES = {
    **{name: f"{MARK}/{name}+=" for name in (
        "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "KFP_TOKEN", "STAR_API_KEY", "STAR_TEACHER_KEY", "PGPASS", "MY_PAT",
    )},
    "MLFLOW_TRACKING_USERNAME": "me",
    "STAR_WEBHOOK": f"http://{NOWHERE}/{MARK}-hook/{MARK}?sig={MARK}",
    "DATABASE_URL": f"postgres://me:{MARK}-database@{NOWHERE}/d",
    "SOME_DSN": f"mysql://me:{MARK}-dsn@{NOWHERE}/d",
    "AWS_ENDPOINT_URL": f"http://me:{MARK}-endpoint@{NOWHERE}",
    "KFP_HOST": f"http://me:{MARK}-kfp@{NOWHERE}",
    "HTTPS_PROXY": f"http://me:{MARK}-proxy@{NOWHERE}",
    "NO_PROXY": "127.0.0.1,localhost",
    "STAR_LEDGER_KEY": "env:LEDGER_PEM",
}  # fmt: skip
TRACKING = f"http://me:{MARK}-tracking@{NOWHERE}"
FILES = {  # of the user's home, which other programs read
    ".netrc": f"machine 127.0.0.1 login me password {MARK}-netrc\n",
    ".pgpass": f"*:*:*:*:{MARK}-pgpass\n",
    ".aws/credentials": f"[default]\naws_access_key_id = {MARK}-id\naws_secret_access_key = {MARK}-secret\n",
    ".mlflow/credentials": f"[mlflow]\nmlflow_tracking_username = me\nmlflow_tracking_password = {MARK}-mlflow\n",
    ".cache/huggingface/token": f"hf_{MARK}",
}
REFUSED = (
    f'rollout: {{server: "http://me:{MARK}@{NOWHERE}/v1"}}',
    f'topk: {{server: "http://{NOWHERE}/v1?api_key={MARK}"}}',
    f'cluster: {{environment: {{MLFLOW_TRACKING_URI: "{TRACKING}"}}}}',
    f'cluster: {{environment: {{PLACE: "postgres://me:{MARK}@h/d"}}}}',
    f"cluster: {{environment: {{HF_HUB_PAT: {MARK}}}}}",
    f"cluster: {{environment: {{HF_TOKEN: {MARK}}}}}",
    f'student: {{base: "https://me:{MARK}@hub.example.com/model"}}',
)
CLOSE = """
import sys
from star.cluster.exit_handler import close_pipeline
close_pipeline("0123", state=sys.argv[1], error="401 of " + open("error.txt").read())
"""
# What KFP's executor does: it calls the stage and leaves the traceback to Python. Another runner may print the error itself.
STAGE = """
import sys, traceback
from pathlib import Path
from star import stages
from star.config.load import load_config
data, teacher, out, prints = sys.argv[1:]
try:
    stages.rollout(load_config("served.yaml"), data=Path(data), teacher=Path(teacher), out=Path(out))
except Exception:
    if prints == "yes":
        sys.__stderr__.write(traceback.format_exc())
        sys.exit(3)
    raise
"""


class RepeatsKey(BaseHTTPRequestHandler):
    """A server that refuses every request, and names the key that it got."""

    def do_GET(self) -> None:
        body = f"no access for {self.headers['Authorization']}".encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class Place:
    """A folder with the user's files, and commands that run there."""

    def __init__(self, folder: Path) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        forms = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key = Ed25519PrivateKey.generate().private_bytes(*forms).decode()
        self.secrets = [MARK.encode(), key.splitlines()[1].encode()]
        self.folder, self.outputs = folder, 0
        self.variables = {
            **VARIABLES,
            "LEDGER_PEM": key,
            "HOME": str(folder / "user"),
            "STAR_HOME": str(folder / "runs"),
        }
        for name, text in FILES.items():
            (folder / "user" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "user" / name).write_text(text)
        (folder / "error.txt").write_text(f"{TRACKING}/x?token={MARK}: Bearer {MARK}")
        self.given = {file for file in folder.rglob("*") if file.is_file()}

    def run(self, *arguments: object, program: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a `star` command or a program; its output is a file of the folder too."""
        start = ["-m", "star.cli"] if program is None else ["-c", program]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.variables, **variables}
        done = subprocess.run(
            [sys.executable, *start, *map(str, arguments)], cwd=self.folder, env=environment, capture_output=True, text=True
        )  # fmt: skip
        self.outputs += 1
        (self.folder / f"output-{self.outputs}").write_text(done.stdout + done.stderr)
        return done

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.write_text(text)
        self.given.add(file)
        return file

    def leaks(self) -> list[str]:
        """Files that hold a secret although the user did not write them."""
        files = [file for file in self.folder.rglob("*") if file.is_file() and file not in self.given]
        assert len(files) > 10
        return [str(file) for file in files if any(secret in file.read_bytes() for secret in self.secrets)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def command_lines() -> Iterator[set[str]]:
    """The command lines with a secret or a configuration that processes of these tests had."""
    found: set[str] = set()
    ended = Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    line = " ".join(process.cmdline())
                    if any(word in line for word in (MARK, "PRIVATE KEY-----", '"max_prompt_tokens"')):
                        found.add(line)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    yield found
    ended.set()
    thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), RepeatsKey)
    Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    http.shutdown()


def test_a_whole_run(place: Place, command_lines: set[str]) -> None:
    done = place.run("run", "--config", MICRO)
    assert done.returncode == 0, done.stdout + done.stderr
    for command in (["models"], ["registry", "ledger"], ["lineage"], ["registry", "reconcile"], ["tracking", "replay"]):
        assert place.run(*command).returncode == 0, command
    assert (place.folder / "runs" / "mlflow.db").stat().st_size > 0
    assert place.leaks() == []
    assert command_lines == set()


def test_compile_and_doctor(place: Place, command_lines: set[str]) -> None:
    profile = place.write(
        "cluster.yaml", f"extends: {MICRO}\ncluster: {{secrets: {{star: {{HF_TOKEN: token, MY_PAT: pat}}}}}}\n"
    )
    assert place.run("pipeline", "compile", "--config", profile, "--output", "star.yaml").returncode == 0
    place.run("doctor", "--config", profile)
    place.run("doctor", "--config", profile, MLFLOW_TRACKING_URI=TRACKING)
    assert place.leaks() == []
    assert command_lines == set()


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_refused_configuration(place: Place, number: int) -> None:
    profile = place.write(f"refused-{number}.yaml", REFUSED[number])
    done = place.run("pipeline", "compile", "--config", profile, "--output", "refused.yaml")
    assert done.returncode == 2 and "ecret" in done.stderr and not (place.folder / "refused.yaml").exists()
    assert place.leaks() == []


def test_a_rollout_that_fails(place: Place, server: str, command_lines: set[str]) -> None:
    place.write("served.yaml", f"extends: {MICRO}\nrollout: {{server: {server!r}}}\n")
    latest = place.folder / "runs" / "latest"
    folders = [str(latest / name) for name in ("synthesize", "refine-teacher")]
    by_hand = ["--data", folders[0], "--teacher", folders[1], "--out", "rollouts"]
    done = [
        place.run("rollout", "--config", "served.yaml", *by_hand, STAR_EVENTS="events.jsonl"),
        place.run(*folders, "by-executor", "no", program=STAGE, STAR_EVENTS="events.jsonl"),
        place.run(*folders, "by-another", "yes", program=STAGE, MLFLOW_TRACKING_URI=TRACKING),
        place.run("run", "--config", "served.yaml"),  # the local runner, with KFP's executor
    ]
    assert [one.returncode for one in done] == [2, 1, 3, 2]
    for one in done:
        assert "no access for Bearer ***" in one.stderr
    assert "no access for Bearer ***" in (place.folder / "events.jsonl").read_text()
    assert any("no access for Bearer ***" in log.read_text() for log in (place.folder / "runs" / "logs").glob("*.log"))
    assert place.leaks() == []
    assert command_lines == set()


def test_services_that_cannot_be_reached(place: Place, command_lines: set[str]) -> None:
    done = [
        place.run("models", MLFLOW_TRACKING_URI=TRACKING),
        place.run("synthesize", "--config", MICRO, "--out", "s3://bucket/data"),
        place.run("pipeline", "status", "0123"),
        place.run("models", STAR_REGISTRY=f"s3://me:{MARK}@bucket/x", MLFLOW_TRACKING_URI=f"http://{NOWHERE}"),
    ]
    assert all(one.returncode for one in done)
    assert place.leaks() == []
    assert command_lines == set()


def test_the_exit_handler(place: Place, command_lines: set[str]) -> None:
    for state in ("FAILED", "RUNNING"):
        done = place.run(state, program=CLOSE)
        assert done.returncode == 0, done.stderr
        assert f"the webhook at http://{NOWHERE} could not be notified" in done.stdout
        assert json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])["error"]
    assert place.leaks() == []
    assert command_lines == set()


def test_options_take_no_secret(place: Place) -> None:
    # After a while, in which the other tests' processes are gone: here the user has put secrets into the command line.
    time.sleep(0.2)
    options = (
        ["promote", "1", "--to-registry", TRACKING],
        ["pipeline", "status", "0123", "--token", MARK],
        ["data", "synthesize", "--tools", "star:tools.json", "--out", "rows", "--endpoint", TRACKING, "--model", "m"],
    )
    for option in options:
        done = place.run(*option)
        assert done.returncode == 2
        assert MARK not in done.stdout + done.stderr
