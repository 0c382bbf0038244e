"""Models in MLflow's registry: register a Hugging Face folder, list what is there, fetch it and prove it is the same.

A version is a plain folder (config, tokenizer, safetensors), not an MLflow flavour: those drop the tools from a chat
and split the tokenizer from the model. The version's tags carry its scores, its lineage and the sha256 of every file,
so that a download is checked against the database and not against the store it came from.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from star.errors import InputError
from star.registry.tracking import connect, experiment_id, mlflow_key

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

DIGEST, FILES, SCORE, LINEAGE = "star.model_digest", "star.files", "star.score.", "star.lineage."
TRANSFER_SECONDS = 600  # a server may store gigabytes before it answers
NAME = r"[^/:@'\"]+"
REFERENCE = re.compile(rf"(?:models:/)?(?P<name>{NAME})(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))?")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    scores: dict[str, float]
    lineage: dict[str, str]
    created: datetime
    model_digest: str
    files: dict[str, str]  # relative path -> sha256; empty for a version that something else registered

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def register_model(
    folder: Path, *, name: str, scores: dict[str, float], lineage: dict[str, str], model_digest: str
) -> Version:
    """Registers a Hugging Face folder as the next version of `name`; or returns the one with that digest.

    Raises:
        InputError: the folder holds no model, the name cannot be used, or MLflow does not answer.
    """
    if not re.fullmatch(NAME, name):
        raise InputError(f"a model cannot be named {name!r}: leave out / : @ and quotes")
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder} is no model: it needs a config.json and safetensors weights")
    if found := next((version for version in list_versions(name) if version.model_digest == model_digest), None):
        return found
    tags = {DIGEST: model_digest, FILES: json.dumps(_hashes(folder))}
    tags |= {mlflow_key(SCORE + key): repr(float(value)) for key, value in scores.items()}
    tags |= {mlflow_key(LINEAGE + key): value for key, value in lineage.items()}
    return _read(_upload(folder, name=name, tags=tags), aliases={})


def annotate(version: Version, *, scores: Mapping[str, float], lineage: Mapping[str, str]) -> Version:
    """Writes newer scores and lineage to a version's tags and returns the version as it is then."""
    client = connect()
    tags = {SCORE + key: repr(float(value)) for key, value in scores.items()}
    tags |= {LINEAGE + key: value for key, value in lineage.items()}
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), mlflow_key(key), value)
    return find_version(version.name, version=version.version)


def list_versions(name: str) -> list[Version]:
    """All versions of a model, newest first; none when nothing was registered under that name.

    Raises:
        InputError: MLflow does not answer.
    """
    client = connect()
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases  # the search below does not fill them in
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        raise
    found = client.search_model_versions(f"name = '{name}'")
    return sorted((_read(entry, aliases=aliases) for entry in found), key=lambda version: -version.version)


def find_version(name: str, *, version: int | None = None, alias: str = "champion") -> Version:
    """The version of that number, else the one that bears the alias.

    Raises:
        InputError: there is none; the message says which there are.
    """
    versions = list_versions(name)
    if not versions:
        where = "check MLFLOW_TRACKING_URI and STAR_HOME"
        raise InputError(f"no model {name!r} is registered: run `star run` first, or {where}")
    known = ", ".join(str(entry.version) for entry in versions)
    if version is not None:
        if found := next((entry for entry in versions if entry.version == version), None):
            return found
        raise InputError(f"{name} has no version {version}: choose one of {known}")
    if found := next((entry for entry in versions if alias in entry.aliases), None):
        return found
    raise InputError(f"no version of {name} is called {alias!r}: name a version ({known}), or `star promote` one first")


def fetch_model(name_or_ref: str, out: Path) -> Path:
    """Downloads a model into `out`/<model digest> and returns that folder, every file's sha256 checked.

    A copy that is there already is checked, and downloaded again only if it is damaged.

    The reference is `name` (its champion), `name@alias` or `name/3`, with or without `models:/` before it.

    Raises:
        InputError: no such model, version or alias; not made by `star`; stored files differ from those registered.
    """
    reference = REFERENCE.fullmatch(name_or_ref)
    if not reference:
        raise InputError(f"{name_or_ref!r} names no model: write NAME, NAME@ALIAS or NAME/VERSION")
    number = reference["version"]
    version = find_version(
        reference["name"], version=int(number) if number else None, alias=reference["alias"] or "champion"
    )
    if not version.files or not version.model_digest:
        raise InputError(f"{version} was not registered by `star`: it has no list of files to check a download against")
    folder = out / re.sub(r"[^\w-]", "-", version.model_digest)
    if folder.is_dir() and _hashes(folder) == version.files:
        return folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".download-") as scratch:
        complete = _download(version, to=Path(scratch) / "model")
        shutil.rmtree(folder, ignore_errors=True)
        complete.rename(folder)
    return folder


def _upload(folder: Path, *, name: str, tags: dict[str, str]) -> "ModelVersion":
    client = connect()
    import mlflow

    run = mlflow.active_run()
    model = mlflow.initialize_logged_model(
        name=re.sub(r"[^\w-]", "-", name),  # stricter rules than for the registered model: no dots
        experiment_id=run.info.experiment_id if run else experiment_id(client),
    )
    with _time_for_weights():
        client.log_model_artifacts(model.model_id, str(folder))
    mlflow.finalize_logged_model(model.model_id, "READY")
    return mlflow.register_model(model.model_uri, name, tags=tags)


def _download(version: Version, *, to: Path) -> Path:
    import mlflow

    to.mkdir()
    with _time_for_weights():
        mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{version.name}/{version.version}", dst_path=str(to))
    got = _hashes(to)
    wrong = sorted(path for path in got.keys() | version.files.keys() if got.get(path) != version.files.get(path))
    if wrong:
        names = ", ".join(wrong[:5])
        raise InputError(f"the stored files of {version} are not those registered ({names}): register it again")
    return to


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder, by relative path."""
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _read(entry: "ModelVersion", *, aliases: Mapping[str, int | str]) -> Version:
    number = int(entry.version)

    def under(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): value for key, value in entry.tags.items() if key.startswith(prefix)}

    return Version(
        name=entry.name,
        version=number,
        aliases=tuple(sorted(alias for alias, bearer in aliases.items() if int(bearer) == number)),
        scores={key: float(value) for key, value in under(SCORE).items()},
        lineage=under(LINEAGE),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        model_digest=entry.tags.get(DIGEST, ""),
        files=json.loads(entry.tags.get(FILES, "{}")),
    )


@contextmanager
def _time_for_weights() -> Iterator[None]:
    """The few seconds that `connect` allows a call are for metrics: a transfer of weights gets more."""
    key = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[key]
    os.environ[key] = str(max(int(before), TRANSFER_SECONDS))
    try:
        yield
    finally:
        os.environ[key] = before
