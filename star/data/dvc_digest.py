"""Computes the digest under which DVC tracks a folder, without needing DVC: the md5 over the list of its files' md5 sums."""

import hashlib
import json
from pathlib import Path

from star.digest_cache import digests_of


def dvc_digest(folder: Path) -> str:
    """Returns DVC's `md5.dir` of a folder: 36 characters, as in dvc.lock. The longest digest that an MLflow dataset takes is as long."""
    found = digests_of([file for file in folder.rglob("*") if file.is_file()], algorithm="md5")
    files = [{"md5": md5, "relpath": file.relative_to(folder).as_posix()} for file, md5 in found.items()]
    # DVC hashes this list in this order; any other order gives another digest than dvc.lock has.
    files.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
