"""Finds results and checkpoints in S3, says of each whether it goes, and deletes exactly the objects that were shown.

    s3://bucket/results/2026-03/topk/manifest.json      a result of STAR: its manifest goes first, so no reader takes the rest
    s3://bucket/checkpoints/0b6dd34c.../index.json      a checkpoint: its index goes first

Objects that no manifest lists stay. In a bucket that keeps versions a delete only hides an object; the bucket's lifecycle
rules say when its space is free.
"""

import re
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from star.clean.entry import COPY, DAY, IN_USE, MADE_FROM, NOT_OURS, REGISTRY, UNREAD, YOUNG, Entry
from star.clean.results import REGISTRATION, ancestors, require_registered
from star.errors import InputError
from star.folders.checkpoints_s3 import INDEX
from star.folders.manifest import MANIFEST, Manifest
from star.folders.s3 import DamagedManifestError, parse_uploaded_manifest
from star.folders.s3_client import S3Folder, open_s3
from star.registry.needed import Needed

if TYPE_CHECKING:
    from botocore.client import BaseClient

KEYS_PER_REQUEST = 1000  # most that S3 deletes at once


@dataclass(frozen=True)
class _Object:
    size: int
    changed: float
    etag: str


def find_results_in_s3(
    url: str, days: float, *, digests: Mapping[str, str] | None, needed: Needed | None
) -> list[Entry]:
    """Every result below a folder in S3.

    Args:
        days: that a result stays.
        digests: content digest -> why a result with it stays; None if the registry cannot be read.
        needed: what the registry needs; None if it cannot be read.

    Raises:
        InputError: S3 does not answer, or refuses; or a registration there is of another registry.
    """
    entries = []
    place = S3Folder.parse(url)
    with open_s3(place) as client:
        objects = _list(client, place)
    for prefix, inside in sorted(_by_folder(objects).items()):
        folder = S3Folder(place.bucket, prefix)
        with open_s3(folder) as client:
            try:
                content = client.get_object(Bucket=folder.bucket, Key=folder.key(MANIFEST))["Body"].read()
                manifest = parse_uploaded_manifest(content, folder)
                if manifest.stage == "register" and needed is not None:
                    answer = client.get_object(Bucket=folder.bucket, Key=folder.key(REGISTRATION))
                    require_registered(answer["Body"].read(), needed, folder=str(folder))
            except client.exceptions.NoSuchKey:  # it is replaced at this moment
                continue
            except DamagedManifestError:  # another program's, which stays
                continue
        entries.append(_judge_result(folder, manifest, inside, days=days, digests=digests, needed=needed))
    return entries


def keep_sources(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, of which none goes that a result in S3 that stays was made from."""
    made_from: dict[str, str] = {}
    # The sources of a result are all that it was made from, so one pass is enough.
    for entry in (entry for entry in entries if not entry.goes):
        for digest in entry.made_from:
            made_from.setdefault(digest, entry.place)
    return [
        replace(entry, goes=False, why=MADE_FROM, detail=made_from[entry.digest])
        if entry.goes and entry.digest in made_from
        else entry
        for entry in entries
    ]


def find_checkpoints_in_s3(url: str, days: float, *, unfinished: Collection[str]) -> list[Entry]:
    """Every uploaded state of unfinished work.

    Args:
        unfinished: fingerprints of the work whose workspace stays on this machine.

    Raises:
        InputError: S3 does not answer, or refuses.
    """
    place = S3Folder.parse(url)
    with open_s3(place) as client:
        states: dict[str, dict[str, _Object]] = defaultdict(dict)
        for key, found in _list(client, place).items():
            fingerprint, _, name = key.removeprefix(place.key("")).partition("/")
            if re.fullmatch(r"[0-9a-f]{64}", fingerprint) and re.fullmatch(rf"{re.escape(INDEX)}|[0-9a-f]{{64}}", name):
                states[fingerprint][key] = found
    entries = []
    for fingerprint, objects in sorted(states.items()):
        folder = S3Folder(place.bucket, place.key(fingerprint))
        stays = (IN_USE, "unfinished work on this machine") if fingerprint in unfinished else None
        first = [key for key in objects if key.endswith(f"/{INDEX}")]
        entries.append(_entry("checkpoint in S3", folder, objects, first=first, stays=stays, days=days))
    return entries


def delete_shown(entry: Entry) -> bool:
    """Deletes an entry's objects, the first one before all others; False if that one has changed since it was shown.

    Raises:
        InputError: S3 does not answer, or refuses one of them.
    """
    folder = S3Folder.parse(entry.place)
    with open_s3(folder) as client:
        if _etag(client, folder.bucket, entry.keys[0]) != entry.etag:
            return False
        _delete(client, folder, entry.keys[:1])
        for start in range(1, len(entry.keys), KEYS_PER_REQUEST):
            _delete(client, folder, entry.keys[start : start + KEYS_PER_REQUEST])
    return True


def keeps_versions(url: str) -> bool:
    """Whether the bucket says that it keeps older versions of its objects."""
    folder = S3Folder.parse(url)
    with suppress(InputError), open_s3(folder) as client:  # not everybody may ask
        return client.get_bucket_versioning(Bucket=folder.bucket).get("Status") == "Enabled"
    return False


def _by_folder(objects: Mapping[str, _Object]) -> dict[str, dict[str, _Object]]:
    """The objects of each folder that has a manifest. An object counts to the innermost such folder above it."""
    folders: dict[str, dict[str, _Object]] = {
        key.removesuffix(f"/{MANIFEST}"): {} for key in objects if key.endswith(f"/{MANIFEST}")
    }
    for key, found in objects.items():
        above = key
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in folders:
                folders[above][key] = found
                break
    return folders


def _judge_result(
    folder: S3Folder,
    manifest: Manifest,
    objects: Mapping[str, _Object],
    *,
    days: float,
    digests: Mapping[str, str] | None,
    needed: Needed | None,
) -> Entry:
    listed = {folder.key(name) for name in (MANIFEST, *(entry.path for entry in manifest.files))}
    stays = None
    if others := sorted(objects.keys() - listed):
        stays = NOT_OURS, f"{folder} has {others[0].removeprefix(folder.key(''))!r}"
    elif digests is None:
        stays = UNREAD, ""
    elif manifest.digest in digests:
        why = REGISTRY if needed and manifest.digest in needed.folders else COPY
        stays = why, digests[manifest.digest]
    found = _entry("result in S3", folder, objects, first=[folder.key(MANIFEST)], stays=stays, days=days)
    return replace(found, digest=manifest.digest, made_from=ancestors(manifest))


def _entry(
    kind: str,
    folder: S3Folder,
    objects: Mapping[str, _Object],
    *,
    first: list[str],
    stays: tuple[str, str] | None,
    days: float,
) -> Entry:
    age = time.time() - max(found.changed for found in objects.values())
    stays = stays or ((YOUNG, "") if age < days * DAY else None)
    keys = (*first, *(key for key in objects if key not in first))
    size = sum(found.size for found in objects.values())
    why, detail = stays or (f"{age / DAY:.0f} days old, and nothing needs it", "")
    return Entry(kind, str(folder), age, stays is None, why, detail, size=size, keys=keys, etag=objects[keys[0]].etag)


def _list(client: "BaseClient", place: S3Folder) -> dict[str, _Object]:
    """All objects of the folder, page by page to the end."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=place.key(""))
    return {
        found["Key"]: _Object(found["Size"], found["LastModified"].timestamp(), found["ETag"])
        for page in pages
        for found in page.get("Contents", [])
    }


def _etag(client: "BaseClient", bucket: str, key: str) -> str | None:
    from botocore.exceptions import ClientError

    try:
        return client.head_object(Bucket=bucket, Key=key)["ETag"]
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        return None


def _delete(client: "BaseClient", folder: S3Folder, keys: tuple[str, ...]) -> None:
    if not keys:
        return
    objects = [{"Key": key} for key in keys]
    answer = client.delete_objects(Bucket=folder.bucket, Delete={"Objects": objects, "Quiet": True})
    # S3 answers 200 although it refuses some.
    for error in answer.get("Errors", []):
        raise InputError(
            f"s3://{folder.bucket}/{error.get('Key')} was not deleted: {error.get('Code')}: allow it, and run again"
        )
