"""Copies the state of unfinished work to S3, so that a retry on another node can resume when the node's disk is gone.

STAR_CHECKPOINTS names the place. After every checkpoint of a training its `state/` folder is uploaded under the
work's fingerprint: each file's content once, named by its sha256, and last an index of all files. A reader therefore
sees one complete checkpoint or the one before. When the work is finished its copy is deleted. With
STAR_CHECKPOINTS=s3://star/checkpoints:

    s3://star/checkpoints/0b6dd34c.../index.json     {"ckd/checkpoint-40/model.safetensors": "5feceb66...", ...}
    s3://star/checkpoints/0b6dd34c.../5feceb66...    the content with that sha256
"""

import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from star.digest_cache import HashingFile, digests_of
from star.errors import InputError
from star.progress import print_line

if TYPE_CHECKING:
    from botocore.client import BaseClient

    from star.folders.s3_client import S3Folder

VARIABLE = "STAR_CHECKPOINTS"
INDEX = "index.json"


class DamagedIndexError(InputError):
    """The index of an uploaded state is not what was written."""


def upload_state(state: Path) -> None:
    """Uploads the changed files of a workspace's state. When S3 cannot be used, prints a line; the training goes on."""
    if url := os.environ.get(VARIABLE):
        try:
            _upload(state, f"{url}/{(state.parent / 'fingerprint').read_text()}")
        except InputError as error:
            print_line(f"the checkpoint is on this disk only: {error}")


def download_state(state: Path, fingerprint: str) -> None:
    """Fills an empty state folder with the uploaded state of this work, if there is one.

    Raises:
        InputError: S3 does not answer, or a file differs from what the index says.
    """
    if not (url := os.environ.get(VARIABLE)) or any(state.iterdir()):
        return
    from star.folders.s3_client import S3Folder, open_s3

    source = S3Folder.parse(f"{url}/{fingerprint}")
    incoming = state.with_name(".state.fetched")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    with open_s3(source) as client:
        for name, digest in _read_index(client, source).items():
            file = incoming / name
            # The index comes from a store that others may write to.
            # Its names must not reach other folders of this disk.
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise InputError(f"{source}/{INDEX} names {name}, outside its folder: do not trust this store")
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as content:
                arriving = HashingFile(content)
                client.download_fileobj(source.bucket, source.key(digest), arriving)
            if arriving.digest != digest:
                raise InputError(f"{source}/{digest} has another sha256: delete {source} and run the stage again")
    # A kill during the download must not leave a part of a checkpoint in `state`: all of it appears at once.
    state.rmdir()
    incoming.rename(state)


def delete_state(fingerprint: str) -> None:
    """Deletes the uploaded state of finished work. When S3 cannot be used this prints a line."""
    if url := os.environ.get(VARIABLE):
        from star.folders.s3_client import S3Folder, open_s3

        folder = S3Folder.parse(f"{url}/{fingerprint}")
        try:
            with open_s3(folder) as client:
                # The index goes first. After a kill in between no index names content that is gone.
                for name in (INDEX, *set(_read_index(client, folder).values())):
                    client.delete_object(Bucket=folder.bucket, Key=folder.key(name))
        except InputError as error:
            print_line(f"old checkpoints could not be deleted: {error}")


def _upload(state: Path, url: str) -> None:
    from star.folders.s3_client import S3Folder, open_s3

    target = S3Folder.parse(url)
    found = digests_of(file for file in sorted(state.rglob("*")) if file.is_file())
    files = {file.relative_to(state).as_posix(): digest for file, digest in found.items()}
    with open_s3(target) as client:
        try:
            uploaded = set(_read_index(client, target).values())
        except DamagedIndexError:
            uploaded = set()  # the new index replaces it
        for name, digest in files.items():
            if digest not in uploaded:
                client.upload_file(str(state / name), target.bucket, target.key(digest))
        # After all contents. A kill before this line leaves the older checkpoint complete and readable.
        client.put_object(Bucket=target.bucket, Key=target.key(INDEX), Body=json.dumps(files).encode())
        # After the new index, because the older one names this content.
        for digest in uploaded - set(files.values()):
            client.delete_object(Bucket=target.bucket, Key=target.key(digest))


def _read_index(client: "BaseClient", folder: "S3Folder") -> dict[str, str]:
    """File name -> sha256; empty when nothing was uploaded.

    Raises:
        DamagedIndexError: it is something else, which whoever can write to the store can put there.
    """
    try:
        text = client.get_object(Bucket=folder.bucket, Key=folder.key(INDEX))["Body"].read()
    except client.exceptions.NoSuchKey:
        return {}
    try:
        index = json.loads(text)
        is_valid = all(name and re.fullmatch(r"[0-9a-f]{64}", digest) for name, digest in index.items())
    except (ValueError, TypeError, AttributeError, RecursionError):
        is_valid = False
    if not is_valid:
        raise DamagedIndexError(f"{folder}/{INDEX} is not what STAR wrote: delete it to begin without that checkpoint")
    return index
