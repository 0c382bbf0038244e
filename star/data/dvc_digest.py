"""Computes the digest under which DVC tracks a folder, without needing DVC: the md5 over the list of its files' md5 sums."""

import hashlib
import json
from pathlib import Path


def dvc_digest(folder: Path) -> str:
    """Returns DVC's `md5.dir` of a folder: 36 characters, as in dvc.lock. The longest digest that an MLflow dataset takes is as long."""
    files = [
        {"md5": _md5(file), "relpath": file.relative_to(folder).as_posix()}
        for file in folder.rglob("*")
        if file.is_file()
    ]
    # DVC hashes this list in this order; any other order gives another digest than dvc.lock has.
    files.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
