"""Stores published files in the bucket of STAR_REGISTRY, under the digest of their content.

    star/models/<digest>/model.safetensors    the files
    star/models/<digest>.json                 the list of them: path -> sha256, written last; for people, nothing reads it

Whoever can write to the bucket can put anything under such an address before or after. So what lies there already is
read and compared before its upload is skipped. Its sha256 is not asked of the store: the user's metadata can be planted
with the object, and not every store computes checksums. Reading costs no more than the upload that it saves.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from star.folders.s3_client import s3_errors
from star.hashing import digest_of
from star.registry.location import registry_s3_client, split_s3

if TYPE_CHECKING:
    from botocore.client import BaseClient

CHUNK = 8 << 20  # bytes read at a time


def store_in_bucket(folder: Path, files: Mapping[str, str], *, location: str) -> str:
    """Makes the bucket hold a model's files, and returns their address. What it holds already is not sent again.

    Args:
        files: relative path -> sha256.
        location: s3://BUCKET/PREFIX.

    Raises:
        InputError: the store does not answer, or refuses.
    """
    bucket, _ = split_s3(location)
    address = address_of(files, location=location)
    _, prefix = split_s3(address)
    client = registry_s3_client()
    with s3_errors(address):
        for path, digest in files.items():
            size = (folder / path).stat().st_size
            # The address is a digest of the content, so only these files belong there, whoever put others.
            if not _holds(client, bucket, prefix + path, size=size, digest=digest):
                client.upload_file(str(folder / path), bucket, prefix + path)
        client.put_object(
            Bucket=bucket, Key=f"{prefix.rstrip('/')}.json", Body=json.dumps(dict(files), indent=1).encode()
        )
    return address


def address_of(files: Mapping[str, str], *, location: str) -> str:
    """Where files with these digests are stored."""
    bucket, prefix = split_s3(location)
    return f"s3://{bucket}/{prefix}models/{digest_of(dict(files))}"


def _holds(client: "BaseClient", bucket: str, key: str, *, size: int, digest: str) -> bool:
    """Whether the bucket holds an object with that content."""
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
