"""Computes the digest under which DVC tracks a file or folder, without needing DVC.

That of a folder is the md5 over the list of its files' md5 sums.
"""

import hashlib
import json
from pathlib import Path

from star.digest_cache import digests_of


def dvc_digest(content: Path) -> str:
    """Returns DVC's md5 of a file, or its `md5.dir` of a folder: 36 characters, as in dvc.lock.

    The longest digest that an MLflow dataset takes is as long.
    """
    if content.is_file():
        return digests_of([content], algorithm="md5")[content]
    found = digests_of([file for file in content.rglob("*") if file.is_file()], algorithm="md5")
    files = [{"md5": md5, "relpath": file.relative_to(content).as_posix()} for file, md5 in found.items()]
    # DVC hashes this list in this order; any other order gives another digest than dvc.lock has.
    files.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
