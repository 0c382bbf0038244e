"""The cluster pipeline on this machine, with real processes: shards, retries, an invalid row, and the exit handler in each case."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from kfp import local

from star.config.experiment import Config
from star.folders.manifest import MANIFEST, read_manifest
from star.folders.publish import publish
from star.pipelines.star_pipeline import build_cluster_pipeline
from star.registry.lineage_tree import print_lineage
from star.topk.sequences import read_sequences
from star.topk.store import TopKStore

pytestmark = pytest.mark.slow
SHARDS = {"rollout": 2, "extract-topk": 2, "evaluate": 2}


class Webhook(HTTPServer):
    """A webhook that keeps the summaries it receives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Listener)
        self.received: list[dict] = []


class Listener(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    server = Webhook()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STAR_WEBHOOK", f"http://127.0.0.1:{server.server_address[1]}/secret-path")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the cluster pipeline of a configuration on this machine. Results of earlier tests of this module are cached."""
    monkeypatch.setenv("STAR_HOME", str(place / "home"))
    monkeypatch.setenv("STAR_WORK", str(place / "work"))

    def execute(config: Config) -> None:
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(place / "pipeline"),
            enable_caching=True,
            cache_root=str(place / "cache"),
        )
        build_cluster_pipeline(config, image="unused")()

    return execute


@pytest.fixture(scope="module")
def sharded(micro: Config) -> Config:
    """The micro profile with two shards per stage, and retries without a pause."""
    retry = micro.cluster.retry.model_copy(update={"backoff_seconds": 0})
    cluster = micro.cluster.model_copy(update={"shards": SHARDS, "retry": retry})
    return micro.model_copy(update={"cluster": cluster})


def with_rollout(config: Config, **settings: object) -> Config:
    return config.model_copy(update={"rollout": config.rollout.model_copy(update=settings)})


def results(place: Path) -> dict[tuple[str, str | None], Path]:
    """The finished folders in the pipeline's root: (stage, shard or None) -> folder."""
    found = {}
    for manifest in sorted((place / "pipeline").rglob(MANIFEST), key=lambda file: file.stat().st_mtime):
        content = read_manifest(manifest.parent)
        found[content.stage, content.part] = manifest.parent
    return found


def assert_same_signal(merged: Path, whole: Path) -> None:
    """The merged store has the files of the shards, and the rows of the store that one task wrote."""
    stores = TopKStore(merged), TopKStore(whole)
    (names, _), (merged_names, _) = read_sequences(whole), read_sequences(merged)
    assert list(merged_names) == sorted(names)
    for name in names:
        (ids, logprobs), (whole_ids, whole_logprobs) = (store[name] for store in stores)
        assert (ids == whole_ids).all() and (logprobs == whole_logprobs).all()


def evaluated(folder: Path) -> tuple[dict, bytes]:
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["stages"] = [stage["stage"] for stage in evaluation["stages"]]
    return evaluation, (folder / "outcomes.jsonl").read_bytes()


def test_merged_shards_equal_the_result_of_one_task(
    run, sharded: Config, finished: dict[str, Path], place: Path, webhook: Webhook
) -> None:
    run(sharded)
    folders = results(place)
    for stage in SHARDS:
        assert {part for name, part in folders if name == stage} == {"1/2", "2/2", None}
    assert_same_signal(folders["extract-topk", None], finished["extract-topk"])
    # Everything after the store is equal to the byte. The evaluation also records its inputs, and there the stores differ.
    for stage in ("rollout", "distill", "refine"):
        assert read_manifest(folders[stage, None]).digest == read_manifest(finished[stage]).digest
    assert evaluated(folders["evaluate", None]) == evaluated(finished["evaluate"])
    assert (folders["register", None] / "registration.json").is_file()
    assert print_lineage("champion", name="star") == []
    [summary] = webhook.received
    assert summary["state"] == "SUCCEEDED" and summary["kept"] == []


def test_a_shard_that_is_killed_twice_succeeds_on_the_third_attempt(
    run, sharded: Config, place: Path, webhook: Webhook, capfd: pytest.CaptureFixture
) -> None:
    killed: list[int] = []
    over = threading.Event()

    def kill_the_second_shard() -> None:
        while len(killed) < 2 and not over.is_set():
            for child in psutil.Process().children(recursive=True):
                try:
                    words = child.cmdline()
                except psutil.Error:
                    continue
                is_shard = "star.cli" in words and "rollout" in words and "--shard=2/2" in words
                # The partial folder shows that the shards have started.
                if is_shard and child.pid not in killed and at_work():
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
            time.sleep(0.01)

    def at_work() -> bool:
        return len(list((place / "work").glob("rollout-*/state"))) > 0

    killer = threading.Thread(target=kill_the_second_shard)
    killer.start()
    try:
        run(with_rollout(sharded, temperature=0.31))
    finally:
        over.set()
        killer.join()
    assert len(killed) == 2
    log = capfd.readouterr().out
    ends = re.findall(r"^ *attempt (\d) of 3 \(rollout 2/2\) ended after [\d.]+ s: (\w+)", log, re.MULTILINE)
    assert ends == [("1", "killed"), ("2", "killed"), ("3", "done")]
    assert webhook.received[-1]["state"] == "SUCCEEDED"


def test_an_invalid_row_fails_the_run_and_is_named(
    run, sharded: Config, place: Path, webhook: Webhook, capfd: pytest.CaptureFixture
) -> None:
    data = results(place)["synthesize", None]
    invalid = place / "invalid"
    shutil.copytree(data, invalid)
    rows = [json.loads(line) for line in (invalid / "train.jsonl").read_text().splitlines()]
    rows[3]["messages"][-1]["tool_calls"] = [{"arguments": {}}]
    (invalid / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    publish(invalid, out=data, manifest=replace(read_manifest(data), files=[]))
    with pytest.raises(RuntimeError, match="rollout"):
        run(with_rollout(sharded, temperature=0.32))
    log = capfd.readouterr().out
    # kfp.local starts a task again that failed, which KFP does not.
    ends = re.findall(
        r"^ *attempt (\d) of 3 \(rollout \d/2\) ended after [\d.]+ s: input, no other attempt$", log, re.MULTILINE
    )
    assert ends and set(ends) == {"1"}
    assert f"star: {data / 'train.jsonl'}, line 4: not a row: messages.1.tool_calls.0.name" in log
    summary = webhook.received[-1]
    assert summary["state"] == "FAILED"
    assert [name.split("-")[0] for name in summary["kept"]] == ["rollout", "rollout"]
