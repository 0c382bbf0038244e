"""Runs work on local copies of folders that lie in S3: downloads the inputs before, uploads the result after.

    with_local_folders(distill_it, out=Path("s3://bucket/distilled"), topk=Path("s3://bucket/topk"), upload=True)

calls `distill_it(out=<home>/s3/made/bucket/distilled, topk=<home>/s3/fetched/bucket/topk)`.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from star.folders.owners import create_in_home
from star.folders.reuse import searching_also
from star.folders.s3 import download_folder, upload_folder
from star.folders.s3_client import S3Folder, is_s3_url

T = TypeVar("T")


def with_local_folders(work: Callable[..., T], *, out: Path, upload: bool, **arguments: object) -> T:
    """Calls `work` with every folder of S3 replaced by a local one, and returns what it returns.

    Args:
        out: the folder that `work` writes; one in S3 is written locally and then uploaded.
        upload: whether this process uploads. Of several processes that share the work only rank 0 does.
        arguments: passed on; a Path in S3, also in a list, becomes the path of its local copy.

    Raises:
        InputError: an input is incomplete, or S3 does not answer.
    """
    s3_folder = S3Folder.parse(out) if is_s3_url(out) else None
    # A fixed place in the home, so that a killed stage finds its workspace again.
    local_out = create_in_home("s3") / "made" / s3_folder.bucket / s3_folder.prefix if s3_folder else out
    with searching_also(str(s3_folder)) if s3_folder else contextlib.nullcontext():
        result = work(out=local_out, **{name: _with_local_copies(value) for name, value in arguments.items()})
    # After a cached result too, because its earlier upload may have been interrupted.
    if s3_folder and upload:
        upload_folder(local_out, str(s3_folder))
    return result


def local_copy(folder: Path) -> Path:
    """The folder itself, or a local copy of one that lies in S3."""
    return download_folder(folder, create_in_home("s3") / "fetched") if is_s3_url(folder) else folder


def _with_local_copies(value: object) -> object:
    if isinstance(value, list):
        return [_with_local_copies(member) for member in value]
    return local_copy(value) if isinstance(value, Path) else value
