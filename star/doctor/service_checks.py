"""Checks the services that a pipeline's tasks use: secrets, MLflow, promotions, the object store, the volume, Kubeflow Trainer.

Each function returns what it found, as one phrase, or raises InputError with what is wrong and what to do.
"""

import os
import uuid
from pathlib import Path

from star.errors import InputError
from star.folders.owners import create_private

PROBE = b"preflight"  # content of the objects and files that are written and removed again


def check_secrets(secrets: dict[str, dict[str, str]]) -> str:
    """Checks that the variables of all Secrets (Secret -> variable -> key) are set in this process."""
    secret_of = {variable: secret for secret, variables in secrets.items() for variable in variables}
    if missing := [f"{name} (from Secret {secret})" for name, secret in secret_of.items() if not os.environ.get(name)]:
        raise InputError(
            f"not set: {', '.join(missing)}: fill the Secret in this namespace (kubectl create secret generic)"
        )
    return f"{len(secret_of)} variables are set"


def check_tracking_server() -> str:
    """Writes an MLflow run with an artifact and deletes it: a server that answers may still be unable to store artifacts."""
    from star.tracking.reason import reason_of
    from star.tracking.server import connect, experiment_id, shown_uri, tracking_uri

    client = connect()
    uri = shown_uri(tracking_uri())
    try:
        run = client.create_run(experiment_id(client), run_name="preflight", tags={"star.stage": "preflight"})
        client.log_text(run.info.run_id, "written by the pre-flight\n", "preflight.txt")
        client.set_terminated(run.info.run_id)
        client.delete_run(run.info.run_id)
    except Exception as error:
        raise InputError(
            f"{uri} answers but does not accept a run with an artifact ({reason_of(error)}): check the rights of "
            "MLFLOW_TRACKING_USERNAME, and that the server's artifact store exists"
        ) from error
    return uri


def check_model_registry(model_name: str) -> str:
    """Checks that MLflow has a model registry, which a file store lacks."""
    from star.registry.versions import has_versions
    from star.tracking.reason import reason_of
    from star.tracking.server import connect, shown_uri, tracking_uri

    connect()
    try:
        found = has_versions(model_name)
    except Exception as error:
        raise InputError(
            f"{shown_uri(tracking_uri())} has no usable model registry ({reason_of(error)}): it needs a database store"
        ) from error
    return f"{model_name} has versions" if found else f"{model_name} will be created"


def check_promotions(model_name: str) -> str:
    """Checks that a promotion can be decided: a place for the ledger, in which one of two writers wins. Nothing stays there."""
    from star.folders.s3_client import require_bucket, s3_errors
    from star.registry.location import registry_location, registry_s3_client, split_s3
    from star.registry.promotion.open_ledger import require_ledger
    from star.tracking.server import connect, shown_uri, tracking_uri

    location = registry_location()
    # Also where MLflow names the ledger's place: without the variable, weights would be published elsewhere.
    if location is None:
        raise InputError(
            f"STAR_REGISTRY is not set, and the MLflow server at {shown_uri(tracking_uri())} can neither decide promotions nor "
            "keep published weights from its users: set STAR_REGISTRY=s3://BUCKET/PREFIX, in a cluster under "
            "`cluster.environment` of the profile (see docs/mlflow.md)"
        )
    if location.startswith("s3://"):
        with s3_errors(location):
            require_bucket(split_s3(location)[0], registry_s3_client())
    return f"are decided in {require_ledger(model_name, connect())}"


def check_object_store(url: str) -> str:
    """Writes an S3 object, reads it back and deletes it."""
    from star.folders.s3_client import S3Folder, open_s3, require_bucket

    # A random name, so that two checks at the same time do not delete each other's object.
    place, name = S3Folder.parse(url), f".preflight-{uuid.uuid4().hex}"
    with open_s3(place) as client:
        require_bucket(place.bucket, client)
        client.put_object(Bucket=place.bucket, Key=place.key(name), Body=PROBE)
        read = client.get_object(Bucket=place.bucket, Key=place.key(name))["Body"].read()
        client.delete_object(Bucket=place.bucket, Key=place.key(name))
    if read != PROBE:
        raise InputError(f"{place} does not return what was written: check the store")
    return str(place)


def check_volume(folder: Path) -> str:
    """Writes a file to the volume of `cluster.work_claim` and deletes it."""
    try:
        if not folder.is_dir():
            create_private(folder)
        probe = folder / f".preflight-{uuid.uuid4().hex}"
        probe.write_bytes(PROBE)
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written by uid {os.getuid()} ({error.strerror}): give the claim to that user "
            "(chown, or a storage class that does), or leave out cluster.work_claim"
        ) from error
    return f"{folder} can be written"


def check_training_runtime(runtime: str) -> str:
    """Reads the TrainingRuntime that TrainJobs refer to, which needs Kubeflow Trainer and the right to read it."""
    from star.cluster.trainer_api import find_runtime, trainer_client

    return f"{find_runtime(trainer_client(), runtime).name} can be used"
