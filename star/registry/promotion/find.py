"""Finds the version that a user names: `3`, `champion`, `star/3`, `star@champion`.

The aliases that are decided by promotions are those of the ledger. MLflow's own pages can show others (moved_aliases.py).
"""

import re

from star.errors import InputError
from star.registry.promotion.ledger import Ledger
from star.registry.promotion.moved_aliases import expected_registration, verify_version
from star.registry.promotion.open_ledger import find_ledger
from star.registry.promotion.promote_and_rollback import holding_aliases
from star.registry.promotion.records import ALIASES, CHAMPION
from star.registry.promotion.version_records import find_recorded, with_registration
from star.registry.versions import REFERENCE, Version, find_version, has_versions, known_numbers, require_versions
from star.tracking.server import connect


def find_by_reference(reference: str, *, name: str) -> Version:
    """The version that a user names: `3` or `champion` of the model `name`, or `NAME/3`, `NAME@champion` in full.

    Raises:
        InputError: there is no such version.
    """
    # Numbers come first, because they also have the form of an alias.
    if reference.isdecimal():
        return as_known(find_version(name, version=int(reference)))
    if re.fullmatch(r"[\w-]+", reference):
        return find_by_alias(name, reference)
    return find_by_full_reference(reference)


def find_by_reference_or_name(reference: str, *, name: str) -> Version:
    """As `find_by_reference`; a word that is no alias of `name` may also be another model's name, for its champion.

    Raises:
        InputError: there is no such version.
    """
    try:
        return find_by_reference(reference, name=name)
    except InputError:
        # A model that somebody registers as `champion` must not be asked where there is none.
        if reference in ALIASES or not re.fullmatch(r"[\w-]+", reference) or not has_versions(reference):
            raise
        return find_by_alias(reference, CHAMPION)


def find_by_full_reference(reference: str) -> Version:
    """The version that `name` (its champion), `name@alias` or `name/3` names, with or without `models:/` before it.

    Raises:
        InputError: the reference has another form, or there is no such version.
    """
    parts = REFERENCE.fullmatch(reference)
    if not parts:
        raise InputError(f"{reference!r} names no model: write NAME, NAME@ALIAS or NAME/VERSION")
    if parts["version"]:
        return as_known(find_version(parts["name"], version=int(parts["version"])))
    return find_by_alias(parts["name"], parts["alias"] or CHAMPION)


def find_by_alias(name: str, alias: str) -> Version:
    """The version that has the alias by the ledger; an alias that promotions do not decide is MLflow's.

    Raises:
        InputError: there is none.
    """
    require_versions(name)
    if alias not in ALIASES or not (holding := holding_aliases(name)):
        return as_known(find_version(name, alias=alias))
    if alias in holding.aliases:
        return as_known(find_version(name, version=holding.aliases[alias]))
    why = f" ({'; '.join(holding.remarks)})" if holding.remarks else ""
    raise InputError(
        f"no version of {name} is called {alias!r}: name a version ({known_numbers(name)}), or `star promote` one first{why}"
    )


def as_known(version: Version) -> Version:
    """The version with files, scores and lineage as recorded; as MLflow's tags say where nothing was recorded."""
    ledger = find_ledger(version.name, connect())
    return as_known_to(ledger, version) if ledger else version


def as_known_to(ledger: Ledger, version: Version) -> Version:
    """`as_known` by a ledger that was found before."""
    found = find_recorded(ledger, version.version)
    if found is None and not version.files:
        found = expected_registration(version, ledger)
    return with_registration(version, found) if found else version


def with_known_files(version: Version) -> Version:
    """The version, known by the hashes of its files if nothing else says which they are.

    Raises:
        InputError: no registration recorded these files.
    """
    if version.files or not (ledger := find_ledger(version.name, connect())):
        return version
    return verify_version(version, ledger)[0]
