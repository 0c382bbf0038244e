"""Downloads registered models and checks the sha256 of every file.

The digests to compare with are tags of the version in the tracking database. Digests beside the files would change with
them.
"""

import re
import shutil
import tempfile
from pathlib import Path

from star.errors import InputError
from star.folders.owners import create_folder, create_in_home, refuse_others
from star.registry.publish import hash_files, transfer_timeout
from star.registry.versions import (
    Version,
    find_by_full_reference,
    find_by_reference_or_name,
    is_version_reference,
    is_written_as_path,
)
from star.tracking.server import reason_of


def download_model(reference: str, out: Path) -> Path:
    """Downloads a model into `out`/<model digest>, checks the sha256 of every file, and returns that folder.

    A copy that is there already is checked, and downloaded again only if it is damaged.

    Args:
        reference: `name` (its champion), `name@alias` or `name/3`, with or without `models:/` before it.

    Raises:
        InputError: no such model, version or alias; not registered by `star`; the stored files differ from those
        registered.
    """
    return download_version(find_by_full_reference(reference), out)


def download_version(version: Version, out: Path) -> Path:
    """`download_model` for a version that was looked up already."""
    if not version.files or not version.model_digest:
        raise InputError(f"{version} was not registered by `star`: it has no list of files to check a download against")
    folder = out / re.sub(r"[^\w-]", "-", version.model_digest)  # a digest may hold a colon or a slash
    refuse_others(folder)
    if folder.is_dir() and hash_files(folder) == version.files:
        return folder
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


def download_version_as(version: Version, folder: Path) -> Path:
    """`download_version` to a given folder. A folder that holds these files already is kept.

    Raises:
        InputError: the folder holds something else, or as `download_model`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if folder.is_dir() and version.files and hash_files(folder) == version.files:
            return folder
        raise InputError(f"{folder} exists and does not hold the files of {version}: remove it, or give another folder")
    create_folder(folder.parent)
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


def _download_artifacts(version: Version, path: str, *, to: Path) -> Path:
    """Downloads one file of a version, or all with the empty path, without a check."""
    import mlflow
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException

    to.mkdir(parents=True, exist_ok=True)
    uri = f"models:/{version.name}/{version.version}"
    try:
        with transfer_timeout():
            mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/{path}" if path else uri, dst_path=str(to))
    except (MlflowException, ClientError, OSError) as error:
        raise InputError(f"the files of {version} could not be downloaded: {reason_of(error)}") from error
    return to / path


def _check_files(version: Version, found: dict[str, str], registered: dict[str, str]) -> None:
    wrong = sorted(path for path in found.keys() | registered.keys() if found.get(path) != registered.get(path))
    if wrong:
        names = ", ".join(wrong[:5])
        raise InputError(f"the stored files of {version} are not those registered ({names}): register it again")


def find_model(model: str, *, name: str) -> tuple[Version | None, Path]:
    """The registered version that is meant, if one is, and the folder of its files, downloaded into `models/` of the home.

    Args:
        model: a version or alias of the registered model `name`, NAME/3, NAME@alias, or the NAME of a registered model,
            which stands for its champion. A folder is meant only where it is written as a path, such as ./NAME: whoever
            can make a folder called `champion` here must not decide which model is asked.

    Raises:
        InputError: there is neither.
    """
    folder = Path(model).expanduser()
    if is_written_as_path(model):
        if not folder.is_dir():
            raise InputError(
                f"no model folder at {model}: give a folder, an alias such as champion, or a version number"
            )
        return None, folder
    try:
        version = find_by_reference_or_name(model, name=name)
    except InputError as error:
        if folder.is_dir():
            raise InputError(f"{error}; write ./{model} if you mean the folder") from error
        raise
    return version, download_version(version, create_in_home("models"))


def get_model_folder(model: str, *, name: str) -> Path:
    """The folder of the model that `find_model` finds."""
    return find_model(model, name=name)[1]


def get_model_folder_or_hub_id(model: str, *, name: str) -> Path | str:
    """`get_model_folder`, but a hub id, such as Qwen/Qwen3-0.6B, is returned as it is."""
    has_form_of_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", model)
    is_hub_id = has_form_of_hub_id and not Path(model).exists() and not is_version_reference(model)
    return model if is_hub_id else get_model_folder(model, name=name)
