"""The place of the ledger must let one of several writers win: stores that do not are refused before a decision rests on them."""

from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from star.errors import InputError
from star.registry.promotion.conditional_writes import require_conditional_writes
from star.registry.promotion.ledger_store import S3LedgerStore
from star.registry.promotion.open_ledger import LOCATION_TAG
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.reconcile import reconcile
from star.tracking.server import connect

ODD_KINDS = [
    ("ignores", "created the same record twice: it ignores `If-None-Match: \\*`"),
    ("late", r"created the same record for \d of 8 writers at the same time"),
    ("refuses", "answers a write with `If-None-Match: \\*` with NotImplemented"),
    ("inverted", "refuses to create a new record"),
]


@pytest.mark.parametrize(("kind", "fault"), ODD_KINDS)
def test_a_store_in_which_two_promoters_could_win_is_refused(odd_store: Callable, kind: str, fault: str) -> None:
    server = odd_store(kind)
    for _ in range(2):  # a refusal is not remembered: the store may be replaced behind its address
        with pytest.raises(InputError, match=rf"s3://star/registry at {server.uri} {fault}.*SeaweedFS 4.18"):
            require_conditional_writes(S3LedgerStore("s3://star/registry"))
    assert server.objects == {}


def test_an_honest_store_is_asked_once_per_process(odd_store: Callable) -> None:
    server = odd_store("honest")
    require_conditional_writes(S3LedgerStore("s3://star/registry"))
    assert server.objects == {} and (asked := server.requests) > 0
    require_conditional_writes(S3LedgerStore("s3://star/registry"))
    assert server.requests == asked
    require_conditional_writes(S3LedgerStore("s3://elsewhere/registry"))
    assert server.requests > asked


def test_a_versioned_bucket_keeps_nothing_of_the_check(
    s3_store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_store.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_store["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    require_conditional_writes(S3LedgerStore("s3://versioned"))
    versions = client.list_object_versions(Bucket="versioned")
    assert not versions.get("Versions") and not versions.get("DeleteMarkers")


def test_a_missing_bucket_is_named(s3_store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_store.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"s3://absent/star at http.*NoSuchBucket, the bucket or a file is missing"):
        require_conditional_writes(S3LedgerStore("s3://absent/star"))


def test_a_promotion_in_such_a_store_leaves_no_trace(
    home: Path, model: Path, older_star: Callable, odd_store: Callable
) -> None:
    older_star(model, digest="d1")
    server = odd_store("ignores")
    with pytest.raises(InputError, match="created the same record twice"):
        promote("tiny", 1)
    assert server.objects == {}
    # The place was not noted either, so that a better one can be set.
    assert LOCATION_TAG not in connect().get_registered_model("tiny").tags


def test_a_ledger_that_was_begun_in_such_a_store_takes_no_further_decision(
    home: Path, model: Path, older_star: Callable, odd_store: Callable
) -> None:
    older_star(model, digest="d1")
    connect().set_registered_model_tag("tiny", LOCATION_TAG, "s3://star/registry")
    server = odd_store("ignores")
    for command in (lambda: promote("tiny", 1), lambda: reconcile("tiny")):
        with pytest.raises(InputError, match="created the same record twice"):
            command()
    assert server.objects == {}
