"""Finds the ledger of a registered model: each registry has its own, also where several share one STAR_REGISTRY.

A registry is one MLflow's registered model, wherever it is read from: its address differs inside and outside a cluster,
but the time at which it was registered does not. So the id of a registry is created once, by a conditional write under
that time, and is noted in the model's tag `star.registry_id` and in each record. Below STAR_REGISTRY there are

    star/registries/1772359200123     {"registry": "5b0c...", "older": false}      dev's model `star`
    star/registries/1772877600456     {"registry": "91fe...", "older": false}      prod's model `star`
    star/5b0c.../decisions/00000001   dev's ledger
    star/91fe.../decisions/00000001   prod's ledger

An older STAR kept the ledger in `star/decisions`, for all registries in that place. It belongs to the registry whose
model was registered before the ledger began and which claims it first (`star/registries/older`); another one begins its
own with the aliases that MLflow shows.
"""

import json
import logging
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from star.errors import InputError
from star.registry.promotion.ledger_store import LedgerStore
from star.registry.promotion.records import Attempt, DamagedRecordError, Decision, parse_record
from star.tracking.server import retry_write

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

logger = logging.getLogger(__name__)

ID_TAG = "star.registry_id"
WRITTEN_TAG = "star.projected"  # number of the last decision whose aliases were written completely
OLDER = "older"  # the entry that says which registry has the ledger of an older STAR
CLOCKS = timedelta(minutes=5)  # by which the clocks of a client and of MLflow's server may differ


@dataclass(frozen=True)
class RegistryId:
    """Whose ledger it is, and where."""

    registry: str
    older: bool  # whether it goes on with the ledger that an older STAR began

    def folder(self, name: str) -> str:
        """Folder of the ledger in the store."""
        return name if self.older else f"{name}/{self.registry}"


def find_registry_id(model: "RegisteredModel", *, store: LedgerStore) -> RegistryId | None:
    """The id of a registered model's registry; None before it is created.

    Raises:
        InputError: the model's tag and the store contradict each other.
    """
    folder, entry = _registries(model.name), _entry_of(model)
    noted, found = model.tags.get(ID_TAG), _read(store, folder, entry)
    if noted and found is None:
        raise InputError(
            f"MLflow's tag {ID_TAG} says that the ledger of {model.name} is that of registry {noted[:40]}, and "
            f"{store.place} has no {folder}/{entry} that says so: restore that file (see docs/mlflow.md), or name the model "
            "as before if somebody renamed it; delete the tag to begin a new ledger"
        )
    if noted and found and noted != found.registry:
        raise InputError(
            f"MLflow's tag {ID_TAG} says that the ledger of {model.name} is that of registry {noted[:40]}, and "
            f"{folder}/{entry} in {store.place} says {found.registry}: correct the one that somebody changed"
        )
    return found


def registries_of(name: str, *, store: LedgerStore) -> list[tuple[str, RegistryId]]:
    """Every registry that has a ledger under a model's name in this store: the entry that says so, and the id."""
    entries = store.names(_registries(name))
    found = [(entry, _read(store, _registries(name), entry)) for entry in entries]
    return [(entry, registry) for entry, registry in found if registry]


def create_registry_id(
    model: "RegisteredModel", *, store: LedgerStore, client: "MlflowClient", had_ledger: bool
) -> RegistryId:
    """Creates the id of a registered model's registry. Of several processes one creates it, and all return it.

    Args:
        had_ledger: whether an older STAR has noted at the model that this store holds its ledger.
    """
    name, entry = model.name, _entry_of(model)
    mine = RegistryId(uuid.uuid4().hex, had_ledger and _is_older_ledger_of(model, store))
    if mine.older:
        # One for all processes that create this registry's id, also after a kill before the next line.
        mine, owner = _create(store, name, OLDER, mine, created=entry)
        if owner != entry:
            mine = RegistryId(uuid.uuid4().hex, older=False)
    if had_ledger and not mine.older and model.tags.get(WRITTEN_TAG, "0") != "0":
        logger.warning(
            "the ledger of %s in %s is another registry's: a new one begins with the aliases that MLflow shows",
            name,
            store.place,
        )
        # Else the aliases would look like those of decisions that this ledger does not have.
        retry_write(lambda: client.set_registered_model_tag(name, WRITTEN_TAG, "0"))
    return _create(store, name, entry, mine, created=entry)[0]


def _is_older_ledger_of(model: "RegisteredModel", store: LedgerStore) -> bool:
    """Whether an older STAR began a ledger under this name after the model was registered here."""
    for part in ("decisions", "attempts"):
        folder = f"{model.name}/{part}"
        if not (names := store.names(folder)):
            continue
        try:
            text = store.read(folder, names[0]) or ""
            attempt = parse_record(text, Decision).attempt if part == "decisions" else parse_record(text, Attempt)
            begun = datetime.fromisoformat(attempt.at if attempt else "")
            return begun.replace(tzinfo=begun.tzinfo or UTC) >= _created(model) - CLOCKS
        except (DamagedRecordError, ValueError) as error:
            raise InputError(
                f"the ledger of {model.name} in {store.place}: {part}/{names[0][:80]} is no record that an older STAR wrote "
                f"({error}): restore it from a backup or the bucket's versions, or delete it if it was put there"
            ) from error
    return False


def _create(store: LedgerStore, name: str, entry: str, mine: RegistryId, *, created: str) -> tuple[RegistryId, str]:
    """Creates the entry, or reads the one that another process created; with the time of the model that it is of."""
    folder = _registries(name)
    content = {"registry": mine.registry, "older": mine.older, "created": created}
    if store.create(folder, entry, json.dumps(content)):
        return mine, created
    found = _read(store, folder, entry)
    if found is None:
        raise InputError(f"{store.place} has a {folder}/{entry} and does not return it: run again")
    return found, json.loads(store.read(folder, entry) or "{}").get("created", "")


def _read(store: LedgerStore, folder: str, entry: str) -> RegistryId | None:
    text = store.read(folder, entry)
    if text is None:
        return None
    try:
        content = json.loads(text)
        registry, older = content["registry"], content["older"]
        if not (isinstance(registry, str) and uuid.UUID(registry).hex == registry and isinstance(older, bool)):
            raise ValueError("other types")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{folder}/{entry} in {store.place} is not what STAR wrote: restore it from a backup or the bucket's versions "
            "(see docs/mlflow.md)"
        ) from error
    return RegistryId(registry, older)


def _registries(name: str) -> str:
    return f"{name}/registries"


def _entry_of(model: "RegisteredModel") -> str:
    return str(model.creation_timestamp)


def _created(model: "RegisteredModel") -> datetime:
    return datetime.fromtimestamp(model.creation_timestamp / 1000, UTC)
