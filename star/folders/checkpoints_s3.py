"""Unfinished work kept in the object store, for nodes that vanish with their disks.

STAR_CHECKPOINTS names s3://bucket/folder. What a stage keeps in `state/` lies there under its fingerprint: every content once, by its
sha256, and an index written last, so that what is read is always one whole checkpoint. A finished stage's copy is deleted.
"""

import json
import os
import shutil
from pathlib import Path, PurePosixPath

from star.errors import InputError
from star.hashing import sha256_of
from star.progress import say

VARIABLE = "STAR_CHECKPOINTS"
INDEX = "index.json"


def keep(state: Path) -> None:
    """Uploads what changed in a work's state. A store that is away costs a line, never the training."""
    if url := os.environ.get(VARIABLE):
        try:
            _upload(state, f"{url}/{(state.parent / 'fingerprint').read_text()}")
        except InputError as error:
            say(f"the checkpoint is on this disk only: {error}")


def fetch(state: Path, fingerprint: str) -> None:
    """Puts the kept state of a work into an empty folder, where there is one.

    Raises:
        InputError: the store does not answer, or a file is not what the index says.
    """
    if not (url := os.environ.get(VARIABLE)) or any(state.iterdir()):
        return
    from star.folders.s3_client import Place, connected

    place = Place.parse(f"{url}/{fingerprint}")
    arriving = state.with_name(".state.fetched")
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir()
    with connected(place) as client:
        for name, digest in _index(client, place).items():
            file = arriving / name
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise InputError(f"{place}/{INDEX} names {name}, outside its folder: do not trust this store")
            file.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(place.bucket, place.key(digest), str(file))
            if sha256_of(file) != digest:
                raise InputError(f"{place}/{digest} is not what its name says: delete {place} and run the stage again")
    # Half a checkpoint must not be taken for one: all of it appears at once.
    state.rmdir()
    arriving.rename(state)


def forget(fingerprint: str) -> None:
    """Deletes what was kept of a work that is done."""
    if url := os.environ.get(VARIABLE):
        from star.folders.s3_client import Place, connected

        place = Place.parse(f"{url}/{fingerprint}")
        try:
            with connected(place) as client:
                for name in (INDEX, *set(_index(client, place).values())):
                    client.delete_object(Bucket=place.bucket, Key=place.key(name))
        except InputError as error:
            say(f"old checkpoints are left: {error}")


def _upload(state: Path, url: str) -> None:
    from star.folders.s3_client import Place, connected

    place = Place.parse(url)
    files = {file.relative_to(state).as_posix(): sha256_of(file) for file in sorted(state.rglob("*")) if file.is_file()}
    with connected(place) as client:
        before = set(_index(client, place).values())
        for name, digest in files.items():
            if digest not in before:
                client.upload_file(str(state / name), place.bucket, place.key(digest))
        client.put_object(Bucket=place.bucket, Key=place.key(INDEX), Body=json.dumps(files).encode())
        for digest in before - set(files.values()):
            client.delete_object(Bucket=place.bucket, Key=place.key(digest))


def _index(client, place) -> dict[str, str]:
    try:
        return json.loads(client.get_object(Bucket=place.bucket, Key=place.key(INDEX))["Body"].read())
    except client.exceptions.NoSuchKey:
        return {}
