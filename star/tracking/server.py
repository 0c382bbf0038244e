"""Connects to MLflow: the server or database of MLFLOW_TRACKING_URI, else the database in STAR_HOME."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from star.errors import InputError, UnavailableError
from star.folders.owners import create_home, create_in_home, create_private_file
from star.home import home
from star.redaction import redacted
from star.tracking.reason import reason_of
from star.tracking.searches import read_pages

if TYPE_CHECKING:
    from mlflow import MlflowClient

MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # MLflow waits for minutes: too long for a training
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the command
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # the bars for ten small files would fill the log
}
WRITE_ATTEMPTS = 5
WRITE_PAUSE_SECONDS = 0.05

_answered: set[str] = set()  # addresses that this process has reached


def tracking_uri() -> str:
    """Returns MLFLOW_TRACKING_URI, else the URI of the database in `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def shown_uri(uri: str) -> str:
    """Returns a URI without its password, to be shown."""
    return redacted(uri)


def mlflow_key(name: str) -> str:
    """Returns the name with `_` for the characters that MLflow refuses in metrics, parameters and tags."""
    return re.sub(r"[^0-9A-Za-z_\-. :/]", "_", name)


def set_mlflow_defaults() -> None:
    """Sets the variables in which STAR differs from MLflow, before anything imports it. The user's own values stay."""
    for key, value in MLFLOW_DEFAULTS.items():
        os.environ.setdefault(key, value)


def configure_mlflow() -> None:
    """Makes MLflow use the tracking URI of the environment. It sends no request yet."""
    set_mlflow_defaults()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow would print tracebacks; our callers print the reason in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    import mlflow

    uri, given = tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        create_home()
        # SQLite would create it readable by all.
        create_private_file(home() / "mlflow.db")
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
    if not given:
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow exported it, which would hide a later STAR_HOME


def connect() -> "MlflowClient":
    """Returns a client for the tracking URI of the environment, after the server has answered this process once.

    Its calls raise an InputError where the server does not answer later.

    Raises:
        InputError: the server does not answer.
    """
    configure_mlflow()
    from star.tracking.client import Client

    uri = tracking_uri()
    try:
        client = Client()
        if uri not in _answered:
            # The client alone sends nothing, so a wrong address would show only in the middle of the work.
            client.search_experiments(max_results=1)
            _answered.add(uri)
    except UnavailableError:
        raise
    except Exception as error:
        cure = "start the server or correct MLFLOW_TRACKING_URI"
        raise InputError(
            f"MLflow at {shown_uri(tracking_uri())} cannot be used: {cure} ({reason_of(error)})"
        ) from error
    return client


def retry_write(write: Callable[[], object]) -> None:
    """Calls `write`, up to WRITE_ATTEMPTS times while MLflow answers with an error.

    Of two processes that create the same tag or alias at once, MLflow answers one with an error; its second attempt
    succeeds.
    """
    from mlflow.exceptions import MlflowException
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

    retrying = Retrying(
        retry=retry_if_exception_type((MlflowException, UnavailableError)),
        stop=stop_after_attempt(WRITE_ATTEMPTS),
        wait=wait_fixed(WRITE_PAUSE_SECONDS),
        reraise=True,
    )
    retrying(write)


@contextmanager
def use_tracking_uri(uri: str) -> Iterator[None]:
    """Makes everything inside the block use the MLflow at another URI."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def close_stale_runs(hours: float) -> list[str]:
    """Closes the experiment's RUNNING runs that received no metric for so many hours. Their machine is gone.

    Returns:
        One line per closed run.

    Raises:
        InputError: MLflow does not answer.
    """
    client = connect()
    experiment, long_ago = experiment_id(client), int((time.time() - hours * 3600) * 1000)
    running = f"attributes.status = 'RUNNING' and attributes.start_time < {long_ago}"
    closed = []
    # All are read before the first is closed, because a closed one is not counted before the next page.
    for run in list(read_pages(client.search_runs, [experiment], filter_string=running)):
        newest = run.info.start_time
        for key in run.data.metrics:
            newest = max(newest, client.get_metric_history(run.info.run_id, key)[-1].timestamp)
            if newest >= long_ago:  # it lives, whatever its other metrics say
                break
        else:
            # With the time of its last event, because its machine was gone soon after.
            client.set_terminated(run.info.run_id, "KILLED", newest)
            closed.append(
                f"{run.info.run_name} ({run.info.run_id}): nothing came from it for over {hours:g} hours, closed"
            )
    return closed


def experiment_id(client: "MlflowClient") -> str:
    """Returns the id of the experiment to use; it is created if it does not exist.

    MLFLOW_EXPERIMENT_NAME names it, else MLFLOW_EXPERIMENT_ID is its id, else its name is `star`.
    """
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name and (given := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return given
    name = name or "star"
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    # A server has its own store of artifacts. With a plain database MLflow would write them to the working directory.
    artifacts = create_in_home("mlartifacts").as_uri() if tracking_uri().startswith("sqlite:") else None
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:  # another process created it in the meantime
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        raise
