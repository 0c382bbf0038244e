"""Connects to S3: one boto3 client per process; failures become one line with the cure."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from star.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from botocore.client import BaseClient

ATTEMPTS = 8  # per request, with growing pauses; botocore retries by itself
CONNECTIONS = 16  # kept open: at least as many as threads that share a client, or some of them connect anew each time
CHUNK = 8 << 20  # bytes read at a time
BUSY_CODES = ("SlowDown", "RequestTimeout", "TooManyRequests", "Throttling", "ThrottlingException")


def check_key(key: str, *, source: str) -> None:
    """Checks that a bucket or an object's key is also a path that stays below the folder it is copied to.

    Raises:
        InputError: a part of it is `.` or `..`, or it has a control character.
    """
    if any(part in (".", "..") for part in key.replace("\\", "/").split("/")) or not key.isprintable():
        raise InputError(
            f"{source} is refused: a part of it is `.` or `..`, or it has a control character, so its copy could be written elsewhere"
        )


def check_name(name: str, *, source: str) -> None:
    """Checks that the name of a file in a folder of others is a path below that folder: `check_key`, and no empty part.

    An object `models/base//etc/passwd` has the name `/etc/passwd` in the folder `models/base`.

    Raises:
        InputError: it is none.
    """
    check_key(name, source=source)
    if not all(name.split("/")):
        raise InputError(f"{source} is refused: a part of its name is empty, so its copy could be written elsewhere")


@dataclass(frozen=True)
class S3Folder:
    """A folder in S3: all objects whose key starts with the prefix."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str | Path) -> "S3Folder":
        """Reads s3://bucket/folder. A Path, which turns the two slashes into one, is read too.

        Raises:
            InputError: the text does not have that form, or a part of it is `.` or `..`.
        """
        bucket, _, prefix = str(url).removeprefix("s3:").lstrip("/").partition("/")
        if not bucket or not prefix.strip("/"):
            raise InputError(f"{url} is not like s3://bucket/folder")
        # The local copy of the folder is kept at bucket/prefix below the home, which such parts would leave.
        check_key(f"{bucket}/{prefix}", source=str(url))
        return cls(bucket, prefix.strip("/"))

    def key(self, name: str) -> str:
        """The object key of a file in this folder."""
        return f"{self.prefix}/{name}"

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def s3_client(endpoint: str | None = None) -> "BaseClient":
    """The process's boto3 client for an endpoint: the given one, else AWS_ENDPOINT_URL, else Amazon's.

    It sends a request up to `ATTEMPTS` times, and sends more slowly when the store throttles it.
    """
    return _client_of(endpoint or os.environ.get("AWS_ENDPOINT_URL"), ATTEMPTS, os.getpid())


@lru_cache(maxsize=4)
def _client_of(endpoint: str | None, attempts: int, process: int) -> "BaseClient":
    """One client per endpoint and process: a forked process must not share the connections of its parent."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "adaptive", "max_attempts": attempts},
        request_checksum_calculation="when_required",  # newer defaults have corrupted objects on some stores
        response_checksum_validation="when_required",
        max_pool_connections=CONNECTIONS,
        connect_timeout=10,
        read_timeout=60,
    )
    # Not of the default session, which keeps the first keys that any code of the process has used.
    return boto3.Session().client("s3", endpoint_url=endpoint, config=config)


def require_bucket(bucket: str, client: "BaseClient") -> None:
    """Checks that a bucket exists. Some stores make one at the first write, so a mistyped name would go unseen.

    Raises:
        InputError: it does not.
    """
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        # Who may not ask for the bucket can still write below a prefix of it.
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise InputError(
                f"{client.meta.endpoint_url} has no bucket {bucket}: make it, or correct the URL"
            ) from error


def is_s3_url(path: str | Path) -> bool:
    """Whether the path is s3://..., also as a Path, which turns the two slashes into one."""
    return str(path).startswith("s3:/")


@contextmanager
def open_s3(folder: S3Folder) -> Iterator["BaseClient"]:
    """Yields the client; inside the block its errors become an InputError that names the folder and the cure."""
    with s3_errors(str(folder)):
        yield s3_client()


@contextmanager
def s3_errors(place: str) -> Iterator[None]:
    """Turns the errors of boto3's clients inside the block into an InputError that names the place and the cure.

    It is an UnavailableError where the store is down, cannot be reached, or answers that it is busy.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import RetriesExceededError

    try:
        yield
    except ClientError as error:
        code = error.response["Error"].get("Code", "?")
        kind = UnavailableError if is_outage(error) else InputError
        raise kind(f"{place}: the store answered {code}, {_cure(code)}") from error
    except (BotoCoreError, Boto3Error, RetriesExceededError, ConnectionError) as error:
        kind = UnavailableError if is_outage(error) else InputError
        raise kind(
            f"{place} cannot be used ({type(error).__name__}: {error}): check AWS_ENDPOINT_URL, the credentials and the network; "
            "run again to go on"
        ) from error


def is_outage(error: BaseException) -> bool:
    """Whether an error of boto3's clients, or one behind it, says that the store is down, out of reach or too busy."""
    from boto3.exceptions import RetriesExceededError
    from botocore import exceptions as botocore
    from s3transfer import exceptions as transfer  # of downloads into an open file

    match error:
        case botocore.ClientError():
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return (status >= 500 and status != 501) or error.response["Error"].get("Code") in BUSY_CODES
        case botocore.SSLError():  # a certificate that is not trusted is none tomorrow either
            return False
        case (
            botocore.ConnectionError()
            | botocore.HTTPClientError()
            | botocore.IncompleteReadError()
            | RetriesExceededError()
            | transfer.RetriesExceededError()
            | ConnectionError()
        ):
            return True
    # boto3's transfers raise an error of their own about it.
    behind = error.__cause__ or error.__context__
    return behind is not None and is_outage(behind)


def holds_object(client: "BaseClient", bucket: str, key: str, *, size: int, digest: str) -> bool:
    """Whether the bucket holds an object of that size and sha256.

    It is read: the user's metadata can be planted with an object, and not every store computes checksums. Reading costs
    no more than the upload that it saves.
    """
    from botocore.exceptions import ClientError

    try:
        answer = client.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        return False
    with closing(answer["Body"]) as body:
        if answer["ContentLength"] != size:
            return False
        found = hashlib.sha256()
        for chunk in body.iter_chunks(CHUNK):
            found.update(chunk)
    return found.hexdigest() == digest


def _cure(code: str) -> str:
    if code in ("NoSuchBucket", "NoSuchKey", "404"):
        return "the bucket or a file is missing: make it, or correct the URL"
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return "it refuses these credentials: check AWS_ACCESS_KEY_ID and the bucket's policy"
    return f"{ATTEMPTS} times: run again later, files that arrived whole are kept"
