"""Connects to the MLflow server (or local database) that the environment names."""

import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from star.errors import InputError, redacted
from star.home import home

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # MLflow's own patience is minutes: too long for training to wait
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the command
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # ten small files are no progress to watch
}
WRITE_ATTEMPTS = 5
WRITE_PAUSE_SECONDS = 0.05


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database in `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def shown_uri(uri: str) -> str:
    """An address as others may read it."""
    return redacted(uri)


def mlflow_key(name: str) -> str:
    """The name, with `_` for the characters that MLflow refuses in metrics, parameters and tags."""
    return re.sub(r"[^0-9A-Za-z_\-. :/]", "_", name)


def point_at_server() -> None:
    """Has MLflow use the tracking of the environment; asks nothing of it yet."""
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow's own tracebacks; what failed is said in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    import mlflow

    uri, given = tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        home().mkdir(parents=True, exist_ok=True)
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
    if not given:
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow exported it; a later STAR_HOME must still count


def connect() -> "MlflowClient":
    """A client for the tracking of the environment, which answers.

    Raises:
        InputError: it does not.
    """
    point_at_server()
    from mlflow import MlflowClient

    try:
        client = MlflowClient()
        client.search_experiments(max_results=1)
    except Exception as error:
        cure = "start the server or correct MLFLOW_TRACKING_URI"
        raise InputError(
            f"MLflow at {shown_uri(tracking_uri())} cannot be used: {cure} ({reason_of(error)})"
        ) from error
    return client


def retry_write(write: Callable[[], object]) -> None:
    """Calls `write`, up to WRITE_ATTEMPTS times while MLflow answers with an error.

    Of two processes that create the same tag or alias at once, MLflow answers one with an error; its second attempt succeeds.
    """
    from mlflow.exceptions import MlflowException
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

    retrying = Retrying(
        retry=retry_if_exception_type(MlflowException),
        stop=stop_after_attempt(WRITE_ATTEMPTS),
        wait=wait_fixed(WRITE_PAUSE_SECONDS),
        reraise=True,
    )
    retrying(write)


@contextmanager
def pointed_at(uri: str) -> Iterator[None]:
    """Has everything inside go to the MLflow at another address."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def reap(hours: float) -> list[str]:
    """Closes runs of the experiment that are RUNNING and from which no metric came for so long, and names them.

    Raises:
        InputError: MLflow does not answer.
    """
    client = connect()
    experiment, long_ago = experiment_id(client), (time.time() - hours * 3600) * 1000
    closed = []
    for run in client.search_runs([experiment], filter_string="attributes.status = 'RUNNING'"):
        seen = [client.get_metric_history(run.info.run_id, key)[-1].timestamp for key in run.data.metrics]
        newest = max([run.info.start_time, *seen])
        if newest < long_ago:
            client.set_terminated(run.info.run_id, "KILLED", newest)
            closed.append(
                f"{run.info.run_name} ({run.info.run_id}): nothing came from it for over {hours:g} hours, closed"
            )
    return closed


def experiment_id(client: "MlflowClient") -> str:
    """The experiment MLFLOW_EXPERIMENT_NAME, else MLFLOW_EXPERIMENT_ID, else `star`; made when it does not exist."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name and (given := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return given
    name = name or "star"
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    # A server has a place of its own for artifacts; a plain database would put them into the working directory.
    artifacts = (home() / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite:") else None
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:  # another process was first
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        raise


def reason_of(error: BaseException) -> str:
    """One line; of a failed connection or database file the innermost error, which says why (`Connection refused`)."""
    inner = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__
    said = inner if isinstance(inner, OSError | sqlite3.Error) and not isinstance(error, InputError) else error
    return redacted(str(said).strip().partition("\n")[0][:300]) or type(said).__name__
