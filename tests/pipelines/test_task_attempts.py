"""A compiled task as a pod runs it, by its own command, while its object store is away: attempts, pauses and weights."""

import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from star.cluster.supervisor import ATTEMPT_LINE
from star.config.experiment import Config
from star.folders.manifest import read_manifest
from star.pipelines.star_pipeline import compile_pipeline

pytestmark = pytest.mark.slow
# Put on the path of a task's processes: a store that is away is asked twice, because the pauses between eight requests add up to a minute.
SITECUSTOMIZE = "from star.folders import s3_client; s3_client.ATTEMPTS = 2"


@pytest.fixture(scope="module")
def compiled(micro: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Display name -> task and container of the micro profile's pipeline, with short pauses."""
    retry = micro.cluster.retry.model_copy(update={"attempts": 3, "backoff_seconds": 1})
    config = micro.model_copy(update={"cluster": micro.cluster.model_copy(update={"retry": retry})})
    file = tmp_path_factory.mktemp("compiled") / "micro.yaml"
    compile_pipeline(config, file, image="unused")
    spec = next(yaml.safe_load_all(file.read_text()))
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"].values()
    return {
        task["taskInfo"]["name"]: {
            "task": task,
            "container": spec["deploymentSpec"]["executors"][
                spec["components"][task["componentRef"]["name"]]["executorLabel"]
            ]["container"],
        }
        for task in tasks
    }


def start(task: dict, folder: Path, *, inputs: dict[str, Path], output: str, **environment: str) -> subprocess.Popen:
    """Runs a task's own command as KFP's launcher does, with its own environment."""

    def artifact(path: Path, kind: str = "Artifact") -> dict:
        return {"artifacts": [{"name": path.name, "uri": str(path), "type": {"schemaTitle": f"system.{kind}"}}]}

    parameters = {
        name: value["runtimeValue"]["constant"]
        for name, value in task["task"]["inputs"]["parameters"].items()
        if "runtimeValue" in value
    }
    executor_input = {
        "inputs": {
            "parameterValues": parameters,
            "artifacts": {key: artifact(path) for key, path in inputs.items()},
        },
        "outputs": {
            "artifacts": {output: artifact(folder / "out"), "metrics": artifact(folder / "metrics", "Metrics")},
            "outputFile": str(folder / "outputs.json"),
        },
    }
    container = task["container"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", str(Path(__file__).parents[2]))])
    bins = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        [
            *container["command"],
            *(word.replace("{{$}}", json.dumps(executor_input)) for word in container["args"]),
        ],
        env={
            **os.environ,
            **given,
            "PATH": bins,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "STAR_WORK": str(folder / "work"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def attempts(log: str) -> list[tuple[str, str | None]]:
    """How each attempt ended, and the pause after it."""
    found = [ATTEMPT_LINE.fullmatch(line) for line in log.splitlines()]
    return [(match["kind"], match["pause"]) for match in found if match]


class Gate(socketserver.ThreadingTCPServer):
    """A door to a server that can be closed: connections are then cut at once."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Passage)
        self.port, self.is_open = port, False


class Passage(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        if not self.server.is_open:
            return
        with socket.create_connection(("127.0.0.1", self.server.port)) as behind:
            back = threading.Thread(target=pump, args=(behind, self.request), daemon=True)
            back.start()
            pump(self.request, behind)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def gate(s3_store: dict[str, str]) -> Iterator[Gate]:
    with Gate(urlsplit(s3_store["AWS_ENDPOINT_URL"]).port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_training_whose_object_store_was_away_twice_ends_as_if_it_had_not_been(
    compiled: dict[str, dict],
    finished: dict[str, Path],
    gate: Gate,
    s3_store: dict[str, str],
    tmp_path: Path,
) -> None:
    variables = {**s3_store, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{gate.server_address[1]}"}
    task = start(
        compiled["distill"],
        tmp_path,
        inputs={"topk": finished["extract-topk"]},
        output="distilled",
        STAR_CHECKPOINTS="s3://models/checkpoints",
        **variables,
    )
    lines = []
    for line in task.stdout:
        lines.append(line)
        gate.is_open = len(attempts("".join(lines))) == 2
    assert task.wait(60) == 0, "".join(lines)[-3000:]
    log = "".join(lines)
    assert attempts(log) == [("unavailable", "1"), ("unavailable", "2"), ("done", None)]
    assert re.search(
        r"\(distill\) ended after [\d.]+ s: unavailable, next in 1 s: s3://models/checkpoints/\w+ cannot be used", log
    )
    assert read_manifest(tmp_path / "out").digest == read_manifest(finished["distill"]).digest
