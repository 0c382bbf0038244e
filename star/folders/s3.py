"""Stage folders in S3: files first, the manifest last, every file's sha256 checked on read, uploads that go on where they were cut.

Any store that speaks the protocol: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION as boto3 reads them.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from star.errors import InputError
from star.folders.manifest import MANIFEST, FileEntry, Manifest, open_input, read_manifest
from star.folders.s3_client import ATTEMPTS, Place, connected
from star.hashing import sha256_of
from star.progress import Bar

PART_BYTES = 16 * 2**20  # of a multipart upload; what a cut connection can cost
MOST_PARTS = 10_000  # of one object


def upload_folder(folder: Path, url: str | Path) -> None:
    """Publishes a finished stage folder. Until its last request the place has no manifest and is refused as an input.

    Raises:
        InputError: the folder is not whole, or the store keeps failing; what was uploaded is kept, and is not sent again.
    """
    place, manifest = Place.parse(url), read_manifest(folder)
    open_input(folder, stage=manifest.stage)
    content = (folder / MANIFEST).read_bytes()
    with connected(place) as client:
        if _get(client, place, MANIFEST) == content:
            return
        # An older result's manifest would vouch for files that are being replaced.
        client.delete_object(Bucket=place.bucket, Key=place.key(MANIFEST))
        with Bar(f"upload to {place}", len(manifest.files)) as bar:
            for entry in manifest.files:
                if _digest_there(client, place, entry) != entry.sha256:
                    _upload(client, place, folder / entry.path, entry)
                bar.advance()
        client.put_object(Bucket=place.bucket, Key=place.key(MANIFEST), Body=content)


def download_folder(url: str | Path, root: Path) -> Path:
    """A local copy of a published folder under `root`; files that are there with the right sha256 are not fetched again.

    Raises:
        InputError: no manifest is there, a file is not what the manifest says, or the store keeps failing; the message names it.
    """
    place = Place.parse(url)
    folder = root / place.bucket / place.prefix
    with connected(place) as client:
        content = _get(client, place, MANIFEST)
        if content is None:
            raise InputError(f"{place} has no {MANIFEST}, so nothing whole is there: run its stage, or correct the URL")
        files = _files_of(content, place)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        with Bar(f"fetch {place}", len(files)) as bar:
            for entry in files:
                _download(client, place, folder, entry)
                bar.advance()
    unfinished = folder / f".{MANIFEST}.tmp"
    unfinished.write_bytes(content)
    unfinished.replace(folder / MANIFEST)
    return folder


def _files_of(content: bytes, place: Place) -> list[FileEntry]:
    try:
        fields = json.loads(content)
        entries = [FileEntry(**entry) for entry in fields.pop("files")]
        Manifest(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{place}/{MANIFEST} is damaged: run the stage that makes it again") from error
    for entry in entries:
        if Path(entry.path).is_absolute() or ".." in Path(entry.path).parts:
            raise InputError(f"{place}/{MANIFEST} names {entry.path}, outside its folder: do not trust this source")
    return entries


def _download(client, place: Place, folder: Path, entry: FileEntry) -> None:
    from boto3.s3.transfer import TransferConfig

    file = folder / entry.path
    if file.is_file() and file.stat().st_size == entry.size and sha256_of(file) == entry.sha256:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.tmp")
    transfer = TransferConfig(num_download_attempts=ATTEMPTS, multipart_threshold=PART_BYTES, use_threads=False)
    client.download_file(place.bucket, place.key(entry.path), str(unfinished), Config=transfer)
    if sha256_of(unfinished) != entry.sha256:
        unfinished.unlink()
        raise InputError(f"{place}/{entry.path} is not what its manifest says (sha256): upload the folder again")
    unfinished.replace(file)


def _digest_there(client, place: Place, entry: FileEntry) -> str | None:
    """The sha256 of the object that is there, as it was noted when it was uploaded."""
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=place.bucket, Key=place.key(entry.path))
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
    return head["Metadata"].get("sha256") if head["ContentLength"] == entry.size else None


def _upload(client, place: Place, file: Path, entry: FileEntry) -> None:
    key = {"Bucket": place.bucket, "Key": place.key(entry.path)}
    noted = {"Metadata": {"sha256": entry.sha256}}
    if entry.size <= PART_BYTES:
        client.put_object(**key, **noted, Body=file.read_bytes())
        return
    begun = _begun_uploads(client, place, entry)
    _send_parts(client, key, begun[-1] if begun else client.create_multipart_upload(**key, **noted)["UploadId"], file)
    if _digest_there(client, place, entry) != entry.sha256:  # the upload had been begun for another content
        _send_parts(client, key, client.create_multipart_upload(**key, **noted)["UploadId"], file)
    for upload in begun[:-1]:
        client.abort_multipart_upload(**key, UploadId=upload)


def _begun_uploads(client, place: Place, entry: FileEntry) -> list[str]:
    """Ids of the file's unfinished uploads, the latest last."""
    key = place.key(entry.path)
    uploads = client.list_multipart_uploads(Bucket=place.bucket, Prefix=key).get("Uploads", [])
    return [found["UploadId"] for found in sorted(uploads, key=lambda u: u["Initiated"]) if found["Key"] == key]


def _send_parts(client, key: dict[str, str], upload: str, file: Path) -> None:
    """Sends the parts that are not there yet; one that is there counts when its md5 is that of the file's."""
    pages = client.get_paginator("list_parts").paginate(**key, UploadId=upload)
    there = {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", [])}
    size = max(PART_BYTES, -(-file.stat().st_size // MOST_PARTS))
    parts = []
    for number, content in enumerate(_read_parts(file, size), start=1):
        tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        if there.get(number) != tag:
            tag = client.upload_part(**key, UploadId=upload, PartNumber=number, Body=content)["ETag"]
        parts.append({"PartNumber": number, "ETag": tag})
    client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload={"Parts": parts})


def _read_parts(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as content:
        while part := content.read(size):
            yield part


def _get(client, place: Place, name: str) -> bytes | None:
    try:
        return client.get_object(Bucket=place.bucket, Key=place.key(name))["Body"].read()
    except client.exceptions.NoSuchKey:
        return None
