"""Finds a finished result of the same work in another folder, and takes it instead of computing it a second time.

`make run` writes to runs/pipeline/..., `dvc repro` to runs/dvc/..., a stage by hand to its --out. All of them look for
each other's results. After `make run`:

    $ dvc repro
    synthesize: already done, taken from runs/pipeline/star-2026-11-28-21-11-47-119316/synthesize/data

Equal fingerprints mean equal work (manifest.py), so a result of other settings, code or inputs is never taken. These
places are searched, in this order:

 1. the home (STAR_HOME, else ./runs), without what its runners keep there for themselves (NO_RESULTS)
 2. the S3 folder that the result will be uploaded to, with `--out s3://...`
 3. the places of STAR_REUSE, separated by spaces: folders, or s3://bucket/prefix. A folder found in S3 is downloaded
    into the home first.

The taken folder is a copy of the files that the manifest lists, and sha256 of all of them is verified before it
appears: of a copy by reading it, of a link unless the file has not changed since it was read (star/digest_cache.py).
Large files are hard links where the file system allows it: a store of hundreds of gigabytes is then on the disk once.
They become read-only, because a program that writes into one of the two names would change both.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from star.digest_cache import links_change
from star.errors import InputError
from star.folders.link import link_large_or_copy
from star.folders.manifest import MANIFEST, copy_listed_files, is_finished, read_manifest
from star.folders.owners import create_in_home, is_own
from star.folders.publish import make_incoming, replace_folder
from star.folders.s3_client import is_s3_url
from star.folders.working_paths import incoming_folder
from star.home import home

VARIABLE = "STAR_REUSE"
# Of the home: links to results, unfinished work, and files of kfp and MLflow.
NO_RESULTS = frozenset(
    {"latest", "work", "cache", "in-use", "inputs", "lineages", "logs", "mlartifacts", "models", "spool"}
)

_upload_place: ContextVar[str | None] = ContextVar("_upload_place", default=None)


@contextlib.contextmanager
def searching_also(url: str) -> Iterator[None]:
    """Inside the block the S3 folder `url` is searched too."""
    token = _upload_place.set(url)
    try:
        yield
    finally:
        _upload_place.reset(token)


def take_equal_result(out: Path, *, fingerprint: str, is_valid: Callable[[Path], bool]) -> str | None:
    """Puts a verified copy of a finished result of this work at `out`, and returns where it was; None if there is none.

    A folder that is damaged, that somebody removes meanwhile, or that `is_valid` refuses is passed over.

    Raises:
        InputError: a place of STAR_REUSE is no folder, or one in S3 cannot be read.
    """
    for place, folder in _places_of(fingerprint):
        if folder != out and _take(folder, out, fingerprint=fingerprint, is_valid=is_valid):
            return place
    return None


def _places_of(fingerprint: str) -> Iterator[tuple[str, Path]]:
    """Every folder whose manifest has the fingerprint: its name for people, and its path on this machine."""
    uploaded = _upload_place.get()
    for place in (str(home()), *([uploaded] if uploaded else []), *os.environ.get(VARIABLE, "").split()):
        if is_s3_url(place):
            yield from _places_in_s3(place, fingerprint)
        else:
            root = Path(place).expanduser().resolve()
            if not root.is_dir() and root != home():
                raise InputError(f"{VARIABLE} names {place}, which is no folder: correct or unset it")
            for folder in finished_folders(root):
                # A place of STAR_REUSE is trusted by name. In a home that is open to others anybody could put a folder.
                if (root != home() or is_own(folder)) and _fingerprint_at(folder) == fingerprint:
                    yield shown(folder), folder


def _places_in_s3(url: str, fingerprint: str) -> Iterator[tuple[str, Path]]:
    from star.folders.s3 import download_folder, manifests_below

    for found, content in manifests_below(url):
        if _fingerprint_in(content) == fingerprint:
            yield found, download_folder(found, create_in_home("s3") / "fetched")


def finished_folders(root: Path) -> Iterator[Path]:
    """The folders below `root` that have a manifest, without hidden ones and, in the home, those of NO_RESULTS."""
    for path, folders, files in os.walk(root):
        if MANIFEST in files:
            yield Path(path)
            folders.clear()  # a result holds no other results
        left_out = NO_RESULTS if Path(path) == home() else frozenset()
        # Hidden folders are results on their way to or from their place.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in left_out)


def shown(folder: Path) -> str:
    """The path as a person would write it: relative where it is below the current directory."""
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)


def _fingerprint_at(folder: Path) -> str | None:
    try:
        return _fingerprint_in((folder / MANIFEST).read_bytes())
    # Somebody has removed it meanwhile, or it is another user's who lets nobody read it.
    except OSError:
        return None


def _fingerprint_in(manifest: bytes) -> str | None:
    try:
        return json.loads(manifest)["fingerprint"]
    # A manifest of another program, or one that is damaged, belongs to no work.
    except (ValueError, TypeError, KeyError):
        return None


def _take(folder: Path, out: Path, *, fingerprint: str, is_valid: Callable[[Path], bool]) -> bool:
    incoming = incoming_folder(out)
    make_incoming(incoming)
    try:
        names = [entry.path for entry in read_manifest(folder).files]
        with links_change({folder / name: incoming / name for name in names}):
            copy_listed_files(folder, incoming, copy=_link_or_copy)
    # Somebody removed the folder or a file of it meanwhile, or its manifest is damaged.
    except (OSError, InputError):
        shutil.rmtree(incoming, ignore_errors=True)
        return False
    # The copies are verified and not the originals: one reading covers both. `is_valid` reads a folder's own files, so it comes after.
    if not (is_finished(incoming, fingerprint=fingerprint) and is_valid(incoming)):
        shutil.rmtree(incoming)
        return False
    replace_folder(out, incoming)
    return True


def _link_or_copy(source: Path, target: Path) -> None:
    # DVC may have made the file a link into its own cache.
    link_large_or_copy(source.resolve(), target)
