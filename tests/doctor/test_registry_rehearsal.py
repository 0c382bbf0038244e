"""The pre-flight's rehearsal of the end of a run: it leaves nothing, whatever happens, and touches nothing of the real model."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import boto3
import pytest
from mlflow.exceptions import MlflowException

from star.doctor import registry_rehearsal
from star.doctor.registry_rehearsal import PURPOSE, TAG, rehearse_registration
from star.errors import InputError
from star.registry.needed import read_needs
from star.registry.promotion.ledger_store import SqlLedgerStore
from star.registry.promotion.promote_and_rollback import champion, promote
from star.registry.promotion.register_model import register_model
from star.tracking.server import connect, experiment_id, tracking_uri


@pytest.fixture
def bucket(
    home: Path, s3_store: dict[str, str], environment: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Callable:
    """A registry of the test's own: MLflow on a database, ledgers and weights in S3. Returns what the bucket holds."""
    for name, value in s3_store.items():
        environment.setenv(name, value)
    environment.setattr(registry_rehearsal, "WEIGHT_BYTES", 1000)
    prefix = f"{request.node.name}/"
    environment.setenv("STAR_REGISTRY", f"s3://models/{prefix}")
    client = boto3.client("s3", endpoint_url=s3_store["AWS_ENDPOINT_URL"])

    def objects() -> dict[str, str]:
        found = client.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", [])
        return {entry["Key"].removeprefix(prefix): entry["ETag"] for entry in found}

    return objects


def registered() -> list[str]:
    return [model.name for model in connect().search_registered_models()]


def logged_models() -> int:
    return len(connect().search_logged_models([experiment_id(connect())]))


def test_nothing_is_left_and_the_real_model_is_untouched(bucket: Callable, model: Path) -> None:
    register_model(model, name="star", scores={}, lineage={}, model_digest="real")
    promote("star", 1, reason="the real champion")
    before, tags = bucket(), connect().get_registered_model("star").tags
    assert rehearse_registration("star").endswith(", and removed")
    assert bucket() == before and connect().get_registered_model("star").tags == tags
    assert registered() == ["star"] and logged_models() == 1
    assert champion("star").version == 1


def test_a_ledger_in_the_database_is_left_as_it_was(home: Path) -> None:
    assert rehearse_registration("star").endswith(", and removed")
    store = SqlLedgerStore(tracking_uri())
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM star_records").scalar() == 0
    assert registered() == [] and logged_models() == 0
    assert [path for path in (home / "mlartifacts").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("step", ["register_model", "download_model"])
def test_everything_is_removed_after_a_failure(step: str, bucket: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise InputError("the store is full")

    monkeypatch.setattr(registry_rehearsal, step, fail)
    with pytest.raises(InputError, match="the store is full"):
        rehearse_registration("star")
    assert (bucket(), registered(), logged_models()) == ({}, [], 0)


@pytest.mark.slow
def test_what_a_killed_one_leaves_is_recognised_and_removed_later(
    bucket: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect()
    if not (child := os.fork()):
        registry_rehearsal.download_model = lambda *arguments: os._exit(9)  # type: ignore[assignment]
        rehearse_registration("star")
    os.waitpid(child, 0)
    left = bucket()
    places = {key.split("/")[0] for key in left}
    assert places == {".preflight", "models", "star-preflight-0"}
    assert connect().get_registered_model("star-preflight-0").tags[TAG] == PURPOSE
    # Its claim holds for an hour. Another pre-flight takes another name, and leaves everything as it was.
    assert rehearse_registration("star").endswith(", and removed")
    assert (bucket(), registered()) == (left, ["star-preflight-0"])
    monkeypatch.setattr(registry_rehearsal, "CLAIM_HOLDS", timedelta(0))
    assert rehearse_registration("star").endswith(", and removed")
    assert (bucket(), registered(), logged_models()) == ({}, [], 0)


@pytest.mark.slow
def test_an_account_that_may_not_delete_models_leaves_one_version(
    bucket: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise MlflowException("Permission denied")

    monkeypatch.setattr(registry_rehearsal, "delete_logged_models", refuse)
    for _ in range(2):
        detail = rehearse_registration("star")
        assert detail.endswith(
            "star-preflight-0 stays for the next pre-flight (MLflow's account may not delete models)"
        )
        model = connect().get_registered_model("star-preflight-0")
        assert (model.tags, model.aliases, bucket()) == ({TAG: PURPOSE}, {}, {})
        assert [version.version for version in connect().search_model_versions()] == [1]
        assert logged_models() == 1
    assert read_needs().models == {"star-preflight-0"}  # it is in the way of no `star clean`


def test_an_account_that_may_not_create_models_is_told_so(bucket: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise MlflowException("Permission denied")

    monkeypatch.setattr("mlflow.MlflowClient.create_registered_model", refuse)
    with pytest.raises(InputError, match="check the rights of MLFLOW_TRACKING_USERNAME"):
        rehearse_registration("star")
    assert (bucket(), registered()) == ({}, [])


def test_a_model_of_somebody_else_is_not_touched(bucket: Callable) -> None:
    connect().create_registered_model("star-preflight-0", tags={"mine": "yes"})
    with pytest.raises(InputError, match="without the tag"):
        rehearse_registration("star")
    assert connect().get_registered_model("star-preflight-0").tags == {"mine": "yes"}
    assert bucket() == {}
