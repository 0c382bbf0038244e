"""Models into MLflow's registry: a plain Hugging Face folder becomes the next version, every file's sha256 on it.

A version is config, tokenizer and safetensors, not an MLflow flavour: those drop the tools from a chat and split the tokenizer
from the model. Where STAR_REGISTRY names a bucket the files lie there under the digest of their content, the list of them written
last, and no cleaning up of runs or experiments can reach them; else they are artifacts of the LoggedModel.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from star.errors import InputError
from star.hashing import digest_of
from star.registry.location import registry_location, registry_s3_client, split_s3
from star.registry.versions import (
    DIGEST,
    FILES,
    LINEAGE,
    NAME,
    SCORE,
    Version,
    find_version,
    list_versions,
    read_version,
)
from star.tracking.runs import current_run
from star.tracking.server import connect, experiment_id, mlflow_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

MODEL_TAG = "star.name"  # of a LoggedModel: the registered model that it is meant for
TRANSFER_SECONDS = 600  # a server may store gigabytes before it answers
UNFINISHED_SECONDS = 3600  # after which a publication that did not end was killed


def register_model(
    folder: Path, *, name: str, scores: Mapping[str, float], lineage: Mapping[str, str], model_digest: str
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
    files = hashes(folder)
    tags = {DIGEST: model_digest, FILES: json.dumps(files)} | _tags(scores, lineage)
    client = connect()
    location = registry_location()
    if location and location.startswith("s3://"):
        source = _upload_to_bucket(folder, files, location=location)
        model = _logged_model(client, name, tags={DIGEST: model_digest}, external=source)
    else:
        model = _logged_model(client, name, tags={DIGEST: model_digest})
        with time_for_weights():
            client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        source = model.model_uri
    _log_scores(client, model, scores)
    _ensure_registered_model(client, name)
    entry = client.create_model_version(
        name, source, run_id=model.source_run_id, tags=tags, model_id=model.model_id, await_creation_for=None
    )
    return read_version(entry, aliases={})


def annotate(version: Version, *, scores: Mapping[str, float], lineage: Mapping[str, str]) -> Version:
    """Writes newer scores and lineage to a version's tags and returns the version as it is then."""
    client = connect()
    for key, value in _tags(scores, lineage).items():
        client.set_model_version_tag(version.name, str(version.version), key, value)
    return find_version(version.name, version=version.version)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below the folder, by relative path."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def unfinished_publications(name: str, *, remove: bool) -> list[str]:
    """LoggedModels of publications that were killed before their version was there: their names, once `remove`d."""
    client = connect()
    known = {version.model_digest for version in list_versions(name)}
    old = (time.time() - UNFINISHED_SECONDS) * 1000
    found = [
        model
        for model in client.search_logged_models(
            [experiment_id(client)], filter_string=f"tags.`{MODEL_TAG}` = '{name}'"
        )
        if model.creation_timestamp < old and (model.status != "READY" or model.tags.get(DIGEST) not in known)
    ]
    for model in found if remove else ():
        client.delete_logged_model(model.model_id)
    return [f"{model.name} ({model.model_id})" for model in found]


@contextmanager
def time_for_weights() -> Iterator[None]:
    """The few seconds that `connect` allows a call are for metrics: a transfer of weights gets more."""
    key = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[key]
    os.environ[key] = str(max(int(before), TRANSFER_SECONDS))
    try:
        yield
    finally:
        os.environ[key] = before


def _tags(scores: Mapping[str, float], lineage: Mapping[str, str]) -> dict[str, str]:
    tags = {mlflow_key(SCORE + key): repr(float(value)) for key, value in scores.items()}
    return tags | {mlflow_key(LINEAGE + key): value for key, value in lineage.items()}


def _logged_model(
    client: "MlflowClient", name: str, *, tags: dict[str, str], external: str | None = None
) -> "LoggedModel":
    run = current_run()
    arguments = {
        "name": re.sub(r"[^\w-]", "-", name),  # stricter rules than for the registered model: no dots
        "tags": {**tags, MODEL_TAG: name, **({"star.source": external} if external else {})},
        "source_run_id": run.run_id if run else None,
        "experiment_id": run.experiment if run and run.run_id else experiment_id(client),
    }
    if external is None:
        return client.create_logged_model(**arguments)
    import mlflow

    return mlflow.create_external_model(**arguments)


def _log_scores(client: "MlflowClient", model: "LoggedModel", scores: Mapping[str, float]) -> None:
    """The scores as metrics of the LoggedModel, where MLflow's pages compare models by them."""
    if not model.source_run_id:  # a server says "" where a database says None
        return
    for key, value in scores.items():
        client.log_metric(model.source_run_id, mlflow_key(key), float(value), model_id=model.model_id)


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException:
        client.get_registered_model(name)  # it is there; anything else is an error here too


def _upload_to_bucket(folder: Path, files: Mapping[str, str], *, location: str) -> str:
    """Puts a model's files under the digest of their content, the list of them last, and returns the folder's address."""
    from botocore.exceptions import ClientError

    bucket, prefix = split_s3(location)
    address = f"{prefix}models/{digest_of(dict(files))}"
    client = registry_s3_client()
    try:
        client.head_object(Bucket=bucket, Key=f"{address}.json")
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        for path in files:
            client.upload_file(str(folder / path), bucket, f"{address}/{path}")
        client.put_object(Bucket=bucket, Key=f"{address}.json", Body=json.dumps(files, indent=1).encode())
    return f"s3://{bucket}/{address}"
