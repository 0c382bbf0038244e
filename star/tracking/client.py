"""MLflow's client as STAR uses it: a server that does not answer is one sentence, and a model is read without its versions.

It imports mlflow, so it is imported where a client is needed (`connect` in server.py).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import ismethod
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from star.errors import UnavailableError
from star.redaction import redacted
from star.tracking.reason import reason_of
from star.tracking.searches import quoted_text

NOT_ANSWERED = "API request to "  # how MLflow's client begins the message of a request that had no usable answer
REFUSED = "Permission denied"  # the answer with 403 where an account lacks a right
BUSY = "TEMPORARILY_UNAVAILABLE"  # error code of a database that is locked or does not answer
TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class Client(MlflowClient):
    """MLflow's client, with two changes.

    A call that MLflow does not answer, because it is slow, down or overloaded, raises UnavailableError. The number of
    requests stays that of MLflow's client: one, and MLFLOW_HTTP_REQUEST_MAX_RETRIES more.
    """

    def __getattribute__(self, name: str) -> Any:
        """Every public method, with its errors as sentences."""
        found = super().__getattribute__(name)
        return _with_sentences(found) if ismethod(found) and not name.startswith("_") else found

    def get_registered_model(self, name: str) -> RegisteredModel:
        """A registered model with its tags and aliases.

        MLflow's own request makes the server load all versions, a search for the name the newest one alone: at 10,000
        versions a fifth of the time.
        """
        if quoted := quoted_text(name):
            for found in super().search_registered_models(f"name = {quoted}", max_results=1):
                return found
        return super().get_registered_model(name)  # raises the error that says what is wrong with the name


@contextmanager
def mlflow_sentences(uri: str) -> Iterator[None]:
    """Turns a missing answer of MLflow inside the block into an UnavailableError.

    Args:
        uri: address of the server or database.
    """
    try:
        yield
    except MlflowException as error:
        if error.error_code != BUSY and not str(error).startswith(NOT_ANSWERED):
            raise
        raise UnavailableError(_sentence(error, redacted(uri))) from error


def _with_sentences(method: Callable) -> Callable:
    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        with mlflow_sentences(method.__self__.tracking_uri):  # type: ignore[attr-defined]  # it is bound
            return method(*arguments, **options)

    return call


def _sentence(error: MlflowException, uri: str) -> str:
    """What happened to a request, and what to do."""
    said = str(error)
    seconds, tries = os.environ.get(TIMEOUT, "120"), int(os.environ.get(RETRIES, "7")) + 1
    if "timed out" in said or "Timeout" in said:
        longer = f"{TIMEOUT}={4 * int(seconds)}" if seconds.isdecimal() else f"a higher {TIMEOUT}"
        return (
            f"MLflow at {uri} did not answer within {seconds} s ({tries} tries): run again when it is less busy, or allow more "
            f"with {longer}"
        )
    if "error responses" in said:
        return f"MLflow at {uri} answers with server errors ({tries} tries): look into its log, and run again"
    if error.error_code == BUSY:
        return f"MLflow at {uri} cannot use its database, which is busy or down: run again ({reason_of(error)})"
    if REFUSED in said:
        return (
            f"MLflow at {uri} refuses this account ({reason_of(error)}): check its rights, and MLFLOW_TRACKING_USERNAME "
            "(deploy/base/accounts.py gives them)"
        )
    return f"MLflow at {uri} cannot be used: start the server or correct MLFLOW_TRACKING_URI ({reason_of(error)})"
