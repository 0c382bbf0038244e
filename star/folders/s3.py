"""Uploads finished folders to S3 and downloads them: files first, the manifest last, every sha256 verified.

An S3 folder without a manifest is incomplete and is refused as an input, so a reader never sees a part of an upload.
An interrupted transfer continues when it is started again: files that arrived with the right sha256 are skipped, and
of a large file only the missing parts are sent.

    s3://bucket/topk/topk-00000.safetensors      metadata: sha256
    s3://bucket/topk/manifest.json               deleted before the first file is sent, written after the last one

Any store with the S3 API works: boto3 reads AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
AWS_DEFAULT_REGION.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from star.digest_cache import HashingFile, digest_of_file, remember_written
from star.errors import InputError
from star.folders.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    leads_outside,
    open_input,
    read_manifest,
    unlisted_paths,
)
from star.folders.owners import create_folder
from star.folders.s3_client import ATTEMPTS, S3Folder, check_key, holds_object, open_s3
from star.progress import Bar, print_line

if TYPE_CHECKING:
    from botocore.client import BaseClient

PART_BYTES = 16 * 2**20  # of a multipart upload: at most this much is sent again after a cut connection
MAX_PARTS = 10_000  # per object, S3's limit


class DamagedManifestError(InputError):
    """An object that should be a manifest is something else."""


def upload_folder(folder: Path, url: str | Path) -> None:
    """Uploads a finished folder. Until the last request the S3 folder has no manifest and is refused as an input.

    Raises:
        InputError: the folder is incomplete or damaged, or S3 keeps failing. Uploaded files are kept and are not sent
            again.
    """
    s3_folder, manifest = S3Folder.parse(url), read_manifest(folder)
    # Before the first request, so that a damaged folder does not replace a good one in S3.
    open_input(folder, stage=manifest.stage, trust="none")
    content = (folder / MANIFEST).read_bytes()
    with open_s3(s3_folder) as client:
        # The manifest is written last: if it is there, all its files were. Others may have changed them since.
        is_listed, was_changed = _read_object(client, s3_folder, MANIFEST) == content, False
        with Bar(f"upload to {s3_folder}", len(manifest.files)) as bar:
            for entry in manifest.files:
                key = s3_folder.key(entry.path)
                if not holds_object(client, s3_folder.bucket, key, size=entry.size, digest=entry.sha256):
                    if not was_changed:
                        # An older result's manifest would vouch for files that are being replaced.
                        client.delete_object(Bucket=s3_folder.bucket, Key=s3_folder.key(MANIFEST))
                        was_changed = True
                    _upload(client, s3_folder, folder / entry.path, entry)
                bar.advance()
        if is_listed and not was_changed:
            return
        client.put_object(Bucket=s3_folder.bucket, Key=s3_folder.key(MANIFEST), Body=content)


def download_folder(url: str | Path, root: Path) -> Path:
    """Downloads an uploaded folder to `root`/bucket/folder and returns that path. Files with the right sha256 are kept.

    Raises:
        InputError: the manifest is missing, a file differs from what the manifest says, or S3 keeps failing; the
            message names it.
    """
    s3_folder = S3Folder.parse(url)
    folder = root / s3_folder.bucket / s3_folder.prefix
    with open_s3(s3_folder) as client:
        content = _read_object(client, s3_folder, MANIFEST)
        if content is None:
            raise InputError(f"{s3_folder} has no {MANIFEST}, so it is incomplete: run its stage, or correct the URL")
        listed = parse_manifest(content, s3_folder)
        files = listed.files
        create_folder(folder)
        # A local folder with a manifest counts as finished, which it is not while its files are replaced.
        (folder / MANIFEST).unlink(missing_ok=True)
        with Bar(f"fetch {s3_folder}", len(files)) as bar:
            arrived = {}
            for entry in files:
                if _download(client, s3_folder, folder, entry):
                    arrived[folder / entry.path] = entry.sha256
                bar.advance()
        remember_written(arrived)
    # What a killed download or an older result left here. A folder with such files is refused as an input.
    for left in unlisted_paths(folder, listed):
        (folder / left).unlink()
    # A kill during a write in place would leave a part of a manifest.
    temporary = folder / f".{MANIFEST}.tmp"
    temporary.write_bytes(content)
    temporary.replace(folder / MANIFEST)
    return folder


def manifests_below(url: str | Path) -> Iterator[tuple[str, bytes]]:
    """The URL and the manifest of every uploaded folder at or below `url`.

    Raises:
        InputError: S3 does not answer, or refuses to list the folder.
    """
    s3_folder = S3Folder.parse(url)
    with open_s3(s3_folder) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=s3_folder.bucket, Prefix=s3_folder.key(""))
        for found in (entry["Key"] for page in pages for entry in page.get("Contents", [])):
            folder, _, name = found.rpartition("/")
            try:
                check_key(folder, source=f"s3://{s3_folder.bucket}/{found}")
            except InputError as error:
                # One such object, which anybody who writes there can make, must not hide the others.
                print_line(str(error))
                continue
            # Deleted between the two requests: somebody uploads another result there.
            if name == MANIFEST and (content := _read_object(client, S3Folder(s3_folder.bucket, folder), MANIFEST)):
                yield f"s3://{s3_folder.bucket}/{folder}", content


def parse_manifest(content: bytes, s3_folder: S3Folder) -> Manifest:
    """The manifest of an uploaded folder. The paths of its files stay inside the folder.

    Raises:
        DamagedManifestError: it is damaged, or names a path outside.
    """
    try:
        fields = json.loads(content)
        entries = [FileEntry(**entry) for entry in fields.pop("files")]
        # Missing or unknown fields raise TypeError here, before any file is downloaded.
        manifest = Manifest(**fields, files=entries)
        # The manifest comes from a store that others may write to: its paths must stay inside the folder.
        outside = [entry.path for entry in entries if leads_outside(entry.path)]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedManifestError(f"{s3_folder}/{MANIFEST} is damaged: run the stage that makes it again") from error
    if outside:
        raise DamagedManifestError(
            f"{s3_folder}/{MANIFEST} names {outside[0]}, outside its folder: do not trust this source"
        )
    return manifest


def _download(client: "BaseClient", s3_folder: S3Folder, folder: Path, entry: FileEntry) -> bool:
    """Downloads and verifies one file; False if it was there already."""
    from boto3.s3.transfer import TransferConfig

    file = folder / entry.path
    if file.is_file() and file.stat().st_size == entry.size and digest_of_file(file) == entry.sha256:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    transfer = TransferConfig(num_download_attempts=ATTEMPTS, multipart_threshold=PART_BYTES, use_threads=False)
    with temporary.open("wb") as content:
        arriving = HashingFile(content)
        # It has no `seek`, so the parts are written in their order.
        client.download_fileobj(s3_folder.bucket, s3_folder.key(entry.path), arriving, Config=transfer)
    if arriving.digest != entry.sha256:
        temporary.unlink()
        raise InputError(f"{s3_folder}/{entry.path} is not what its manifest says (sha256): upload the folder again")
    temporary.replace(file)
    return True


def _uploaded_digest(client: "BaseClient", s3_folder: S3Folder, entry: FileEntry) -> str | None:
    """Returns the sha256 in the metadata of the uploaded object; None if there is no object of the right size."""
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=s3_folder.bucket, Key=s3_folder.key(entry.path))
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
    return head["Metadata"].get("sha256") if head["ContentLength"] == entry.size else None


def _upload(client: "BaseClient", s3_folder: S3Folder, file: Path, entry: FileEntry) -> None:
    key = {"Bucket": s3_folder.bucket, "Key": s3_folder.key(entry.path)}
    # The ETag of a multipart upload is not the md5 of its file, so the object carries its sha256.
    metadata = {"Metadata": {"sha256": entry.sha256}}
    if entry.size <= PART_BYTES:
        client.put_object(**key, **metadata, Body=file.read_bytes())
        return
    unfinished_ids = _unfinished_uploads(client, s3_folder, entry)
    upload_id = unfinished_ids[-1] if unfinished_ids else client.create_multipart_upload(**key, **metadata)["UploadId"]
    _send_parts(client, key, upload_id, file)
    # The metadata was fixed when the upload was created.
    # An upload that another content began therefore still has that content's sha256.
    if _uploaded_digest(client, s3_folder, entry) != entry.sha256:  # the unfinished upload was of another content
        _send_parts(client, key, client.create_multipart_upload(**key, **metadata)["UploadId"], file)
    # S3 keeps the parts of an unfinished upload until it is aborted.
    for upload_id in unfinished_ids[:-1]:
        client.abort_multipart_upload(**key, UploadId=upload_id)


def _unfinished_uploads(client: "BaseClient", s3_folder: S3Folder, entry: FileEntry) -> list[str]:
    """IDs of the file's unfinished multipart uploads, the latest last."""
    key = s3_folder.key(entry.path)
    uploads = client.list_multipart_uploads(Bucket=s3_folder.bucket, Prefix=key).get("Uploads", [])
    return [found["UploadId"] for found in sorted(uploads, key=lambda u: u["Initiated"]) if found["Key"] == key]


def _send_parts(client: "BaseClient", key: dict[str, str], upload_id: str, file: Path) -> None:
    """Sends the missing parts and completes the upload. A part is already there if its ETag is the md5 of its content."""
    pages = client.get_paginator("list_parts").paginate(**key, UploadId=upload_id)
    uploaded = {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", [])}
    # It depends on the file's size only, so a continued upload is cut at the same places as the first one.
    size = max(PART_BYTES, -(-file.stat().st_size // MAX_PARTS))
    parts = []
    for number, content in enumerate(_read_parts(file, size), start=1):
        tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        if uploaded.get(number) != tag:
            tag = client.upload_part(**key, UploadId=upload_id, PartNumber=number, Body=content)["ETag"]
        parts.append({"PartNumber": number, "ETag": tag})
    client.complete_multipart_upload(**key, UploadId=upload_id, MultipartUpload={"Parts": parts})


def _read_parts(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as content:
        while part := content.read(size):
            yield part


def _read_object(client: "BaseClient", s3_folder: S3Folder, name: str) -> bytes | None:
    try:
        return client.get_object(Bucket=s3_folder.bucket, Key=s3_folder.key(name))["Body"].read()
    except client.exceptions.NoSuchKey:
        return None
