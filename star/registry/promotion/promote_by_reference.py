"""Promotes a version that a user names, here or in another MLflow registry: what `star promote` does."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from star.errors import InputError
from star.folders.owners import create_in_home
from star.redaction import find_secret
from star.registry.download import download_unchecked, download_version, verify_stored_files
from star.registry.promotion.copy_version import copy_version
from star.registry.promotion.find import find_by_reference
from star.registry.promotion.moved_aliases import NotKnownError, verify_version
from star.registry.promotion.open_ledger import find_ledger, open_ledger
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import vouch_for
from star.registry.promotion.version_records import find_recorded, with_registration
from star.registry.publish import hash_files, require_model
from star.registry.versions import REFERENCE, Version
from star.tracking.server import connect, use_tracking_uri


def promote_model(model: str, *, name: str, to: str, reason: str, to_registry: str | None = None) -> Version:
    """Verifies the version's stored files and promotes it, whatever the gate said of it.

    The files of a version that STAR did not register are taken as they are, if it is named by its number: who promotes
    it vouches for them. From then on they are compared like all others.

    Args:
        model: a version, an alias, NAME/VERSION or NAME@ALIAS.
        name: the registered model, where `model` does not name one.
        to: champion or challenger.
        to_registry: address of another MLflow, or env:NAME of a variable with it; the version is copied there and promoted there.

    Raises:
        InputError: there is no such version, its files are not what was registered, MLflow does not answer, or the address holds
            a password.
    """
    address = None if to_registry is None else _address(to_registry)
    version = _verified(find_by_reference(model, name=name), named=model)
    if address is None:
        return promote(version.name, version.version, to=to, reason=reason)
    folder = download_version(version, create_in_home("models"))
    with use_tracking_uri(address):
        copied = copy_version(version, folder)
        return promote(copied.name, copied.version, to=to, reason=reason)


def _verified(version: Version, *, named: str) -> Version:
    """The version, after its stored files were read and compared with what was recorded of them, which they are now.

    Downloaded even for a promotion here: what is stored may have changed since the version was registered.
    """
    # Where it is only copied from, STAR_REGISTRY can be of the registry that it is copied to.
    ledger = find_ledger(version.name, connect()) or open_ledger(version.name, connect())
    if known := find_recorded(ledger, version.version):
        verify_stored_files(with_registration(version, known), create_in_home("models"))
        return with_registration(version, known)
    try:
        return verify_version(version, ledger)[0]
    except NotKnownError:
        pass
    if version.files and version.model_digest:
        verify_stored_files(version, create_in_home("models"))
        return vouch_for(version, version.files, ledger=ledger, reason="promoted with the files that its tags name")
    parts = REFERENCE.fullmatch(named)
    if not (named.isdecimal() or (parts and parts["version"])):
        raise InputError(f"{version} was not registered by `star`: promote it by its number if you trust its files")
    with tempfile.TemporaryDirectory(prefix="star-version-") as scratch:
        folder = download_unchecked(version, Path(scratch) / "model")
        require_model(folder, name=version.name)
        files = hash_files(folder)
    return vouch_for(replace(version, files=files), files, ledger=ledger, reason="promoted with the files that it had")


def _address(given: str) -> str:
    """The address of a registry as it was given, or as the variable has it that `env:NAME` refers to."""
    if given.startswith("env:"):
        name = given.removeprefix("env:")
        if not os.environ.get(name):
            raise InputError(f"--to-registry {given}: there is no variable {name}")
        return os.environ[name]
    if found := find_secret(given):
        raise InputError(
            f"--to-registry holds {found}, which every user of this machine sees in the list of processes: put the whole address "
            "into a variable, and give `--to-registry env:NAME`"
        )
    return given
