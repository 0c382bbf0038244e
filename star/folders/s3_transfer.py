"""Sends one file to S3, in parts that an interrupted upload need not send again, and receives one; both are hashed on the way."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from star.digest_cache import HashingFile
from star.errors import InputError
from star.folders.s3_client import ATTEMPTS

if TYPE_CHECKING:
    from botocore.client import BaseClient

PART_BYTES = 16 * 2**20  # of a multipart upload: at most this much is sent again after a cut connection
MAX_PARTS = 10_000  # per object, S3's limit
WHOLE = 2**43  # bytes; no object is larger


def download_object(client: "BaseClient", bucket: str, key: str, file: Path) -> str:
    """Writes an object to a file, and asks for it again where the connection breaks. Returns its sha256."""
    from boto3.s3.transfer import TransferConfig

    # In one request: of an object in more than ten parts s3transfer waits, in its only thread, for that thread to write the first.
    whole = {"multipart_threshold": WHOLE, "multipart_chunksize": WHOLE}
    transfer = TransferConfig(num_download_attempts=ATTEMPTS, use_threads=False, **whole)
    with file.open("wb") as content:
        arriving = HashingFile(content)
        # It has no `seek`, so what arrives is written in its order, and once.
        client.download_fileobj(bucket, key, arriving, Config=transfer)
    return arriving.digest


def uploaded_digest(client: "BaseClient", bucket: str, key: str, *, size: int) -> str | None:
    """The sha256 in the metadata of an uploaded object; None if there is no object of that size."""
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
    return head["Metadata"].get("sha256") if head["ContentLength"] == size else None


def upload_object(
    client: "BaseClient",
    bucket: str,
    key: str,
    file: Path,
    *,
    sha256: str,
    advance: Callable[[int], object] = lambda size: None,
) -> None:
    """Uploads a file, and goes on with an unfinished upload of the same content. The object's metadata gets the sha256.

    Several processes may upload the same content at the same time.

    Args:
        advance: is called with the number of bytes that are there, after each part.

    Raises:
        InputError: the file has another content.
    """
    from botocore.exceptions import ClientError

    target, size = {"Bucket": bucket, "Key": key}, file.stat().st_size
    # The ETag of a multipart upload is not the md5 of its file, so the object carries its sha256.
    metadata = {"Metadata": {"sha256": sha256}}
    if size <= PART_BYTES:
        content = file.read_bytes()
        _require_digest(hashlib.sha256(content).hexdigest(), sha256, file)
        client.put_object(**target, **metadata, Body=content)
        advance(size)
        return
    unfinished_ids = _unfinished_uploads(client, bucket, key)
    upload_id = (
        unfinished_ids[-1] if unfinished_ids else client.create_multipart_upload(**target, **metadata)["UploadId"]
    )
    try:
        _send_parts(client, target, upload_id, file, sha256=sha256, advance=advance)
    except ClientError as error:
        # Another process has completed this upload, or has completed its own and aborted this one.
        if error.response["Error"].get("Code") != "NoSuchUpload":
            raise
        unfinished_ids = []
    # The metadata was fixed when the upload was created.
    # An upload that another content began therefore still has that content's sha256.
    if uploaded_digest(client, bucket, key, size=size) != sha256:
        new_id = client.create_multipart_upload(**target, **metadata)["UploadId"]
        _send_parts(client, target, new_id, file, sha256=sha256)
    # S3 keeps the parts of an unfinished upload until it is aborted.
    for upload_id in unfinished_ids[:-1]:
        client.abort_multipart_upload(**target, UploadId=upload_id)


def _unfinished_uploads(client: "BaseClient", bucket: str, key: str) -> list[str]:
    """IDs of the object's unfinished multipart uploads, the latest last."""
    uploads = client.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
    return [found["UploadId"] for found in sorted(uploads, key=lambda u: u["Initiated"]) if found["Key"] == key]


def _send_parts(
    client: "BaseClient",
    target: dict[str, str],
    upload_id: str,
    file: Path,
    *,
    sha256: str,
    advance: Callable[[int], object] = lambda size: None,
) -> None:
    """Sends the missing parts and completes the upload. A part is already there if its ETag is the md5 of its content."""
    pages = client.get_paginator("list_parts").paginate(**target, UploadId=upload_id)
    uploaded = {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", [])}
    # It depends on the file's size only, so a continued upload is cut at the same places as the first one.
    size = max(PART_BYTES, -(-file.stat().st_size // MAX_PARTS))
    parts, whole = [], hashlib.sha256()
    for number, content in enumerate(_read_parts(file, size), start=1):
        whole.update(content)
        tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        if uploaded.get(number) != tag:
            tag = client.upload_part(**target, UploadId=upload_id, PartNumber=number, Body=content)["ETag"]
        parts.append({"PartNumber": number, "ETag": tag})
        advance(len(content))
    # Before the object exists: nothing else compares what was read now with what the caller has verified.
    _require_digest(whole.hexdigest(), sha256, file)
    client.complete_multipart_upload(**target, UploadId=upload_id, MultipartUpload={"Parts": parts})


def _read_parts(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as content:
        while part := content.read(size):
            yield part


def _require_digest(found: str, wanted: str, file: Path) -> None:
    if found != wanted:
        raise InputError(f"{file} has changed while it was read: start again")
