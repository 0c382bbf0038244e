"""Gathers what `star models` shows: a page of versions with the aliases that hold, and what a person should know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from star.errors import InputError
from star.registry.promotion.find import as_known_to
from star.registry.promotion.ledger import Ledger
from star.registry.promotion.open_ledger import find_ledger
from star.registry.promotion.promote_and_rollback import holding_aliases, read_aliases
from star.registry.promotion.records import ALIASES
from star.registry.promotion.version_records import find_recorded, recorded_versions
from star.registry.versions import (
    Page,
    Version,
    find_versions,
    find_versions_of,
    list_versions,
    require_versions,
    version_pages,
)
from star.tracking.server import connect


@dataclass(frozen=True)
class Overview:
    """What is shown of a model's versions."""

    versions: list[Version]  # of the page, newest first
    elsewhere: list[Version]  # beside the newest page: champion, challenger and previous champion that are older
    remarks: list[str]  # one sentence each
    older: bool  # whether there is a page after this one


def look_at_versions(name: str, *, page: int | None = 1) -> Overview:
    """A page of versions with the aliases that hold. What it costs does not depend on how many versions there are.

    No file is read, unless an alias was moved in MLflow to a version whose files nobody has verified yet.

    Args:
        page: 1 is that of the newest versions; None for all versions.

    Raises:
        InputError: nothing is registered under that name, or it has no such page.
    """
    versions, older = _read_page(name, page)
    client = connect()
    ledger, aliases, remarks = None, None, []
    try:
        if holding := holding_aliases(name):
            aliases, remarks = holding.aliases, holding.remarks
            ledger = find_ledger(name, client)
    except InputError as error:
        aliases = None
        remarks = [f"The aliases are those that MLflow shows, and nobody can know whether they hold: {error}"]
    decided = read_aliases(name, client).aliases if aliases is None else aliases
    away = set(decided.values()) - {version.version for version in versions} if page == 1 else set()
    elsewhere = list(find_versions(name, away).values())
    if aliases is None:
        return Overview(versions, elsewhere, remarks, older)
    shown = [_with_aliases(version, aliases) for version in _as_known(versions, ledger)]
    others = [_with_aliases(version, aliases) for version in _as_known(elsewhere, ledger)]
    untagged = {version.version for version in (*versions, *elsewhere) if not version.files}
    recorded = _recorded(versions, elsewhere, ledger)
    said = _remarks([*shown, *others], untagged=untagged, recorded=recorded, ledger=ledger)
    return Overview(shown, others, [*remarks, *said], older)


def _read_page(name: str, number: int | None) -> Page:
    if number is None and (versions := list_versions(name)):
        return Page(versions, older=False)
    last = 0
    for last, page in enumerate(version_pages(name), 1):
        if last == number:
            return page
    require_versions(name)
    raise InputError(
        f"{name} has no page {number} of versions: the last one is `star models --page {last} --name {name}`"
    )


def _as_known(versions: Sequence[Version], ledger: Ledger | None) -> list[Version]:
    """The versions; those without tags of their files as the ledger's store knows them."""
    return [version if version.files or not ledger else as_known_to(ledger, version) for version in versions]


def _with_aliases(version: Version, aliases: Mapping[str, int]) -> Version:
    own = {alias for alias in version.aliases if alias not in ALIASES}
    own |= {alias for alias, number in aliases.items() if number == version.version}
    return replace(version, aliases=tuple(sorted(own)))


def _recorded(versions: Sequence[Version], elsewhere: Sequence[Version], ledger: Ledger | None) -> set[int]:
    """The numbers of the versions that have a record."""
    if ledger is None:
        return set()
    single = {version.version for version in elsewhere if find_recorded(ledger, version.version)}
    return single | recorded_versions(ledger, lowest=versions[-1].version, highest=versions[0].version)


def _remarks(
    versions: Sequence[Version], *, untagged: set[int], recorded: set[int], ledger: Ledger | None
) -> list[str]:
    """What is known of versions that have no record: nothing has verified their files yet."""
    said, claimed = [], []
    for version in versions:
        if version.version in recorded:
            continue
        same = [other.version for other in versions if other.files == version.files and other.version in recorded]
        if not version.files:
            said.append(f"version {version.version} was not registered by `star`, and its files are not known")
        elif same or version.version in untagged:
            origin = same[-1] if same else _recorded_with_files(version, ledger)
            of = f"the logged model of version {origin}" if origin else "a logged model of `star`"
            said.append(f"version {version.version} was registered in MLflow from {of}")
        else:
            claimed.append(str(version.version))
    if claimed:
        what = "version" if len(claimed) == 1 else "versions"
        said.append(
            f"{what} {', '.join(reversed(claimed))}: nothing but MLflow's tags says which files and scores these are"
        )
    return said


def _recorded_with_files(version: Version, ledger: Ledger | None) -> int | None:
    """The oldest version on another page that is recorded to have the same files."""
    for other in reversed(find_versions_of(version.name, version.model_digest)):
        known = find_recorded(ledger, other.version) if ledger else None
        if known and known.files == version.files:
            return other.version
    return None
