"""Models out of the registry, every file proven to be the one that was registered.

What is compared with are the digests in the tracking database, not ones that lie beside the files.
"""

import re
import shutil
import tempfile
from pathlib import Path

from star.errors import InputError
from star.home import home
from star.registry.publish import hashes, time_for_weights
from star.registry.versions import Version, names_version, referenced, resolve
from star.tracking.server import reason_of


def fetch_model(reference: str, out: Path) -> Path:
    """Downloads a model into `out`/<model digest> and returns that folder, every file's sha256 checked.

    A copy that is there already is checked, and downloaded again only if it is damaged.

    The reference is `name` (its champion), `name@alias` or `name/3`, with or without `models:/` before it.

    Raises:
        InputError: no such model, version or alias; not made by `star`; stored files differ from those registered.
    """
    return fetch_version(referenced(reference), out)


def fetch_version(version: Version, out: Path) -> Path:
    """`fetch_model` of a version that was looked up already."""
    if not version.files or not version.model_digest:
        raise InputError(f"{version} was not registered by `star`: it has no list of files to check a download against")
    folder = out / re.sub(r"[^\w-]", "-", version.model_digest)
    if folder.is_dir() and hashes(folder) == version.files:
        return folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".download-") as scratch:
        complete = _download(version, to=Path(scratch) / "model")
        shutil.rmtree(folder, ignore_errors=True)
        complete.rename(folder)
    return folder


def fetch_file(version: Version, path: str, to: Path) -> Path:
    """Downloads one file of a version, and checks it.

    Raises:
        InputError: the version has no such file, or it is not the one that was registered.
    """
    if path not in version.files:
        raise InputError(f"{version} has no {path}")
    got = _artifacts(version, path, to=to)
    _compare(version, hashes(to), {path: version.files[path]})
    return got


def _download(version: Version, *, to: Path) -> Path:
    _artifacts(version, "", to=to)
    _compare(version, hashes(to), version.files)
    return to


def _artifacts(version: Version, path: str, *, to: Path) -> Path:
    import mlflow
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException

    to.mkdir(parents=True, exist_ok=True)
    uri = f"models:/{version.name}/{version.version}"
    try:
        with time_for_weights():
            mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/{path}" if path else uri, dst_path=str(to))
    except (MlflowException, ClientError, OSError) as error:
        raise InputError(f"the files of {version} cannot be had: {reason_of(error)}") from error
    return to / path


def _compare(version: Version, got: dict[str, str], registered: dict[str, str]) -> None:
    wrong = sorted(path for path in got.keys() | registered.keys() if got.get(path) != registered.get(path))
    if wrong:
        names = ", ".join(wrong[:5])
        raise InputError(f"the stored files of {version} are not those registered ({names}): register it again")


def resolve_model(model: str, *, name: str) -> Path:
    """The folder of a model: the given one, or a registered version, of the model `name` unless it names one, in the home's `models/`."""
    if Path(model).is_dir():
        return Path(model)
    if "/" in model and not names_version(model):
        raise InputError(f"no model folder at {model}: give a folder, an alias such as champion, or a version number")
    return fetch_version(resolve(model, name=name), home() / "models")


def model_source(model: str, *, name: str) -> Path | str:
    """`resolve_model`, but a hub id, such as Qwen/Qwen3-0.6B, stays as it is."""
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists() and not names_version(model)
    return model if is_hub_id else resolve_model(model, name=name)
