"""Reads a folder that DVC pushed to a remote on S3, with boto3 alone: its list names each file and the md5 that is its object.

s3://bucket/store/files/md5/14/6f2f69cff2814c7066e27cb5a1e430.dir     [{"md5": "4588ff37...", "relpath": "a.jsonl"}, ...]
s3://bucket/store/files/md5/45/88ff3797b78d819d858fa3bdd82b09         a.jsonl
"""

import hashlib
import json
import re
from typing import TYPE_CHECKING

from star.errors import InputError
from star.folders.s3_client import S3Folder, check_name

if TYPE_CHECKING:
    from botocore.client import BaseClient

OBJECT = re.compile(r"(?P<root>.*/)?files/md5/(?P<start>[0-9a-f]{2})/(?P<rest>[0-9a-f]{30}(\.dir)?)")
LIST_BYTES = 256 * 2**20  # of a list: about two million files
MD5 = re.compile(r"[0-9a-f]{32}")


def md5_of_object(place: S3Folder) -> str | None:
    """The md5 that an object of a DVC remote has as its name, with `.dir` for a folder; None for any other object."""
    found = OBJECT.fullmatch(place.prefix)
    return found["start"] + found["rest"] if found else None


def files_in_list(client: "BaseClient", place: S3Folder) -> list[tuple[str, str]]:
    """Each file of the folder: its path in it, and the key of its object.

    Raises:
        InputError: the object is no list of DVC, has another md5 than its name says, or names a path outside the folder.
    """
    found = OBJECT.fullmatch(place.prefix)
    root = (found["root"] or "") if found else ""
    content = client.get_object(Bucket=place.bucket, Key=place.prefix)["Body"].read(LIST_BYTES)
    try:
        files = [(str(entry["relpath"]), str(entry["md5"])) for entry in json.loads(content)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{place} is no list of a folder, as DVC pushes it: push the folder again") from error
    for name, md5 in files:
        check_name(name, source=f"{name!r} in {place}")
        if not MD5.fullmatch(md5):
            raise InputError(
                f"{place} names {name!r} as {md5!r}, which is no file of a folder: do not trust this remote"
            )
    # Before a file is fetched: a list of others could name objects without end.
    found_md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if f"{found_md5}.dir" != md5_of_object(place):
        raise InputError(f"{place} has been changed, it has the md5 {found_md5}: push the folder again")
    return [(name, f"{root}files/md5/{md5[:2]}/{md5[2:]}") for name, md5 in files]
