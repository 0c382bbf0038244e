"""An object of more than ten of s3transfer's parts arrives, on a real S3 server."""

import hashlib
from pathlib import Path

import pytest

from star.folders.s3_client import s3_client
from star.folders.s3_transfer import download_object
from tests.conftest import BUCKET
from tests.team_data import use_server


def test_an_object_of_ninety_megabytes_arrives(
    s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_server(monkeypatch, s3_server)
    client, content = s3_client(), bytes(90 * 2**20)
    client.put_object(Bucket=BUCKET, Key="large", Body=content)
    found = download_object(client, BUCKET, "large", tmp_path / "large")
    assert found == hashlib.sha256(content).hexdigest() and (tmp_path / "large").stat().st_size == len(content)
