"""Proves, once per process and store, that of several writers of one entry exactly one succeeds.

Promotions rest on it, and not every store with the S3 API has it. Each of these has been reported of real stores:

    If-None-Match: *      the same entry is created     reported of
    is ignored            twice, one after the other    gateways and older versions (chimera-nas/chimera#471)
    is an error           never                         stores that answer NotImplemented
    is inverted           only over an existing one     Ceph's posix driver (ceph/ceph#69991)
    is checked first,     by writers at the same time   SeaweedFS before 4.18 (seaweedfs/seaweedfs#8800)
    and written later

So a throwaway entry is created twice, and another one by several threads at once. Success is remembered in this process
only: a mark in the bucket would be copied with the bucket, to a store that it says nothing about.
"""

import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

from star.errors import InputError
from star.folders.s3_client import s3_errors
from star.registry.promotion.ledger_store import LedgerStore, SqlLedgerStore

logger = logging.getLogger(__name__)

FOLDER = ".probe"  # beside the folders of the models
WRITERS = 8  # at the same time
ROUNDS = 3  # the first one opens the connections, which spreads its requests
REFUSALS = (400, 405, 501)  # HTTP statuses of stores that do not know the header: InvalidArgument, NotImplemented
CURE = (
    "Keep STAR_REGISTRY in a store that honours `If-None-Match: *`: Amazon S3, Cloudflare R2, Ceph, MinIO of 2024-08 or "
    "newer, SeaweedFS 4.18 or newer (see docs/mlflow.md)"
)

_proven: set[str] = set()  # places


def require_conditional_writes(store: LedgerStore) -> None:
    """Checks that the store creates an entry for one of several writers only. The check leaves nothing behind.

    Raises:
        InputError: it does not, or it does not answer.
    """
    # A database enforces its primary key, with which SqlLedgerStore creates the table.
    if isinstance(store, SqlLedgerStore) or store.place in _proven:
        return
    with s3_errors(store.place):
        _create_twice(store)
        for _ in range(ROUNDS):
            _create_at_once(store)
    _proven.add(store.place)


def _create_twice(store: LedgerStore) -> None:
    with _throwaway_entry(store) as name:
        first = f"first {name}"
        if not _create(store, name, first):
            raise InputError(
                f"{store.place} refuses to create a new record on the condition that it does not exist, so no promotion "
                f"can be decided there. {CURE}"
            )
        if _create(store, name, f"second {name}") or store.read(FOLDER, name) != first:
            raise InputError(
                f"{store.place} created the same record twice: it ignores `If-None-Match: *`, so two promotions at the "
                f"same time would both win. {CURE}"
            )


def _create_at_once(store: LedgerStore) -> None:
    with _throwaway_entry(store) as name, ThreadPoolExecutor(WRITERS) as threads:
        start = Barrier(WRITERS)

        def create(number: int) -> bool:
            start.wait()
            return _create(store, name, f"{number} {name}")

        # No winner at all is slow but safe: a promoter that lost tries again.
        if (winners := sum(threads.map(create, range(WRITERS)))) > 1:
            raise InputError(
                f"{store.place} created the same record for {winners} of {WRITERS} writers at the same time: it checks "
                f"`If-None-Match: *` before it writes, not while it does, so two promotions could both win. {CURE}"
            )


def _create(store: LedgerStore, name: str, text: str) -> bool:
    """`store.create`; a store that does not know the condition is an InputError."""
    from botocore.exceptions import ClientError

    try:
        # A client library that retries after a lost answer finds the entry that it wrote itself.
        return store.create(FOLDER, name, text) or store.read(FOLDER, name) == text
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in REFUSALS:
            raise
        code = error.response["Error"].get("Code", "?")
        raise InputError(
            f"{store.place} answers a write with `If-None-Match: *` with {code}, so no promotion can be decided there. "
            f"{CURE}"
        ) from error


@contextmanager
def _throwaway_entry(store: LedgerStore) -> Iterator[str]:
    """Yields a name that no other process uses, and removes the entry of that name afterwards."""
    from botocore.exceptions import BotoCoreError, ClientError

    name = uuid.uuid4().hex
    try:
        yield name
    finally:
        try:
            store.delete(FOLDER, name, versions=True)
        except (BotoCoreError, ClientError) as error:  # this account may only add, which is all that promotions need
            logger.warning("the record %s/%s of a check stays in %s: %s", FOLDER, name, store.place, error)
