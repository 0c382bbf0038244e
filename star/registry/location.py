"""Says where ledgers and published weights are kept: in the bucket of STAR_REGISTRY, or with the tracking database."""

import os
import re

from star.errors import InputError
from star.folders.s3_client import check_key, s3_client
from star.tracking.server import shown_uri, tracking_uri

DATABASE = "tracking database"  # written to a tag of registered models: do not change


def registry_location() -> str | None:
    """STAR_REGISTRY, else DATABASE where the tracking goes to a database; None behind a server without STAR_REGISTRY.

    Raises:
        InputError: STAR_REGISTRY is not the address of a bucket.
    """
    if given := os.environ.get("STAR_REGISTRY"):
        split_s3(given)
        return given.rstrip("/")
    # A server hides its database, and MLflow's own API has no conditional write.
    return None if tracking_uri().startswith("http") else DATABASE


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key prefix of `s3://bucket/prefix`; the prefix ends with a slash or is empty.

    Raises:
        InputError: the address has another form, or a part of it is `..`.
    """
    found = re.fullmatch(r"s3://([\w.-]+)(?:/(.*?))?/*", uri)
    if not found:
        raise InputError(f"STAR_REGISTRY must be s3://BUCKET/PREFIX, not {shown_uri(uri)}")
    check_key(f"{found[1]}/{found[2] or ''}", source=f"STAR_REGISTRY={shown_uri(uri)}")
    return found[1], f"{found[2]}/" if found[2] else ""


def registry_s3_client():
    """A client for the bucket, at MLFLOW_S3_ENDPOINT_URL or AWS_ENDPOINT_URL where the store is not Amazon's."""
    return s3_client(os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
