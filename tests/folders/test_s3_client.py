"""An object store that is down or too busy is told from one that refuses: only the first is worth another attempt."""

import threading
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest

from star.errors import InputError, UnavailableError
from star.folders import s3_client
from star.folders.s3_client import S3Folder, open_s3
from tests.conftest import free_port
from tests.json_handler import JsonHandler


class Answering(JsonHandler):
    def do_GET(self) -> None:
        status, code = self.server.next_answer
        self.answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    """A store that gives every request the same answer. The client sends each request once."""
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "loopback")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "loopback-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        yield server
        server.shutdown()


def ask() -> InputError:
    with pytest.raises(InputError) as failed, open_s3(S3Folder("models", "here")) as client:
        client.get_object(Bucket="models", Key="here/index.json")
    return failed.value


@pytest.mark.parametrize(
    ("status", "code", "is_outage"),
    [
        (503, "SlowDown", True),
        (500, "InternalError", True),
        (400, "RequestTimeout", True),
        (403, "AccessDenied", False),
        (404, "NoSuchBucket", False),
        (409, "OperationAborted", False),
        (501, "NotImplemented", False),
    ],
)
def test_an_answer_says_whether_another_attempt_may_succeed(
    status: int, code: str, is_outage: bool, store: HTTPServer
) -> None:
    store.next_answer = status, code
    assert isinstance(ask(), UnavailableError) == is_outage


def test_a_store_that_cannot_be_reached_may_come_back(store: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert isinstance(ask(), UnavailableError)


def test_an_upload_that_was_cut_may_succeed_later(
    store: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """boto3's transfers wrap the error of the request."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError), open_s3(S3Folder("models", "here")) as client:
        client.upload_file(str(tmp_path / "file"), "models", "here/file")


def test_missing_keys_are_for_the_user_to_give(
    store: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3_client._client_of.cache_clear()
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    error = ask()
    assert "NoCredentialsError" in str(error) and not isinstance(error, UnavailableError)
    s3_client._client_of.cache_clear()
