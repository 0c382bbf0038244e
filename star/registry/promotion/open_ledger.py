"""Opens a model's ledger: finds its store and its registry, and proves that the store can decide before anything rests on it."""

import logging
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from star.errors import InputError
from star.registry.location import DATABASE, registry_location
from star.registry.promotion.conditional_writes import require_conditional_writes
from star.registry.promotion.ledger import HEAD_TAG, Head, Ledger
from star.registry.promotion.ledger_store import LedgerStore, S3LedgerStore, SqlLedgerStore
from star.registry.promotion.records import Decision
from star.registry.promotion.registry_id import ID_TAG, RegistryId, create_registry_id, find_registry_id
from star.registry.promotion.signatures import ledger_keys
from star.tracking.server import retry_write, shown_uri, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

logger = logging.getLogger(__name__)

# Tag of the registered model: `registry ID in PLACE`. A model's ledger never moves, because two ledgers would contradict
# each other. An older STAR noted the place alone. What it reads here now is no place, so it refuses instead of beginning
# a second ledger where this STAR has none.
LOCATION_TAG = "star.records"


def open_ledger(name: str, client: "MlflowClient") -> Ledger:
    """A model's ledger: where its first decision was written, else where this environment keeps ledgers.

    Raises:
        InputError: this environment has no store, or not the one that holds the model's ledger, or its store lets two
            writers create the same entry, or the ledger is that of another registry.
    """
    model = client.get_registered_model(name)
    return _open_at(_place_of_ledger(name, _noted_place(model)), model, client=client)


def _open_at(place: str, model: "RegisteredModel", *, client: "MlflowClient") -> Ledger:
    """The model's ledger in this place, which gets an id where it has none."""
    name, noted, store = model.name, _noted_place(model), _store_at(model.name, place)
    found = find_registry_id(model, store=store)
    if found is None:
        # Before anything is noted, because a ledger never moves: one in a store that cannot decide would have to.
        require_conditional_writes(store)
        found = create_registry_id(model, store=store, client=client, had_ledger=noted is not None)
    # Noted before the first record is written, so that every later process uses the same ledger.
    tags = {ID_TAG: found.registry, LOCATION_TAG: f"registry {found.registry} in {place}"}
    if found.older and noted is not None:
        # An older STAR may go on until `note_head` finds the first record that it cannot read.
        tags[LOCATION_TAG] = model.tags[LOCATION_TAG]
    for tag, value in tags.items():
        if model.tags.get(tag) != value:
            retry_write(partial(client.set_registered_model_tag, name, tag, value))
    return _ledger(model, store, found)


def find_ledger(name: str, client: "MlflowClient") -> Ledger | None:
    """A model's ledger to read from; None where nothing was written yet, or where it cannot be reached from here.

    Without STAR_REGISTRY, whoever only reads from MLflow may not reach the ledger. That is logged as a warning. A ledger
    in this very database is read whatever STAR_REGISTRY says, which can be of the registry that a model is copied to.

    Raises:
        InputError: as `open_ledger`, where STAR_REGISTRY says which ledger it must be.
    """
    model = client.get_registered_model(name)
    noted = _noted_place(model)
    try:
        is_here = noted == DATABASE and not tracking_uri().startswith("http")
        place = DATABASE if is_here else _place_of_ledger(name, noted)
        store = _store_at(name, place)
    except InputError as error:
        if os.environ.get("STAR_REGISTRY"):
            raise
        logger.warning("what MLflow says of %s is not compared with a ledger: %s", name, error)
        return None
    if found := find_registry_id(model, store=store):
        return _ledger(model, store, found)
    # An older STAR has noted where its ledger is. The id that it lacks is created once.
    return _open_at(place, model, client=client) if noted is not None else None


def store_of_new_ledgers(name: str) -> LedgerStore:
    """The store in which the ledger of a new model of this name would be begun.

    Raises:
        InputError: this environment has none.
    """
    return _store_at(name, _place_of_ledger(name, None))


def reaches_ledgers(name: str, client: "MlflowClient") -> bool:
    """Whether a ledger of this model would be found from here, if there were one."""
    try:
        _store_at(name, _place_of_ledger(name, _noted_place(client.get_registered_model(name))))
    except InputError:
        return False
    return True


def note_head(name: str, decision: Decision, *, registry: str, client: "MlflowClient") -> None:
    """Notes at the model which decision was found right, so that the next read follows the chain from there.

    From the first decision on that an older STAR cannot read, it is also told to refuse the ledger that it began.
    """
    tags = {HEAD_TAG: f"{registry} {decision.seq} {decision.digest}"}
    noted = client.get_registered_model(name).tags.get(LOCATION_TAG)
    if decision.registry and noted is not None and not noted.startswith("registry "):
        tags[LOCATION_TAG] = f"registry {registry} in {noted}"
    for tag, value in tags.items():
        retry_write(partial(client.set_registered_model_tag, name, tag, value))


def require_ledger(name: str, client: "MlflowClient") -> str:
    """Checks that promotions of a model, which may not be registered yet, can be decided from here; returns the place.

    Nothing that stays is written.

    Raises:
        InputError: as `open_ledger_store`, or the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    model: RegisteredModel | None
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        model = None
    store = _store_at(name, _place_of_ledger(name, _noted_place(model) if model else None))
    require_conditional_writes(store)
    found = find_registry_id(model, store=store) if model else None
    ledger = _ledger(model, store, found) if model and found else Ledger(name, store, f"{name}/new", "", ledger_keys())
    ledger.newest()
    ledger.require_key()
    return store.place


def _noted_place(model: "RegisteredModel") -> str | None:
    noted = model.tags.get(LOCATION_TAG)
    return re.sub(r"^registry [0-9a-f]{32} in ", "", noted) if noted is not None else None


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
    if noted and noted != DATABASE and not noted.startswith("s3://"):
        raise InputError(
            f"MLflow's tag {LOCATION_TAG} of {name} is not what STAR wrote ({shown_uri(noted[:80])}): correct it "
            "(see docs/mlflow.md)"
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


def _ledger(model: "RegisteredModel", store: LedgerStore, found: RegistryId) -> Ledger:
    head = _head(model.tags.get(HEAD_TAG, ""), registry=found.registry)
    return Ledger(model.name, store, found.folder(model.name), found.registry, ledger_keys(), head)


def _head(noted: str, *, registry: str) -> Head:
    """The head that is noted at the model; none where it is another registry's, or not what `note_head` wrote."""
    owner, _, rest = noted.partition(" ")
    seq, _, digest = rest.partition(" ")
    if owner != registry or not re.fullmatch(r"[0-9]{1,8}", seq):
        return Head()
    return Head(int(seq), digest)
