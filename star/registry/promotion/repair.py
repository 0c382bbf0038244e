"""Changes the ledger as a person orders: takes damaged records out of it, or signs one that was begun without a key.

Neither is ever done by itself. Which of two records is the forged one, and whether unsigned ones are one's own, cannot
be known from the records.
"""

import uuid

from star.errors import InputError
from star.folders.s3_client import s3_errors
from star.registry.promotion.conditional_writes import require_conditional_writes
from star.registry.promotion.ledger import HEAD_TAG, Head, Ledger, entry_name, typed
from star.registry.promotion.open_ledger import note_head, open_ledger
from star.registry.promotion.promote_and_rollback import write_aliases
from star.registry.promotion.records import Attempt, Decision
from star.registry.promotion.registry_id import WRITTEN_TAG
from star.registry.versions import require_versions
from star.tracking.server import connect

SET_ASIDE = "set-aside"  # folder beside the decisions and attempts


def set_aside_record(name: str, record: str) -> tuple[list[str], Decision]:
    """Moves a record out of the ledger into the folder `set-aside` beside it: with a decision all that follow it.

    The ledger ends with the decision before, and MLflow's aliases are written as that one says. Where there is none,
    the aliases stay, and the next promotion begins the ledger with them.

    Args:
        record: `decisions/NAME` or `attempts/NAME`.

    Returns:
        What was moved, and the newest decision now.

    Raises:
        InputError: the record has another form, or what is left is damaged too.
    """
    require_versions(name)
    kind, _, entry = record.partition("/")
    if kind not in ("decisions", "attempts") or not entry:
        raise InputError(f"{record[:80]!r} is no record: write decisions/NAME or attempts/NAME")
    client = connect()
    ledger = open_ledger(name, client)
    moved = [f"{kind}/{found}" for found in _entries(ledger, kind, entry)]
    with s3_errors(ledger.store.place):
        for one in moved:
            _move(ledger, *one.split("/", 1))
    if kind == "decisions":
        # What was known may have been of a decision that is gone. Before the rest is read, which can be damaged too.
        ledger.head = Head()
        client.set_registered_model_tag(name, HEAD_TAG, "")
    newest = ledger.newest()
    if kind == "decisions":
        note_head(name, newest, registry=ledger.registry, client=client)
        # Aliases of decisions that are gone must not be taken for a move by hand.
        client.set_registered_model_tag(name, WRITTEN_TAG, "0")
        if newest.seq:
            write_aliases(name, client=client, ledger=ledger, writer=uuid.uuid4().hex)
    return moved, newest


def sign_ledger(name: str) -> Decision:
    """Adds a signed decision that changes no alias. It vouches for all decisions before it, by their digests.

    Raises:
        InputError: there is no private key, or the ledger is damaged.
    """
    require_versions(name)
    client = connect()
    ledger = open_ledger(name, client)
    require_conditional_writes(ledger.store)
    made = ledger.sign_newest(Attempt("sign", None, 0, "vouches for all decisions before it"))
    write_aliases(name, client=client, ledger=ledger, writer=uuid.uuid4().hex)
    return made


def _entries(ledger: Ledger, kind: str, entry: str) -> list[str]:
    """The entries to move: this one, and after a decision's number all that sort behind it."""
    names = ledger.store.names(ledger.folder_of(kind))
    is_number = kind == "decisions" and entry.isdecimal() and len(entry) == len(entry_name(0))
    return [name for name in names if entry in (name, typed(name)) or (is_number and name > entry)]


def _move(ledger: Ledger, kind: str, entry: str) -> None:
    folder, store = ledger.folder_of(kind), ledger.store
    text = store.read(folder, entry)
    # Copied first: a kill in between leaves a copy too many.
    store.create(f"{ledger.folder}/{SET_ASIDE}", f"{kind}-{entry[:40]}-{uuid.uuid4().hex}", text or "")
    store.delete(folder, entry, versions=False)
