"""Checkpoints in the object store, against a real server of the protocol over loopback."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer

from star.errors import InputError
from star.folders import checkpoints_s3
from star.folders.workspace import open_workspace

FINGERPRINT = "f" * 64


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    requests.post(f"http://{host}:{port}/moto-api/reset")  # servers of one process share what they hold
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "STAR_CHECKPOINTS": "s3://star/checkpoints",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="star")
    yield client
    server.stop()


def objects(store) -> set[str]:
    return {entry["Key"].rpartition("/")[2] for entry in store.list_objects_v2(Bucket="star").get("Contents", [])}


def at_work(out: Path, *, fail: bool = True) -> dict[str, str]:
    """One try of a work: what its state held when it began. It writes a checkpoint, and fails unless told otherwise."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        open_workspace(out, stage="distill", fingerprint=FINGERPRINT, resume=True) as workspace,
    ):
        found = {
            file.relative_to(workspace.state).as_posix(): file.read_text()
            for file in workspace.state.rglob("*")
            if file.is_file()
        }
        step = len(found) + 1
        (workspace.state / "ckd").mkdir(exist_ok=True)
        (workspace.state / "ckd" / f"checkpoint-{step}").write_text(f"weights of step {step}")
        checkpoints_s3.upload_state(workspace.state)
        if fail:
            raise KeyboardInterrupt
    return found


def test_a_try_on_another_disk_begins_where_the_last_one_ended(store, tmp_path: Path) -> None:
    assert at_work(tmp_path / "a" / "out") == {}
    assert at_work(tmp_path / "b" / "out") == {"ckd/checkpoint-1": "weights of step 1"}
    assert set(at_work(tmp_path / "c" / "out")) == {"ckd/checkpoint-1", "ckd/checkpoint-2"}
    assert len(objects(store)) == 4  # three contents and the index


def test_a_disk_that_has_a_checkpoint_keeps_its_own(store, tmp_path: Path) -> None:
    at_work(tmp_path / "a" / "out")
    at_work(tmp_path / "b" / "out")
    assert set(at_work(tmp_path / "a" / "out")) == {"ckd/checkpoint-1"}


def test_what_was_dropped_here_is_dropped_there(store, tmp_path: Path) -> None:
    at_work(tmp_path / "a" / "out")
    state = tmp_path / "a" / ".out.partial" / "state"
    shutil.rmtree(state / "ckd")
    (state / "base").write_text("x")
    checkpoints_s3.upload_state(state)
    assert len(objects(store)) == 2


def test_a_finished_work_leaves_nothing(store, tmp_path: Path) -> None:
    at_work(tmp_path / "a" / "out")
    at_work(tmp_path / "b" / "out", fail=False)
    assert objects(store) == set()


def test_a_store_that_is_away_does_not_end_the_training(
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    store.delete_bucket(Bucket="star")
    monkeypatch.setattr(checkpoints_s3, "download_state", lambda state, fingerprint: None)
    at_work(tmp_path / "a" / "out")
    assert "the checkpoint is on this disk only" in capsys.readouterr().err


def test_a_damaged_or_hostile_copy_is_refused(store, tmp_path: Path) -> None:
    at_work(tmp_path / "a" / "out")
    prefix = f"checkpoints/{FINGERPRINT}"
    index = json.loads(store.get_object(Bucket="star", Key=f"{prefix}/index.json")["Body"].read())
    [digest] = index.values()
    store.put_object(Bucket="star", Key=f"{prefix}/{digest}", Body=b"other weights")
    with pytest.raises(InputError, match="has another sha256"):
        at_work(tmp_path / "b" / "out", fail=False)
    store.put_object(Bucket="star", Key=f"{prefix}/index.json", Body=json.dumps({"../../escape": digest}).encode())
    with pytest.raises(InputError, match="outside its folder"):
        at_work(tmp_path / "c" / "out", fail=False)
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize(
    "text", ["no json", "[]", "[" * 100_000, '{"ckd/x": 5}', '{"": "' + "0" * 64 + '"}', '{"x": "../y"}']
)
def test_an_index_of_another_form_is_named_and_does_not_end_the_training(store, tmp_path: Path, text: str) -> None:
    """One PUT of whoever can write to the bucket."""
    store.put_object(Bucket="star", Key=f"checkpoints/{FINGERPRINT}/index.json", Body=text.encode())
    with pytest.raises(InputError, match=rf"{FINGERPRINT}/index\.json is not what STAR wrote"):
        at_work(tmp_path / "resumed")
    state = tmp_path / "running" / "state"
    state.mkdir(parents=True)
    (state / "checkpoint-1").write_text("weights")
    (state.parent / "fingerprint").write_text(FINGERPRINT)
    checkpoints_s3.upload_state(state)
    found = store.get_object(Bucket="star", Key=f"checkpoints/{FINGERPRINT}/index.json")
    assert list(json.loads(found["Body"].read())) == ["checkpoint-1"]
