"""Measures what the commands on registered models cost as a registry grows: seconds and requests, at real servers.

    python benchmarks/registry.py --setup team --sizes 10,100,1000,10000        PostgreSQL behind an MLflow server, S3
    python benchmarks/registry.py --setup small-team --sizes 10,100,1000        SQLite behind an MLflow server, S3
    python benchmarks/registry.py --setup laptop --sizes 10,100,1000            SQLite without a server

At each size N the registry holds N versions, each with a LoggedModel and the tags, registrations and records that `star
register` writes, and a ledger of N decisions. They are written in bulk: to MLflow's tables through its own models, to
the ledger by the ledger's own code. The versions that the commands read are registered as usual.

A command is called as a function in this process, so imports are not part of its figures. Its cost is
CPU, of this process and of MLflow's server, and requests, counted in the connection pools of urllib3, through which
MLflow's client and boto3 both send. The last columns are exponents of growth over the sizes: 0 is constant, 1 linear.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import urllib3

NAME = "star"
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
)
LINEAGE = ("data", "teacher", "distilled", "refined", "evaluation", "decoding", "tokenizer", "code", "commit")
SCORES = {"exact_match": 0.91, "mean_reward": 0.87, "format_errors": 0.01}
ROWS = 500  # versions that are inserted at a time
# The S3 server of the tests, which also takes all lines of a file at once: a request for each of 40,000 records takes minutes.
S3_SERVER = """
import json, sys
from pathlib import Path
from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
serve = DomainDispatcherApplication(create_backend_app)
def application(environment, start_response):
    if environment["PATH_INFO"] != "/fill":
        return serve(environment, start_response)
    store = get_backend("s3")["123456789012"]["aws"]
    for line in Path(environment["QUERY_STRING"]).open():
        bucket, key, text = json.loads(line)
        store.put_object(bucket, key, text.encode())
    start_response("200 OK", [])
    return [b""]
make_server("127.0.0.1", int(sys.argv[1]), application, threaded=False).serve_forever()
"""


@dataclass(frozen=True)
class Place:
    """Where a setup keeps what."""

    database: str  # MLflow's, which is filled in bulk
    server: psutil.Process | None  # MLflow's, where there is one


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    seconds: float
    cpu: float  # seconds, of this process and the server
    mlflow: int  # requests
    s3: int


def main() -> None:
    """Fills the registry step by step and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=("team", "small-team", "laptop"), default="team")
    parser.add_argument("--sizes", default="10,100,1000", help="numbers of versions and decisions, rising")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory(prefix="star-registry-") as scratch, ExitStack() as running:
        folder = Path(scratch)
        os.environ["STAR_HOME"] = str(folder / "home")
        place = running.enter_context(servers(arguments.setup, folder))
        for size in sizes:
            begun = time.monotonic()
            fill(size, place=place, folder=folder)
            print(f"{size} versions and decisions after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
            for command, call in commands(folder, place):
                cost = measure(call, place)
                print(f"{size} {command}: {cost}", file=sys.stderr, flush=True)
                costs.setdefault(command, []).append(cost)
    print("\n".join(table(sizes, costs)))


@contextmanager
def servers(setup: str, folder: Path) -> Iterator[Place]:
    """Starts the servers of the tests, and leads the environment to them."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    import conftest
    from conftest import BUCKET, TrackingServer, postgres, s3

    conftest.S3_SERVER = S3_SERVER

    (folder / "home").mkdir(mode=0o700)
    sqlite = f"sqlite:///{folder / 'home' / 'mlflow.db'}"
    os.environ.pop("STAR_REGISTRY", None)
    if setup == "laptop":
        os.environ["MLFLOW_TRACKING_URI"] = sqlite
        yield Place(sqlite, None)
        return
    with ExitStack() as running:
        variables = running.enter_context(s3(folder))
        database = running.enter_context(postgres()) if setup == "team" else sqlite
        server = TrackingServer(database, f"s3://{BUCKET}/mlflow", folder=folder)
        server.start(**variables)
        running.callback(server.stop)
        os.environ.update(variables, MLFLOW_TRACKING_URI=server.uri, STAR_REGISTRY=f"s3://{BUCKET}/star")
        yield Place(database, psutil.Process(server.process.pid))


# Filling


def fill(size: int, *, place: Place, folder: Path) -> None:
    """Fills the registry up to so many versions and decisions. The newest three versions have files, the others tags alone."""
    from star.registry.promotion.open_ledger import open_ledger
    from star.registry.promotion.promote_and_rollback import promote
    from star.registry.promotion.register_model import register_model
    from star.registry.publish import ensure_registered_model
    from star.tracking.server import connect

    client = connect()
    ensure_registered_model(client, NAME)
    have = newest_version(place.database)
    fill_versions(range(have + 1, size - 2), database=place.database)
    fill_records(range(have + 1, size - 2))
    models = [model_folder(folder / "models" / uuid.uuid4().hex) for _ in range(3)]
    made = [
        register_model(model, name=NAME, scores=SCORES, lineage=lineage_of(model.name), model_digest=digest(model.name))
        for model in models
    ]
    fill_ledger(open_ledger(NAME, client), decisions=size - 2)
    for version in made[:2]:
        promote(NAME, version.version)


def fill_versions(numbers: Sequence[int], *, database: str) -> None:
    """Inserts versions with their tags and LoggedModels into MLflow's tables."""
    from mlflow.entities import LoggedModelStatus
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag
    from mlflow.store.tracking.dbmodels.models import SqlLoggedModel, SqlLoggedModelTag
    from sqlalchemy import create_engine, insert

    from star.hashing import digest_of
    from star.registry.publish import CONTENT_TAG, MODEL_TAG
    from star.registry.versions import DIGEST, DIGEST_TAG, DIGESTS_TAG, LINEAGE_TAG, SCORE_TAG, digests_tag
    from star.tracking.server import connect, experiment_id

    experiment = int(experiment_id(connect()))
    old = int(time.time() * 1000) - 400 * 86_400_000  # over a year ago
    engine = create_engine(database)
    for start in range(0, len(numbers), ROWS):
        versions, tags, models, model_tags = [], [], [], []
        for number in numbers[start : start + ROWS]:
            at, files = old + number * 1000, files_of(number)
            source, model_id = f"s3://models/star/{digest(number)}", f"m-{digest(number)[:32]}"
            versions.append(
                {"name": NAME, "version": number, "creation_time": at, "last_updated_time": at} | {"source": source}
            )
            lineage = lineage_of(number)
            known = {DIGEST_TAG: digest(number), DIGESTS_TAG: digests_tag(files, lineage)}
            known |= {SCORE_TAG + key: repr(value) for key, value in SCORES.items()}
            known |= {LINEAGE_TAG + key: value for key, value in lineage.items() if not DIGEST.fullmatch(value)}
            tags += [{"name": NAME, "version": number, "key": key, "value": value} for key, value in known.items()]
            times = {"creation_timestamp_ms": at, "last_updated_timestamp_ms": at}
            place = {"model_id": model_id, "experiment_id": experiment}
            status = LoggedModelStatus.READY.to_int()
            rest = {"name": NAME, "artifact_location": source, "status": status, "lifecycle_stage": "active"}
            models.append(place | times | rest)
            said = {
                MODEL_TAG: NAME,
                DIGEST_TAG: digest(number),
                CONTENT_TAG: digest_of(files),
                "star.source": source,
            }
            model_tags += [place | {"tag_key": key, "tag_value": value} for key, value in said.items()]
        tables = (SqlModelVersion, SqlModelVersionTag, SqlLoggedModel, SqlLoggedModelTag)
        with engine.begin() as connection:
            for table_, rows in zip(tables, (versions, tags, models, model_tags), strict=True):
                connection.execute(insert(table_), rows)
    engine.dispose()


def newest_version(database: str) -> int:
    """The highest number of a version, 0 where there is none."""
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
    from sqlalchemy import create_engine, func, select

    engine = create_engine(database)
    with engine.connect() as connection:
        newest = connection.execute(select(func.max(SqlModelVersion.version))).scalar()
    engine.dispose()
    return newest or 0


def fill_records(numbers: Sequence[int]) -> None:
    """Writes the registrations and the records of versions."""
    from star.registry.promotion.ledger import entry_name
    from star.registry.promotion.open_ledger import open_ledger
    from star.registry.promotion.records import Registration, VersionContent, record_text
    from star.tracking.server import connect

    ledger, entries = open_ledger(NAME, connect()), []
    for number in numbers:
        source, files = f"s3://models/star/{digest(number)}", files_of(number)
        made = Registration(
            files, digest(number), source, "", SCORES, lineage_of(number), "passed", registry=ledger.registry
        )
        said = VersionContent(number, made.content, made.model_digest, "registered", registry=ledger.registry)
        entries.append((ledger.folder_of("registrations"), f"{made.content}-{made.at}", record_text(made)))
        entries.append((ledger.folder_of("versions"), entry_name(number), record_text(said)))
    write_entries(ledger.store, entries)


def fill_ledger(ledger: Any, *, decisions: int) -> None:
    """Writes attempts and decisions up to a number, each promoting another version."""
    from dataclasses import replace

    from star.registry.promotion.ledger import entry_name
    from star.registry.promotion.records import Attempt, Decision, record_text

    newest, entries = ledger.newest(), []
    for seq in range(newest.seq + 1, decisions + 1):
        attempt = replace(Attempt("promote", seq, newest.seq, "passed the gate"), registry=ledger.registry)
        aliases = {"champion": seq, "previous-champion": max(seq - 1, 1)}
        newest = Decision(seq, aliases, attempt, newest.digest, ledger.registry)
        entries.append((ledger.folder_of("attempts"), f"{attempt.at}-{attempt.attempt}", record_text(attempt)))
        entries.append((ledger.folder_of("decisions"), entry_name(seq), record_text(newest)))
    write_entries(ledger.store, entries)


def write_entries(store: Any, entries: Sequence[tuple[str, str, str]]) -> None:
    """Writes (folder, name, text) to a ledger's store, all at once."""
    if not entries:
        return
    if hasattr(store, "engine"):
        from sqlalchemy import text as sql

        statement = sql("INSERT INTO star_records (folder, name, content) VALUES (:folder, :name, :content)")
        with store.engine.begin() as connection:
            connection.execute(
                statement, [dict(zip(("folder", "name", "content"), entry, strict=True)) for entry in entries]
            )
        return
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(
            json.dumps([store.bucket, f"{store.prefix}{folder}/{name}", text]) + "\n" for folder, name, text in entries
        )
        file.flush()
        urllib3.request("POST", f"{os.environ['AWS_ENDPOINT_URL']}/fill?{file.name}", timeout=600)


def digest(of: object) -> str:
    """A digest that looks like that of a model."""
    return hashlib.sha256(str(of).encode()).hexdigest()


def files_of(number: int) -> dict[str, str]:
    """File -> sha256 of a version that has no files."""
    return {file: digest(f"{number} {file}") for file in FILES}


def lineage_of(model: object) -> dict[str, str]:
    """Tags of a lineage as `star register` writes it."""
    return {key: digest(f"{model} {key}") for key in LINEAGE} | {"reading": "2", "gate": "passed", "decided": "yes"}


def model_folder(folder: Path) -> Path:
    """A folder of the shape of a published model, with a lineage that `star lineage` can follow."""
    folder.mkdir(parents=True)
    for file in FILES:
        (folder / file).write_text(f"{folder.name} {file}")
    stage = {
        "stage": "refine",
        "config_digest": "c",
        "code_digest": "c",
        "code_version": "0",
        "inputs": {},
        "origin": {},
    }
    lineage = {
        "model": digest(folder.name),
        "weights": {},
        "tokenizer": hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest(),
        "stages": {digest(folder.name): stage},
        "evaluation": {"digest": digest("evaluation"), **stage},
        "published": {},
    }
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


# Measuring


def commands(folder: Path, place: Place) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names of commands and what they call."""
    from star.registry.lineage_tree import print_lineage
    from star.registry.promotion.promote_and_rollback import rollback
    from star.registry.promotion.promote_by_reference import promote_model
    from star.registry.promotion.reconcile import reconcile
    from star.registry.promotion.register_model import register_model
    from star.registry.tables import print_versions

    newest = str(newest_version(place.database))
    model = model_folder(folder / "models" / uuid.uuid4().hex)

    def register() -> object:
        known = {"scores": SCORES, "lineage": lineage_of(model.name), "model_digest": digest(model.name)}
        return register_model(model, name=NAME, **known)

    yield "models", lambda: print_versions(NAME)
    yield "promote", lambda: promote_model(newest, name=NAME, to="champion", reason="")
    yield "rollback", lambda: rollback(NAME)
    yield "lineage", lambda: print_lineage("champion", name=NAME)
    yield "register", register
    yield "register again", register
    yield "reconcile", lambda: reconcile(NAME)


def measure(call: Callable[[], object], place: Place) -> Cost:
    """Calls a command and returns what it took."""
    with counted_requests() as requests, redirect_stdout(StringIO()):
        before, begun = cpu_seconds(place), time.monotonic()
        call()
        seconds, cpu = time.monotonic() - begun, cpu_seconds(place) - before
    mlflow = urlsplit(os.environ["MLFLOW_TRACKING_URI"]).port
    to_mlflow = sum(port == mlflow for port in requests) if mlflow else 0
    return Cost(round(seconds, 3), round(cpu, 3), to_mlflow, len(requests) - to_mlflow)


@contextmanager
def counted_requests() -> Iterator[list[int | None]]:
    """Yields a list of the ports that requests are sent to; a retry counts too."""
    from urllib3.connectionpool import HTTPConnectionPool

    ports: list[int | None] = []
    send = HTTPConnectionPool._make_request

    def counted(pool: HTTPConnectionPool, *arguments: Any, **options: Any) -> Any:
        ports.append(pool.port)
        return send(pool, *arguments, **options)

    HTTPConnectionPool._make_request = counted  # type: ignore[method-assign]
    try:
        yield ports
    finally:
        HTTPConnectionPool._make_request = send  # type: ignore[method-assign]


def cpu_seconds(place: Place) -> float:
    """CPU time of this process and of the server with its workers."""
    total = time.process_time()
    if place.server:
        for process in (place.server, *place.server.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def table(sizes: Sequence[int], costs: dict[str, list[Cost]]) -> Iterator[str]:
    """The lines of the table."""
    shown = " | ".join(f"{size:,}" for size in sizes)
    yield f"| command | CPU seconds at {shown} | growth | requests to MLflow + S3 at {shown} | growth |"
    yield "|---|" + "---:|" * (2 * len(sizes) + 2)
    for command, found in costs.items():
        cpu = [f"{cost.cpu:.2f}" for cost in found]
        requests = [f"{cost.mlflow} + {cost.s3}" for cost in found]
        grown = [
            exponent(sizes, [cost.cpu for cost in found]),
            exponent(sizes, [cost.mlflow + cost.s3 for cost in found]),
        ]
        yield f"| {command} | {' | '.join([*cpu, grown[0], *requests, grown[1]])} |"


def exponent(sizes: Sequence[int], values: Sequence[float]) -> str:
    """The exponent by which values grow with the sizes, by least squares over their logarithms."""
    if len(sizes) < 2 or min(values) <= 0:
        return ""
    return f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:.2f}"


if __name__ == "__main__":
    main()
