"""The bucket of published files: what somebody else put there neither passes for a model's files nor keeps them out."""

from pathlib import Path

import pytest

from star.folders.s3_client import s3_client
from star.registry.bucket import address_of
from star.registry.find_model import download_model
from star.registry.location import split_s3
from star.registry.promotion.register_model import register_model
from star.registry.publish import hash_files

LOCATION = "s3://models/planted"


@pytest.fixture
def bucket(home: Path, s3_store: dict[str, str], environment: pytest.MonkeyPatch) -> None:
    for name, value in s3_store.items():
        environment.setenv(name, value)
    environment.setenv("STAR_REGISTRY", LOCATION)


def put(address: str, path: str, body: bytes) -> None:
    bucket, prefix = split_s3(address)
    s3_client().put_object(Bucket=bucket, Key=f"{prefix.rstrip('/')}{path}", Body=body)


def register(model: Path) -> None:
    register_model(model, name="tiny", scores={}, lineage={}, model_digest="d1")


@pytest.mark.parametrize("planted", ["the list alone", "other bytes", "other size"])
def test_what_lay_at_the_address_before_is_compared(bucket: None, model: Path, tmp_path: Path, planted: str) -> None:
    (model / "config.json").write_text(f'{{"model_type": "qwen3", "for": "{planted}"}}')  # an address of its own
    address = address_of(hash_files(model), location=LOCATION)
    put(address, ".json", b"{}")
    if planted != "the list alone":
        size = (model / "model.safetensors").stat().st_size
        put(address, "/model.safetensors", b"x" * (size if planted == "other bytes" else size + 1))
    register(model)
    assert hash_files(download_model("tiny/1", tmp_path / "got")) == hash_files(model)


def test_what_lies_there_whole_is_not_sent_again(bucket: None, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(model)
    sent = []
    monkeypatch.setattr(s3_client(), "upload_file", lambda path, *_: sent.append(Path(path).name))
    register_model(model, name="twin", scores={}, lineage={}, model_digest="d1")
    assert sent == []


def test_registering_again_repairs_the_files(bucket: None, model: Path, tmp_path: Path) -> None:
    register(model)
    put(address_of(hash_files(model), location=LOCATION), "/tokenizer.json", b"{ }")
    register(model)
    assert hash_files(download_model("tiny/1", tmp_path / "got")) == hash_files(model)
