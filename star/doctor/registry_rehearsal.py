"""Rehearses the end of a run with the real registry: publishes a throwaway model, makes it champion, fetches it, removes it.

For the model `star` the throwaway one is `star-preflight-0`. Its ledger lies under that name, and its weights under the
digest of their content, which no other model has. So nothing of the real model is touched. Pre-flights at the same time
take star-preflight-1, -2 and so on, because each claims its name with a conditional write:

    .preflight/star/0.0000     time of the claim; removed at the end

The claim of a killed pre-flight is void after an hour. Whoever takes the name then removes first what is left there. All of
it is recognised by the name, and in MLflow by the tag `star.preflight`.

An account of MLflow that may not delete models, such as that of deploy/base, leaves the throwaway model with one version, but
without aliases, ledger and weights. The next pre-flight uses both again.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from star.errors import InputError
from star.folders.s3_client import s3_errors
from star.hashing import digest_of
from star.home import home
from star.registry.download import download_name
from star.registry.find_model import download_model
from star.registry.promotion.ledger_store import LedgerStore, S3LedgerStore
from star.registry.promotion.open_ledger import store_of_new_ledgers
from star.registry.promotion.promote_and_rollback import current_decision, promote
from star.registry.promotion.records import CHAMPION, now
from star.registry.promotion.register_model import register_model
from star.registry.promotion.remove_ledger import remove_ledger
from star.registry.publish import delete_logged_models, hash_files
from star.sigterm import sigterm_raises_system_exit
from star.tracking.reason import reason_of
from star.tracking.server import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "star.preflight"  # of the registered model: what it is for
PURPOSE = "Throwaway model of STAR's pre-flight. It may be deleted at any time."
CLAIMS = ".preflight"  # folder in the ledger's store
CLAIM_HOLDS = timedelta(hours=1)
WEIGHT_BYTES = 9 << 20  # above 8 MiB boto3 uploads in parts, as it does for real weights


def rehearse_registration(model_name: str) -> str:
    """Publishes, decides and fetches a throwaway model, and removes it whatever happened in between.

    Raises:
        InputError: a real model could not be published, promoted or fetched in the same way.
    """
    from mlflow.exceptions import MlflowException

    client, store = connect(), store_of_new_ledgers(model_name)
    with (
        sigterm_raises_system_exit(ignore_repeats=True),
        s3_errors(store.place),
        _claimed_name(model_name, store) as name,
    ):
        model = _Throwaway(name, store, client)
        try:
            model.create()
            # From here on, and not before: what has the name without the tag is another's.
            try:
                model.remove_ledger_and_files()  # of a pre-flight that was killed
                model.publish_decide_and_fetch()
            finally:
                left = model.remove()
        except MlflowException as error:
            raise InputError(
                f"MLflow refuses to register, promote or return the throwaway model {name} ({reason_of(error)}): check the rights "
                "of MLFLOW_TRACKING_USERNAME (deploy/base/accounts.py gives them)"
            ) from error
    return f"a throwaway model was published, made champion and fetched in {store.place}{left}"


class _Throwaway:
    """The throwaway model of one pre-flight."""

    def __init__(self, name: str, store: LedgerStore, client: "MlflowClient") -> None:
        self.name, self.store, self.client = name, store, client
        self.published: dict[str, str] = {}  # relative path -> sha256

    def create(self) -> None:
        """Creates the registered model, or finds the one that an earlier pre-flight left."""
        from mlflow.exceptions import MlflowException

        try:
            # With the tag from its first moment on.
            self.client.create_registered_model(self.name, tags={TAG: PURPOSE}, description=PURPOSE)
        except MlflowException:
            model = self.client.get_registered_model(self.name)  # it exists; any other failure is raised here again
            if TAG not in model.tags:
                raise InputError(
                    f"MLflow has a model {self.name} without the tag {TAG}, which is none of the pre-flight's: rename it"
                ) from None

    def publish_decide_and_fetch(self) -> None:
        """The steps of a registration, and of a server that fetches the champion."""
        with TemporaryDirectory(prefix="star-preflight-") as scratch:
            folder = Path(scratch) / "model"
            _write_model(folder, name=self.name)
            self.published = hash_files(folder)
            version = register_model(
                folder, name=self.name, scores={}, lineage={}, model_digest=digest_of(self.published)
            )
            over = current_decision(self.name).seq
            promote(self.name, version.version, reason="rehearsed by the pre-flight", over=over)
            fetched = download_model(f"{self.name}@{CHAMPION}", Path(scratch) / "fetched")
            if hash_files(fetched) != self.published:
                raise InputError(f"{self.store.place} does not return the files that were published: check the store")

    def remove(self) -> str:
        """Removes everything; returns what had to stay, and why."""
        from star.tracking.client import REFUSED

        left = []
        for step in (self.remove_ledger_and_files, self._remove_from_mlflow):
            try:
                step()
            except Exception as error:  # of MLflow, of a store: the rest is removed all the same
                no_right = REFUSED in str(error)
                left.append("MLflow's account may not delete models" if no_right else reason_of(error))
        if not left:
            return ", and removed"
        return f"; {self.name} stays for the next pre-flight ({'; '.join(left)})"

    def remove_ledger_and_files(self) -> None:
        """Removes the ledger, the aliases that it decided, and the published files."""
        remove_ledger(self.name, self.store)
        model = self.client.get_registered_model(self.name)
        for alias in model.aliases:
            self.client.delete_registered_model_alias(self.name, alias)
        # The ledger that they name is gone.
        for tag in model.tags.keys() - {TAG}:
            self.client.delete_registered_model_tag(self.name, tag)
        content = digest_of(self.published)
        if self.published and isinstance(self.store, S3LedgerStore):  # below the same prefix as the ledgers
            for path in self.published:
                self.store.delete(f"models/{content}", path, versions=True)
            self.store.delete("models", f"{content}.json", versions=True)
        # A version that was used again was compared with its stored files.
        shutil.rmtree(home() / "models" / download_name(content, self.published), ignore_errors=True)

    def _remove_from_mlflow(self) -> None:
        # First, because a version without its LoggedModel could not be used again.
        delete_logged_models(self.name)
        self.client.delete_registered_model(self.name)


@contextmanager
def _claimed_name(model_name: str, store: LedgerStore) -> Iterator[str]:
    """Yields a name that no other pre-flight uses now."""
    folder = f"{CLAIMS}/{model_name}"
    slot = next(slot for slot in count() if _claim(store, folder, slot))
    try:
        yield f"{model_name}-preflight-{slot}"
    finally:
        with suppress(Exception):  # the account may only add: the claim is void after an hour
            for entry in _claims_of(store, folder, slot):
                store.delete(folder, entry, versions=True)


def _claim(store: LedgerStore, folder: str, slot: int) -> bool:
    """Claims a slot, unless a claim of the last hour holds it."""
    before = _claims_of(store, folder, slot)
    if before:
        text = store.read(folder, before[-1]) or now()  # just removed: not worth a second look
        try:
            claimed = datetime.fromisoformat(text)
            if datetime.now(UTC) - claimed < CLAIM_HOLDS:
                return False
        except (ValueError, TypeError):  # no claim of a pre-flight: whoever writes to the store made it
            return False
    number = int(before[-1].partition(".")[2]) + 1 if before else 0
    # Of two that take over the same claim one creates this entry.
    return store.create(folder, f"{slot}.{number:04d}", now())


def _claims_of(store: LedgerStore, folder: str, slot: int) -> list[str]:
    return store.names(folder, after=f"{slot}.", until=f"{slot}/")


def _write_model(folder: Path, *, name: str) -> None:
    """Writes a folder in the shape of a model. Its content is that of the name, so that a version can be used again."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "preflight", "name": name}), encoding="utf-8")
    save_file({"weight": np.zeros(WEIGHT_BYTES, np.uint8)}, folder / "model.safetensors", metadata={"name": name})
