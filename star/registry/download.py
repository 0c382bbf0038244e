"""Downloads the files of versions and checks the sha256 of every one.

    models/<digest of the trained model>-<the first digits of that of the files>

One trained model can be published as different files: in fp32 and in bf16, or under two names, with a card for each. Each
has a folder of its own, so that none takes the place of another that somebody is reading.

The digests to compare with are those of the `Version`: as recorded beside the ledger (promotion/version_records.py), else
as MLflow's tags say. Digests beside the files would change with them.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from star.errors import InputError, UnavailableError
from star.folders.link import copy_folder
from star.folders.owners import create_folder, refuse_others
from star.folders.s3_client import is_outage
from star.hashing import digest_of
from star.registry.local_artifacts import folder_in_home
from star.registry.publish import hash_files, transfer_timeout
from star.registry.versions import Version
from star.tracking.reason import reason_of
from star.tracking.server import shown_uri, tracking_uri

LONGEST_NAME = 100  # characters of a folder's name before the digest of its files; file systems take 255 bytes
FILES_DIGITS = 16  # of the digest of a folder's files in its name


class OtherFilesError(InputError):
    """The stored files of a version are not those that it was registered with."""


def download_version(version: Version, out: Path, *, link: bool = True) -> Path:
    """Downloads a version into a folder of its own in `out`, checks the sha256 of every file, and returns that folder.

    A copy that is there already is checked, and downloaded again only if it is damaged.

    Args:
        link: whether large files may be links of those that this home stores; then they are read-only.

    Raises:
        InputError: the files cannot be downloaded, or nobody has said which they are.
        OtherFilesError: the stored files differ from those registered.
    """
    folder = _folder_of(version, out)
    refuse_others(folder)
    if folder.is_dir() and hash_files(folder) == version.files:
        return folder
    return verify_stored_files(version, out, link=link)


def verify_stored_files(version: Version, out: Path, *, link: bool = True) -> Path:
    """`download_version`, but what is stored is read in any case: a copy here says nothing of it."""
    folder = _folder_of(version, out)
    refuse_others(folder)
    create_folder(out)
    # Downloaded beside its place and renamed once checked, so that a kill leaves no folder that looks complete.
    with tempfile.TemporaryDirectory(dir=out, prefix=".download-") as scratch:
        model = Path(scratch) / "model"
        _download_artifacts(version, "", to=model, link=link)
        _check_files(version, hash_files(model), version.files)
        # A folder cannot be renamed over one with content, so a damaged copy is removed first.
        shutil.rmtree(folder, ignore_errors=True)
        model.rename(folder)
    return folder


def _folder_of(version: Version, out: Path) -> Path:
    if not version.files or not version.model_digest:
        raise InputError(
            f"{version} was not registered by `star`, so there is nothing to compare its files with: "
            f"`star promote {version.version} --name {version.name}` takes them as they are"
        )
    return out / download_name(version.model_digest, version.files)


def download_name(model_digest: str, files: Mapping[str, str]) -> str:
    """The name of the folder that a version is downloaded to."""
    # A digest may hold a colon or a slash, and one that somebody wrote to a tag thousands of characters.
    model = re.sub(r"[^\w-]", "-", model_digest)[:LONGEST_NAME]
    return f"{model}-{digest_of(dict(files))[:FILES_DIGITS]}"


def is_download_of(model_digest: str, name: str) -> bool:
    """Whether a folder of this name is a download of a version of the model; an older STAR's has the digest alone."""
    return bool(model_digest) and re.sub(rf"-[0-9a-f]{{{FILES_DIGITS}}}$", "", name) == model_digest


def download_version_as(version: Version, folder: Path) -> Path:
    """`download_version` to a given folder. A folder that holds these files already is kept.

    Raises:
        InputError: the folder holds something else, or as `download_model`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if folder.is_dir() and version.files and hash_files(folder) == version.files:
            return folder
        raise InputError(f"{folder} exists and does not hold the files of {version}: remove it, or give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
        # Copies: whoever names a folder may go on to change the model in it.
        download_version(version, Path(scratch), link=False).rename(folder)
    return folder


def download_file(version: Version, path: str, to: Path) -> Path:
    """Downloads one file of a version into the empty folder `to`, and checks it.

    Raises:
        InputError: the version has no such file, or the stored file differs from the one registered.
    """
    if path not in version.files:
        raise InputError(f"{version} has no {path}")
    file = _download_artifacts(version, path, to=to)
    _check_files(version, hash_files(to), {path: version.files[path]})
    return file


def download_unchecked(version: Version, to: Path) -> Path:
    """Downloads whatever MLflow has as a version's files into the empty folder `to`."""
    return _download_artifacts(version, "", to=to)


def _download_artifacts(version: Version, path: str, *, to: Path, link: bool = False) -> Path:
    """Downloads one file of a version, or all with the empty path, without a check.

    Args:
        link: whether large files that this home stores may become links, which nobody can write to.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    to.mkdir(parents=True, exist_ok=True)
    # A version that was registered in MLflow's pages names a LoggedModel, whose files may lie in the bucket.
    in_bucket = version.source.startswith("s3://")
    try:
        with transfer_timeout():
            store = get_artifact_repository(
                version.source if in_bucket else f"models:/{version.name}/{version.version}"
            )
            location = _refuse_other_server(version, store)
            place = folder_in_home(location) if not path else None
            # The folder of a version that was deleted is missing: MLflow says so.
            if place and place.is_dir():
                copy_folder(place, to, link=link)
            else:
                store.download_artifacts(path, dst_path=str(to))
    except InputError:
        raise
    except (
        Exception
    ) as error:  # whoever registers a version names its store, and MLflow's clients have errors of their own
        kind = UnavailableError if is_outage(error) else InputError
        raise kind(f"the files of {version} could not be downloaded: {reason_of(error)}") from error
    return to / path


def _refuse_other_server(version: Version, store: Any) -> str:
    """Checks that files that are asked of a server are asked of MLflow's, and returns where they are.

    Whoever reaches MLflow can register a version whose files lie anywhere, and MLflow's client sends its password or token
    to wherever that is.

    Raises:
        InputError: they are on another server.
    """
    while inner := getattr(store, "repo", None):  # models:/ and runs:/ stand for another address
        store = inner
    files, server = urlsplit(store.artifact_uri), urlsplit(tracking_uri())
    if files.scheme in ("http", "https") and (files.scheme, files.netloc) != (server.scheme, server.netloc):
        place = shown_uri(f"{files.scheme}://{files.netloc}"[:200])
        raise InputError(
            f"the files of {version} are at {place}, which is not MLflow's server: they are not asked for, because MLflow's "
            "password or token would be sent there"
        )
    return str(store.artifact_uri)


def _check_files(version: Version, found: dict[str, str], registered: dict[str, str]) -> None:
    wrong = sorted(path for path in found.keys() | registered.keys() if found.get(path) != registered.get(path))
    if wrong:
        names = ", ".join(wrong[:5])
        raise OtherFilesError(f"the stored files of {version} are not those registered ({names}): register it again")
