"""Downloads the files of versions and checks the sha256 of every one.

The digests to compare with are those of the `Version`: as recorded beside the ledger (promotion/version_records.py), else
as MLflow's tags say. Digests beside the files would change with them.
"""

import re
import shutil
import tempfile
from pathlib import Path

from star.errors import InputError
from star.folders.owners import create_folder, refuse_others
from star.registry.publish import hash_files, transfer_timeout
from star.registry.versions import Version
from star.tracking.server import reason_of


class OtherFilesError(InputError):
    """The stored files of a version are not those that it was registered with."""


def download_version(version: Version, out: Path) -> Path:
    """Downloads a version into `out`/<model digest>, checks the sha256 of every file, and returns that folder.

    A copy that is there already is checked, and downloaded again only if it is damaged.

    Raises:
        InputError: the files cannot be downloaded, or nobody has said which they are.
        OtherFilesError: the stored files differ from those registered.
    """
    folder = _folder_of(version, out)
    refuse_others(folder)
    if folder.is_dir() and hash_files(folder) == version.files:
        return folder
    return verify_stored_files(version, out)


def verify_stored_files(version: Version, out: Path) -> Path:
    """`download_version`, but what is stored is read in any case: a copy here says nothing of it."""
    folder = _folder_of(version, out)
    refuse_others(folder)
    create_folder(out)
    # Downloaded beside its place and renamed once checked, so that a kill leaves no folder that looks complete.
    with tempfile.TemporaryDirectory(dir=out, prefix=".download-") as scratch:
        model = Path(scratch) / "model"
        _download_artifacts(version, "", to=model)
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
    return out / re.sub(r"[^\w-]", "-", version.model_digest)  # a digest may hold a colon or a slash


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
        download_version(version, Path(scratch)).rename(folder)
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


def _download_artifacts(version: Version, path: str, *, to: Path) -> Path:
    """Downloads one file of a version, or all with the empty path, without a check."""
    import mlflow
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    to.mkdir(parents=True, exist_ok=True)
    uri = f"models:/{version.name}/{version.version}"
    try:
        with transfer_timeout():
            # A version that was registered in MLflow's pages names a LoggedModel, whose files may lie in the bucket.
            if version.source.startswith("s3://"):
                get_artifact_repository(version.source).download_artifacts(path, dst_path=str(to))
            else:
                mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/{path}" if path else uri, dst_path=str(to))
    except (MlflowException, ClientError, OSError) as error:
        raise InputError(f"the files of {version} could not be downloaded: {reason_of(error)}") from error
    return to / path


def _check_files(version: Version, found: dict[str, str], registered: dict[str, str]) -> None:
    wrong = sorted(path for path in found.keys() | registered.keys() if found.get(path) != registered.get(path))
    if wrong:
        names = ", ".join(wrong[:5])
        raise OtherFilesError(f"the stored files of {version} are not those registered ({names}): register it again")
