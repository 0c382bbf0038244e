"""Uploads finished folders to S3 and downloads them: files first, the manifest last, every sha256 verified.

An S3 folder without a manifest is incomplete and is refused as an input, so a reader never sees a part of an upload.
An interrupted transfer continues when it is started again: files that arrived with the right sha256 are skipped, and
of a large file only the missing parts are sent.

    s3://bucket/topk/topk-00000.safetensors      metadata: sha256
    s3://bucket/topk/manifest.json               deleted before the first file is sent, written after the last one

Any store with the S3 API works: boto3 reads AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
AWS_DEFAULT_REGION.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from star.digest_cache import digest_of_file, remember_written
from star.errors import InputError
from star.folders.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    open_input,
    parse_manifest,
    paths_outside,
    read_manifest,
    unlisted_paths,
)
from star.folders.owners import create_folder
from star.folders.s3_client import S3Folder, check_key, holds_object, open_s3
from star.folders.s3_transfer import download_object, upload_object
from star.progress import Bar, print_line

if TYPE_CHECKING:
    from botocore.client import BaseClient


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
                    upload_object(client, s3_folder.bucket, key, folder / entry.path, sha256=entry.sha256)
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
        listed = parse_uploaded_manifest(content, s3_folder)
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


def parse_uploaded_manifest(content: bytes, s3_folder: S3Folder) -> Manifest:
    """The manifest of an uploaded folder. The paths of its files stay inside the folder.

    Raises:
        DamagedManifestError: it is damaged, or names a path outside.
    """
    try:
        manifest = parse_manifest(content)
    except ValueError as error:
        damaged = f"{s3_folder}/{MANIFEST} is damaged ({error})"
        raise DamagedManifestError(f"{damaged}: run the stage that makes it again") from error
    # It comes from a store that others may write to.
    if outside := paths_outside(manifest):
        raise DamagedManifestError(
            f"{s3_folder}/{MANIFEST} names {outside[0]}, outside its folder: do not trust this source"
        )
    return manifest


def _download(client: "BaseClient", s3_folder: S3Folder, folder: Path, entry: FileEntry) -> bool:
    """Downloads and verifies one file; False if it was there already."""
    file = folder / entry.path
    if file.is_file() and file.stat().st_size == entry.size and digest_of_file(file) == entry.sha256:
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    if download_object(client, s3_folder.bucket, s3_folder.key(entry.path), temporary) != entry.sha256:
        temporary.unlink()
        raise InputError(f"{s3_folder}/{entry.path} is not what its manifest says (sha256): upload the folder again")
    temporary.replace(file)
    return True


def _read_object(client: "BaseClient", s3_folder: S3Folder, name: str) -> bytes | None:
    try:
        return client.get_object(Bucket=s3_folder.bucket, Key=s3_folder.key(name))["Body"].read()
    except client.exceptions.NoSuchKey:
        return None
