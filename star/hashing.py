"""Computes digests: sha256 of files and of JSON values."""

import hashlib
import json
from pathlib import Path

from star.errors import InputError


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file's content, in hex.

    Raises:
        InputError: the file is missing.
    """
    if not path.is_file():
        raise InputError(f"no file at {path}: check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: object) -> str:
    """Returns the sha256 (hex) of a JSON value. The order of the keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
