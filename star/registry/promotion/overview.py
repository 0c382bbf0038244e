"""Gathers what `star models` shows: the versions with the aliases that hold, and what a person should know of them."""

from collections.abc import Sequence
from dataclasses import replace

from star.errors import InputError
from star.registry.promotion.find import as_known
from star.registry.promotion.open_ledger import find_ledger
from star.registry.promotion.promote_and_rollback import Holding, holding_aliases
from star.registry.promotion.records import ALIASES
from star.registry.promotion.version_records import recorded_versions
from star.registry.versions import Version, require_versions
from star.tracking.server import connect


def look_at_versions(name: str) -> tuple[list[Version], list[str]]:
    """All versions, newest first, with the aliases that hold; and remarks, one sentence each.

    No file is read, unless an alias was moved in MLflow to a version whose files nobody has verified yet.

    Raises:
        InputError: nothing is registered under that name.
    """
    versions = require_versions(name)
    client = connect()
    try:
        holding = holding_aliases(name)
        if holding is None:
            return versions, []
        ledger = find_ledger(name, client)
        recorded = recorded_versions(ledger) if ledger else set()
    except InputError as error:
        return versions, [f"The aliases are those that MLflow shows, and nobody can know whether they hold: {error}"]
    shown = [_with_aliases(version if version.files else as_known(version), holding) for version in versions]
    unrecorded = [version for version in shown if version.version not in recorded]
    return shown, [*holding.remarks, *_remarks(unrecorded, shown)]


def _with_aliases(version: Version, holding: Holding) -> Version:
    own = {alias for alias in version.aliases if alias not in ALIASES}
    own |= {alias for alias, number in holding.aliases.items() if number == version.version}
    return replace(version, aliases=tuple(sorted(own)))


def _remarks(unrecorded: Sequence[Version], versions: Sequence[Version]) -> list[str]:
    """What is known of versions that have no record: nothing has verified their files yet."""
    said, claimed = [], []
    for version in unrecorded:
        same = [other.version for other in versions if other.files == version.files and other not in unrecorded]
        if not version.files:
            said.append(f"version {version.version} was not registered by `star`, and its files are not known")
        elif same:
            said.append(
                f"version {version.version} was registered in MLflow from the logged model of version {same[-1]}"
            )
        else:
            claimed.append(str(version.version))
    if claimed:
        what = "version" if len(claimed) == 1 else "versions"
        said.append(
            f"{what} {', '.join(reversed(claimed))}: nothing but MLflow's tags says which files and scores these are"
        )
    return said
