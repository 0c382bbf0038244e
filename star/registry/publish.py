"""Publishes models in MLflow's registry: a Hugging Face folder becomes the next version, its files' sha256 become tags.

A version is config, tokenizer and safetensors, not one of MLflow's model flavours, because those drop the tools from a
chat and separate the tokenizer from the model.

Where STAR_REGISTRY names a bucket, the files are uploaded to it under the digest of their content, and the list of them
is written last. Deleting runs or experiments does not delete them. Without STAR_REGISTRY they are artifacts of MLflow's
LoggedModel.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star.digest_cache import digests_of
from star.errors import InputError
from star.folders.link import copy_folder
from star.hashing import digest_of
from star.json_file import write_json
from star.registry.bucket import address_of, store_in_bucket
from star.registry.lineage import LINEAGE_FILE
from star.registry.local_artifacts import folder_in_home
from star.registry.location import registry_location
from star.registry.versions import (
    DIGEST,
    DIGEST_TAG,
    DIGESTS_TAG,
    LINEAGE_TAG,
    NAME_PATTERN,
    SCORE_TAG,
    Version,
    digests_tag,
    find_version,
    read_version,
    version_pages,
)
from star.tracking.runs import current_run
from star.tracking.searches import quoted_text, read_pages
from star.tracking.server import connect, experiment_id, mlflow_key, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

CARD = "README.md"
CONTENT_TAG = "star.content"  # tag of a LoggedModel: digest of the hashes of its files
MODEL_TAG = "star.name"  # tag of a LoggedModel: the registered model that it is meant for
DESCRIPTION_CHARACTERS = 5000  # of a version; PostgreSQL refuses more for MLflow, SQLite does not
TRANSFER_SECONDS = 600  # a server may store gigabytes before it answers
AUDIT_PAGE = 500  # LoggedModels or versions that MLflow is asked for at a time where all are read
UNFINISHED_SECONDS = 3600  # a publication that is unfinished for longer was killed


def add_documents(folder: Path, *, card: str, lineage: dict, outcomes: Path, name: str) -> None:
    """Adds card, lineage and the outcome on every row to the folder of a model that is published.

    Args:
        outcomes: the evaluation's outcomes.jsonl, with the rows of several models.
        name: the name of this model there.
    """
    from star.evaluation.evaluate import OUTCOMES  # here, because to read versions needs no evaluation

    (folder / CARD).write_text(card, encoding="utf-8")
    write_json(folder / LINEAGE_FILE, lineage)
    lines = outcomes.read_text(encoding="utf-8").splitlines(keepends=True)
    # A later candidate is compared with these outcomes row by row, once this version is champion.
    own = [line for line in lines if json.loads(line)["model"] == name]
    (folder / OUTCOMES).write_text("".join(own), encoding="utf-8")


@dataclass(frozen=True)
class StoredModel:
    """Files in the registry's store that no version has yet."""

    files: dict[str, str]  # relative path -> sha256
    source: str  # address of the files
    logged_model: "LoggedModel"


def require_model(folder: Path, *, name: str) -> None:
    """Checks that a folder can be registered under a name.

    Raises:
        InputError: it holds no model, or the name cannot be used.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputError(f"a model cannot be named {name!r}: leave out / : @ and quotes")
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise InputError(f"{folder} is no model: it needs a config.json and safetensors weights")


def store_model(
    folder: Path, files: dict[str, str], *, name: str, scores: Mapping[str, float], model_digest: str
) -> StoredModel:
    """Stores a model's files in the bucket of STAR_REGISTRY, else as artifacts, and creates the LoggedModel of them.

    Args:
        files: relative path -> sha256, taken before anything is sent, so a damaged upload is noticed at the first download.
        scores: metrics of the LoggedModel.
    """
    client = connect()
    location = registry_location()
    # By its content, a version that is registered from the LoggedModel in MLflow's pages is known as this model.
    tags = {DIGEST_TAG: model_digest, CONTENT_TAG: digest_of(files)}
    if location and location.startswith("s3://"):
        source = store_in_bucket(folder, files, location=location)
        model = _logged_model(client, name, tags=tags, external=source)
    else:
        model = _logged_model(client, name, tags=tags)
        _store_artifacts(client, model, folder)
        # READY only after the upload: `reconcile` removes what stays in another state.
        client.finalize_logged_model(model.model_id, "READY")
        source = model.model_uri
    _log_scores(client, model, scores)
    return StoredModel(files, source, model)


def create_version(
    stored: StoredModel, *, name: str, scores: Mapping[str, float], lineage: Mapping[str, str], model_digest: str
) -> Version:
    """Makes stored files the next version of a registered model that exists.

    Last, so that whatever is listed as a version is complete. A kill before leaves a LoggedModel that `reconcile` removes.
    """
    tags = {DIGEST_TAG: model_digest, DIGESTS_TAG: digests_tag(stored.files, lineage)} | _tags(scores, lineage)
    model = stored.logged_model
    run_id = model.source_run_id or None  # MLflow's accounts refuse "", which a server says for None
    entry = connect().create_model_version(
        name, stored.source, run_id=run_id, tags=tags, model_id=model.model_id, await_creation_for=0
    )
    return read_version(entry, aliases={})


def repair_in_bucket(version: Version, folder: Path) -> None:
    """Sends those files again that the bucket of STAR_REGISTRY has lost or that were changed there."""
    location = registry_location()
    if not (location and location.startswith("s3://") and version.files):
        return
    if version.source == address_of(version.files, location=location) and hash_files(folder) == version.files:
        store_in_bucket(folder, version.files, location=location)


def ensure_registered_model(client: "MlflowClient", name: str) -> None:
    """Creates the registered model if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        # Asking first would leave a gap: MLflow answers one of two concurrent first inserts with an error.
        client.create_registered_model(name)
    except MlflowException:
        client.get_registered_model(name)  # it exists already; any other failure is raised here again


def update_tags(version: Version, *, scores: Mapping[str, float], lineage: Mapping[str, str]) -> Version:
    """Writes newer scores and lineage to a version's tags, and returns the version with them."""
    client = connect()
    tags = _tags(scores, lineage)
    if any(DIGEST.fullmatch(value) for value in lineage.values()):
        written = find_version(version.name, version=version.version)
        tags[DIGESTS_TAG] = digests_tag(written.files, {**written.lineage, **lineage})
    for key, value in tags.items():
        client.set_model_version_tag(version.name, str(version.version), key, value)
    return find_version(version.name, version=version.version)


def describe_version(version: Version, description: str) -> None:
    """Writes the Markdown that MLflow's page of a version shows first. Lines that do not fit are left out."""
    if len(description) > DESCRIPTION_CHARACTERS:
        description = description[: description.rfind("\n", 0, DESCRIPTION_CHARACTERS)]
    connect().update_model_version(version.name, str(version.version), description)


def hash_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file below the folder, by relative path.

    A link to a folder, a pipe or a device is no file that can be compared. It has an empty digest, which no file has.
    """
    paths = sorted(folder.rglob("*"))
    # What is published or downloaded is read, once per process.
    digests = digests_of([path for path in paths if path.is_file()], trust="none")
    return {
        path.relative_to(folder).as_posix(): digests.get(path, "")
        for path in paths
        if path in digests or path.is_symlink() or not path.is_dir()
    }


def remove_unfinished_publications(name: str) -> list[str]:
    """Deletes the LoggedModels of publications that were killed before they created a version, and returns their names."""
    client = connect()
    # A younger one may belong to a publication that is still uploading.
    old = int((time.time() - UNFINISHED_SECONDS) * 1000)
    wanted = f"tags.`{MODEL_TAG}` = {quoted_text(name)} and creation_timestamp < {old}"
    search, experiments = client.search_logged_models, [experiment_id(client)]
    # Both are read to their ends before anything is deleted, because a deleted one is not counted before the next page.
    models = list(read_pages(search, experiments, filter_string=wanted, max_results=AUDIT_PAGE))
    known = {version.model_digest for page in version_pages(name, size=AUDIT_PAGE) for version in page.versions}
    found = [model for model in models if model.status != "READY" or model.tags.get(DIGEST_TAG) not in known]
    for model in found:
        client.delete_logged_model(model.model_id)
    return [f"{model.name} ({model.model_id})" for model in found]


def delete_logged_models(name: str) -> None:
    """Deletes all LoggedModels that were made for the registered model `name`, with their artifacts."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = connect()
    wanted = f"tags.`{MODEL_TAG}` = {quoted_text(name)}"
    found: Iterator[LoggedModel] = read_pages(
        client.search_logged_models, [experiment_id(client)], filter_string=wanted, max_results=AUDIT_PAGE
    )
    for model in list(found):
        # First, because MLflow keeps those of a deleted one.
        get_artifact_repository(model.artifact_location).delete_artifacts()
        client.delete_logged_model(model.model_id)


def _store_artifacts(client: "MlflowClient", model: "LoggedModel", folder: Path) -> None:
    """Stores the folder's files as the artifacts of a LoggedModel: links of large ones where the store is in this home."""
    if place := folder_in_home(model.artifact_location):
        copy_folder(folder, place, link=True)
        return
    with transfer_timeout():
        client.log_model_artifacts(model.model_id, str(folder))


@contextmanager
def transfer_timeout() -> Iterator[None]:
    """Gives calls to MLflow more time: the few seconds that `connect` allows are meant for metrics, not for weights."""
    key = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    # `connect` has run before and has set the variable if the user did not.
    before = os.environ[key]
    os.environ[key] = str(max(int(before), TRANSFER_SECONDS))
    try:
        yield
    finally:
        os.environ[key] = before


def _tags(scores: Mapping[str, float], lineage: Mapping[str, str]) -> dict[str, str]:
    tags = {mlflow_key(SCORE_TAG + key): repr(float(value)) for key, value in scores.items()}
    readable = {key: value for key, value in lineage.items() if not DIGEST.fullmatch(value)}
    return tags | {mlflow_key(LINEAGE_TAG + key): value for key, value in readable.items()}


def _logged_model(
    client: "MlflowClient", name: str, *, tags: dict[str, str], external: str | None = None
) -> "LoggedModel":
    """Creates the LoggedModel of a version; `external` is the address of files that are not its artifacts."""
    run = current_run()
    run_id = run.run_id if run else None
    experiment = run.experiment if run and run.run_id and run.experiment else experiment_id(client)
    model_name = re.sub(r"[^\w-]", "-", name)  # stricter rules than for the registered model: no dots
    tags = {**tags, MODEL_TAG: name}
    if external is None:
        return client.create_logged_model(experiment, name=model_name, source_run_id=run_id, tags=tags)
    import mlflow

    from star.tracking.client import mlflow_sentences

    tags["star.source"] = external
    with mlflow_sentences(tracking_uri()):
        return mlflow.create_external_model(name=model_name, source_run_id=run_id, tags=tags, experiment_id=experiment)


def _log_scores(client: "MlflowClient", model: "LoggedModel", scores: Mapping[str, float]) -> None:
    """Logs the scores as metrics of the LoggedModel, because MLflow's pages compare models by those."""
    if not model.source_run_id:  # a server says "" where a database says None
        return
    for key, value in scores.items():
        client.log_metric(model.source_run_id, mlflow_key(key), float(value), model_id=model.model_id)
