"""Finds the store that holds a model's ledger, and proves that the store can decide before anything rests on it."""

import os
from typing import TYPE_CHECKING

from star.errors import InputError
from star.registry.location import DATABASE, registry_location
from star.registry.promotion.conditional_writes import require_conditional_writes
from star.registry.promotion.ledger_store import LedgerStore, S3LedgerStore, SqlLedgerStore
from star.tracking.server import retry_write, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Tag of the registered model. A model's ledger never moves, because two ledgers would contradict each other.
LOCATION_TAG = "star.records"


def open_ledger_store(name: str, client: "MlflowClient") -> LedgerStore:
    """The store of a model's ledger: where its first decision was written, else where this environment keeps ledgers.

    Raises:
        InputError: this environment has no store, or not the one that holds the model's ledger, or its store lets two
            writers create the same entry.
    """
    noted = client.get_registered_model(name).tags.get(LOCATION_TAG)
    place = _place_of_ledger(name, noted)
    store = _store_at(name, place)
    if noted is None:
        # Before it is noted, because a ledger never moves: one in a store that cannot decide would have to.
        require_conditional_writes(store)
        # Noted before the first entry is written, so that every later process uses the same store.
        retry_write(lambda: client.set_registered_model_tag(name, LOCATION_TAG, place))
    return store


def require_ledger(name: str, client: "MlflowClient") -> str:
    """Checks that promotions of a model, which may not be registered yet, can be decided from here; returns the place.

    Nothing that stays is written.

    Raises:
        InputError: as `open_ledger_store`, or the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        noted = client.get_registered_model(name).tags.get(LOCATION_TAG)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        noted = None
    store = _store_at(name, _place_of_ledger(name, noted))
    require_conditional_writes(store)
    return store.place


def _place_of_ledger(name: str, noted: str | None) -> str:
    """DATABASE or the address of a bucket: the place that is noted at the model, else this environment's."""
    here = registry_location()
    place = noted or here
    if place is None:
        raise InputError(
            f"promotions of {name} cannot be decided by the MLflow server at {shown_uri(tracking_uri())} alone, "
            "which has no conditional write: set STAR_REGISTRY=s3://BUCKET/PREFIX, in a cluster under "
            "`cluster.environment` of the profile (see docs/mlflow.md)"
        )
    # In a second ledger another attempt could win the same decision.
    if noted and os.environ.get("STAR_REGISTRY") and here != noted:
        raise InputError(
            f"the decisions about {name} are in {noted}, not in STAR_REGISTRY={here}: correct STAR_REGISTRY"
        )
    return place


def _store_at(name: str, place: str) -> LedgerStore:
    if place != DATABASE:
        return S3LedgerStore(place)
    if tracking_uri().startswith("http"):
        raise InputError(
            f"the decisions about {name} are in the tracking database: set MLFLOW_TRACKING_URI to the database's URL"
        )
    return SqlLedgerStore(tracking_uri())
