"""Stores published files in the bucket of STAR_REGISTRY, under the digest of their content.

    star/models/<digest>/model.safetensors    the files
    star/models/<digest>.json                 the list of them: path -> sha256, written last; for people, nothing reads it

Whoever can write to the bucket can put anything under such an address before or after. So what lies there already is
read and compared before its upload is skipped.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from star.folders.s3_client import holds_object, s3_errors
from star.hashing import digest_of
from star.registry.location import registry_s3_client, split_s3


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
            if not holds_object(client, bucket, prefix + path, size=size, digest=digest):
                client.upload_file(str(folder / path), bucket, prefix + path)
        client.put_object(
            Bucket=bucket, Key=f"{prefix.rstrip('/')}.json", Body=json.dumps(dict(files), indent=1).encode()
        )
    return address


def address_of(files: Mapping[str, str], *, location: str) -> str:
    """Where files with these digests are stored."""
    bucket, prefix = split_s3(location)
    return f"s3://{bucket}/{prefix}models/{digest_of(dict(files))}"
