"""Removes the ledger of a throwaway model, with everything that lies beside its chain."""

from star.registry.promotion.ledger_store import LedgerStore
from star.registry.promotion.registry_id import registries_of
from star.registry.promotion.repair import SET_ASIDE
from star.registry.promotion.version_records import REGISTRATIONS, VERSIONS

KINDS = ("decisions", "attempts", REGISTRATIONS, VERSIONS, SET_ASIDE)


def remove_ledger(name: str, store: LedgerStore) -> None:
    """Deletes every record under a model's name, of all registries, with what a versioned bucket keeps of them."""
    for entry, registry in registries_of(name, store=store):
        for kind in KINDS:
            folder = f"{registry.folder(name)}/{kind}"
            for record in store.names(folder):
                store.delete(folder, record, versions=True)
        # Last, so that a kill before leaves what leads to the rest.
        store.delete(f"{name}/registries", entry, versions=True)
