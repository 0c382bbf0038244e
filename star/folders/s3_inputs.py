"""Reads inputs that lie in S3 under any name or under their digest: takes their sha256, and fetches them verified into the home.

A file is one object. A folder is one of three things:

    s3://bucket/models/base/config.json             a prefix: what a team has put there under names of its own
    s3://bucket/inputs/0b6dd34c...                  its list, which is an object named by its own sha256, as
                                                    `star pipeline submit` writes it (star/pipelines/upload_inputs.py)
                                                    [["config.json", "5feceb66..."], ["model.safetensors", "91b1..."]]
    s3://bucket/inputs/5feceb66...                  each file of it, beside it

    s3://bucket/store/files/md5/14/6f2f69cf....dir  what DVC pushed (star/folders/dvc_remote.py)

The sha256 of that list is the digest of the folder in each case, and of the same folder on a disk.

    <home>/inputs/0b6dd34c.../                      a fetched folder, or a fetched file under its name
    <home>/inputs/.0b6dd34c....arriving/           one that is on its way; a killed fetch keeps the files that arrived whole
    <home>/inputs/seen/91b1....json                 the sha256 of an object, with size and ETag of when it was read
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from star.digest_cache import Trust, digest_of_file, digests_of
from star.errors import InputError
from star.folders.dvc_digest import dvc_digest
from star.folders.dvc_remote import files_in_list, md5_of_object
from star.folders.owners import (
    create_in_home,
    create_private,
    file_mode,
    refuse_others,
    refuse_others_below,
    umask_for_sharing,
    write_own_file,
)
from star.folders.s3_client import S3Folder, check_name, open_s3
from star.folders.s3_transfer import download_object
from star.hashing import digest_of
from star.home import home
from star.progress import Bar

if TYPE_CHECKING:
    from botocore.client import BaseClient

FOLDER, SEEN, ARRIVING = "inputs", "seen", ".arriving"
LIST_BYTES = 64 * 2**20  # of the list of a folder's files
Choose = Callable[[Collection[str], Callable[[str], bytes]], list[str]]
"""Of all names in a folder, those that count, in the order of its list. The second argument reads one of them."""


def list_of_files(digests: Collection[tuple[str, str]]) -> bytes:
    """The list of a folder's files, each (path in the folder, sha256). Its own sha256 is the folder's digest."""
    return json.dumps([[name, digest] for name, digest in digests]).encode()


def digest_of_list(listed: bytes) -> str:
    """The digest of the folder that has this list."""
    return hashlib.sha256(listed).hexdigest()


def digest_of_files(folder: Path, names: Collection[str], *, trust: Trust) -> str:
    """The digest of a folder of which these files count, in the order of its list."""
    found = digests_of([folder / name for name in names], trust=trust)
    return digest_of_list(list_of_files([(name, found[folder / name]) for name in names]))


def names_in(folder: Path) -> list[str]:
    """The paths of all files in a folder, relative to it."""
    return sorted(
        (Path(place) / file).relative_to(folder).as_posix()
        for place, _, files in os.walk(folder, followlinks=True)
        for file in files
    )


def fetched_place(sha256: str) -> Path:
    """Where an input with this digest is kept after it was fetched: a folder, also for a file."""
    return home() / FOLDER / sha256


def fetched_place_of(path: Path) -> Path:
    """The place of an input of which this is the copy, or the part of one that is on its way."""
    return path.with_name(path.name.removeprefix(".").removesuffix(ARRIVING))


def digest_of_object(url: str) -> str:
    """The sha256 of an object in S3. It is read once; the next time, an object of the same size and ETag is taken for the same.

    That one has been changed under both is found when it is fetched.

    Raises:
        InputError: there is no such object, or S3 does not answer.
    """
    place = S3Folder.parse(url)
    with open_s3(place) as client:
        return _digest_of(client, place.bucket, place.prefix)


def digest_of_prefix(url: str, *, choose: Choose) -> str:
    """The digest of the files below a prefix in S3, as `digest_of_object` takes that of each.

    Raises:
        InputError: nothing is there, or S3 does not answer.
    """
    place = S3Folder.parse(url)
    with open_s3(place) as client:
        names = _chosen(client, place, choose)
        with Bar(f"read {place}", len(names)) as bar:
            found = []
            for name in names:
                found.append((name, _digest_of(client, place.bucket, place.key(name))))
                bar.advance()
    return digest_of_list(list_of_files(found))


def fetch_file(url: str, *, sha256: str, name: str) -> Path:
    """The local copy of an object in S3, under its own name; fetched unless it is there.

    Raises:
        InputError: the object's content is not what the configuration was loaded with, or S3 does not answer.
    """
    place, target = S3Folder.parse(url), fetched_place(sha256) / name
    with only_one(sha256):
        if not (target.is_file() and digest_of_file(target, trust="own") == sha256):
            partial = target.with_name(f".{name}{ARRIVING}")
            create_private(target.parent)
            refuse_others(partial)
            with open_s3(place) as client, Bar(f"fetch {name}", 1) as bar:
                if download_object(client, place.bucket, place.prefix, partial) != sha256:
                    partial.unlink()
                    raise InputError(_changed(str(place)))
                partial.replace(target)
                bar.advance()
        os.utime(target.parent)  # `star clean` counts from the last use
    return target


def fetch_folder(url: str, *, sha256: str, choose: Choose) -> Path:
    """The local copy of a folder in S3; fetched unless it is there.

    Raises:
        InputError: its content is not what the configuration was loaded with, or S3 does not answer.
    """
    place, target = S3Folder.parse(url), fetched_place(sha256)
    with only_one(sha256):
        refuse_others(target)
        if target.is_dir() and not _holds(target, sha256, choose):
            shutil.rmtree(target)
        if not target.is_dir():
            partial = target.with_name(f".{sha256}{ARRIVING}")
            create_private(partial)
            refuse_others_below(partial)  # what a killed fetch has left
            with open_s3(place) as client:
                _fetch_files(client, place, partial, sha256=sha256, choose=choose)
            md5 = md5_of_object(place)
            if not _holds(partial, sha256, choose) or (md5 and dvc_digest(partial) != md5):
                shutil.rmtree(partial)
                raise InputError(_changed(str(place)))
            partial.replace(target)
        os.utime(target)  # `star clean` counts from the last use
    return target


def fetch_small_files(url: str, *, sha256: str, choose: Choose) -> Path:
    """A local folder with the JSON files of a folder in S3, for a look at what it describes. Only an uploaded folder's are verified.

    Raises:
        InputError: S3 does not answer, or has nothing there.
    """
    place, whole = S3Folder.parse(url), fetched_place(sha256)
    with only_one(sha256):
        if whole.is_dir():
            return whole
        small = whole.with_name(f".{sha256}.small")
        create_private(small)
        with open_s3(place) as client:
            _fetch_files(client, place, small, sha256=sha256, choose=choose, ending=".json")
    return small


def _fetch_files(
    client: "BaseClient", place: S3Folder, partial: Path, *, sha256: str, choose: Choose, ending: str = ""
) -> None:
    """Fetches the files of a folder whose names have that ending; those that an earlier fetch brought are kept."""
    if is_named_by(place, sha256):
        bucket_folder, _, _ = place.prefix.rpartition("/")
        wanted = [(name, f"{bucket_folder}/{digest}", digest) for name, digest in _read_list(client, place, sha256)]
    elif md5_of_object(place):
        wanted = [(name, key, "") for name, key in files_in_list(client, place)]
    else:
        wanted = [(name, place.key(name), "") for name in _chosen(client, place, choose)]
    wanted = [file for file in wanted if file[0].endswith(ending)]
    # Of an uploaded folder this is a part of its digest.
    with Bar(f"fetch {place.prefix.rpartition('/')[2][:16]}", len(wanted)) as bar:
        for name, key, digest in wanted:
            file = partial / name
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                arriving = file.with_name(f".{file.name}{ARRIVING}")
                found = download_object(client, place.bucket, key, arriving)
                if digest and found != digest:
                    arriving.unlink()
                    raise InputError(_changed(f"s3://{place.bucket}/{key}"))
                arriving.replace(file)
            bar.advance()


def is_named_by(place: S3Folder, sha256: str) -> bool:
    """Whether the object's name is the digest of its content, as uploaded inputs are named."""
    return bool(sha256) and place.prefix.rpartition("/")[2] == sha256


def _read_list(client: "BaseClient", place: S3Folder, sha256: str) -> list[tuple[str, str]]:
    content = client.get_object(Bucket=place.bucket, Key=place.prefix)["Body"].read(LIST_BYTES)
    if digest_of_list(content) != sha256:
        raise InputError(_changed(str(place)))
    # It is what was uploaded. Whoever wrote the configuration may still not write outside the folder.
    try:
        found = [(str(name), str(digest)) for name, digest in json.loads(content)]
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{place} is a file, and a folder is read here: name the list of an uploaded folder"
        ) from error
    for name, _ in found:
        check_name(name, source=f"{name!r} in {place}")
    return found


def _chosen(client: "BaseClient", place: S3Folder, choose: Choose) -> list[str]:
    """The names below a prefix that count, and that are also paths inside a folder."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=place.key(""))
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    names = {key.removeprefix(place.key("")) for key in keys if not key.endswith("/")}
    if not names:
        raise InputError(f"there is nothing below {place}/: correct the URL, or upload the folder")

    def read(name: str) -> bytes:
        return client.get_object(Bucket=place.bucket, Key=place.key(name))["Body"].read(LIST_BYTES + 1)

    chosen = choose(names, read)
    for name in chosen:
        check_name(name, source=f"{place}/{name}")
    return chosen


def _digest_of(client: "BaseClient", bucket: str, key: str) -> str:
    head = client.head_object(Bucket=bucket, Key=key)
    state = {"size": head["ContentLength"], "etag": head["ETag"]}
    note = home() / FOLDER / SEEN / f"{digest_of([client.meta.endpoint_url, bucket, key])}.json"
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        if {name: known[name] for name in state} == state:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = download_object(client, bucket, key, Path(os.devnull))
    create_in_home(f"{FOLDER}/{SEEN}")
    write_own_file(note, json.dumps({**state, "sha256": found, "of": f"s3://{bucket}/{key}"}))
    return found


def _holds(folder: Path, sha256: str, choose: Choose) -> bool:
    try:
        names = choose(names_in(folder), lambda name: (folder / name).read_bytes())
    except InputError:  # an index in it is damaged: kept, it would be refused each time
        return False
    return digest_of_files(folder, names, trust="own") == sha256


@contextmanager
def only_one(sha256: str) -> Iterator[None]:
    """The processes of a training, and the pods that share a home, fetch an input once. Those who share the work can read it."""
    if not sha256:  # of an input that the stage does not read
        raise InputError("this base was not hashed when the configuration was read: start the run again")
    lock = create_in_home(FOLDER) / f"{sha256}.lock"
    refuse_others(lock)
    with umask_for_sharing(), FileLock(lock, mode=file_mode()):
        yield


def _changed(place: str) -> str:
    return (
        f"{place} is not what the run was configured with (another sha256): start the run again to use what is there now, or "
        "restore it; an object that `star pipeline submit` uploaded is sent again after it was deleted"
    )
