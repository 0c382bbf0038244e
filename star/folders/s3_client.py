"""Connects to S3: places like s3://bucket/folder, one client per process, and failures as one line that says what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from star.errors import InputError

ATTEMPTS = 8  # of one request, with growing pauses


@dataclass(frozen=True)
class Place:
    """A folder in S3."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str | Path) -> "Place":
        """Reads s3://bucket/folder; a Path, which folds the slashes, does too."""
        bucket, _, prefix = str(url).removeprefix("s3:").lstrip("/").partition("/")
        if not bucket or not prefix.strip("/"):
            raise InputError(f"{url} is not like s3://bucket/folder")
        return cls(bucket, prefix.strip("/"))

    def key(self, name: str) -> str:
        """The object key of a file of the folder."""
        return f"{self.prefix}/{name}"

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def s3_client(endpoint: str | None = None):
    """A boto3 client for the endpoint, or where none is given for that of AWS_ENDPOINT_URL, else for Amazon's; one a process.

    It tries a request `ATTEMPTS` times, and slows down where the store throttles it.
    """
    return _client_of(endpoint or os.environ.get("AWS_ENDPOINT_URL"), ATTEMPTS, os.getpid())


@lru_cache(maxsize=4)
def _client_of(endpoint: str | None, attempts: int, process: int):
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "adaptive", "max_attempts": attempts},
        request_checksum_calculation="when_required",  # newer defaults have corrupted objects on some stores
        response_checksum_validation="when_required",
        connect_timeout=10,
        read_timeout=60,
    )
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def is_remote(place: str | Path) -> bool:
    """Whether the place is in S3. A Path, which folds the slashes, counts too."""
    return str(place).startswith("s3:/")


@contextmanager
def connected(place: Place) -> Iterator:
    """A boto3 client whose failures are one line with the cure."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield s3_client()
    except ClientError as error:
        code = error.response["Error"].get("Code", "?")
        raise InputError(f"{place}: the store answered {code}, {_cure(code)}") from error
    except (BotoCoreError, Boto3Error, ConnectionError) as error:
        raise InputError(
            f"{place} cannot be used ({type(error).__name__}: {error}): check AWS_ENDPOINT_URL, the credentials and the network; "
            "run again to go on"
        ) from error


def _cure(code: str) -> str:
    if code in ("NoSuchBucket", "404"):
        return "the bucket or a file is missing: make it, or correct the URL"
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return "it refuses these credentials: check AWS_ACCESS_KEY_ID and the bucket's policy"
    return f"{ATTEMPTS} times: run again later, files that arrived whole are kept"
