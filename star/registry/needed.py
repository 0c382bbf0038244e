"""Says which folders the registry needs: by content digest, those that versions, their lineage and the ledger name.

The lineage of a version is the file lineage.json among its files. It is downloaded once, compared with the sha256 that was
registered, and kept in the home's `lineages/` under that sha256, because `star clean` may run each night.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from star.errors import InputError
from star.folders.owners import create_in_home
from star.hashing import sha256_of
from star.registry.download import download_file
from star.registry.lineage import LINEAGE_FILE
from star.registry.promotion.ledger import Ledger, entry_name
from star.registry.promotion.open_ledger import find_ledger, reaches_ledgers
from star.registry.promotion.records import Registration, VersionContent
from star.registry.promotion.version_records import REGISTRATIONS, VERSIONS, recorded_versions, with_registration
from star.registry.versions import DIGEST, Version, list_versions
from star.tracking.reason import reason_of
from star.tracking.searches import read_pages
from star.tracking.server import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAMES_PER_PAGE = 1000


@dataclass
class Needed:
    """What the registry needs.

    Attributes:
        folders: content digest of a folder -> who names it.
        aliased: digests of the models that have an alias -> the alias; their downloads stay.
        models: names of the registered models.
    """

    folders: dict[str, str] = field(default_factory=dict)
    aliased: dict[str, str] = field(default_factory=dict)
    models: set[str] = field(default_factory=set)

    def add(self, digests: Iterable[str], by: str) -> None:
        """Adds digests; the first one that names a digest is shown."""
        for digest in digests:
            self.folders.setdefault(digest, by)


def read_needs() -> Needed:
    """Reads all registered models, versions, ledgers and lineages.

    Raises:
        InputError: something of it cannot be read, so nobody can know what is needed.
    """
    from mlflow.exceptions import MlflowException

    client = connect()
    needed = Needed()
    try:
        needed.models = set(_model_names(client))
        if len(needed.models) >= NAMES_PER_PAGE:
            # A model that is deleted meanwhile moves another one over the edge of a page, where it would be missed.
            needed.models |= set(_model_names(client))
        for name in sorted(needed.models):
            _add_model(needed, name, client)
    except MlflowException as error:
        raise InputError(f"the registry cannot be read: {reason_of(error)}") from error
    return needed


def _model_names(client: "MlflowClient") -> Iterator[str]:
    for model in read_pages(client.search_registered_models, max_results=NAMES_PER_PAGE):
        yield model.name


def _add_model(needed: Needed, name: str, client: "MlflowClient") -> None:
    versions = list_versions(name)
    ledger = find_ledger(name, client)
    if ledger is None and any(version.files for version in versions) and not reaches_ledgers(name, client):
        raise InputError(f"the ledger of {name} cannot be reached from here: set STAR_REGISTRY (see docs/mlflow.md)")
    registrations = _read_registrations(ledger) if ledger else []
    recorded = _by_version(ledger, registrations, versions) if ledger else {}
    decided = ledger.newest().aliases if ledger else {}
    for version in versions:
        registered = recorded.get(version.version)
        known = with_registration(version, registered) if registered else version
        if LINEAGE_FILE in known.files:
            needed.add(_digests_of_lineage(known), f"lineage of {version}")
        # MLflow's tags are claims of whoever can write to MLflow. What they name stays too, which does no harm.
        needed.add(filter(DIGEST.fullmatch, (known.model_digest, version.model_digest)), str(version))
        needed.add(filter(DIGEST.fullmatch, version.lineage.values()), f"{version} in MLflow")
        aliases = {*version.aliases, *(alias for alias, number in decided.items() if number == version.version)}
        for alias in sorted(aliases):
            needed.aliased |= dict.fromkeys((known.model_digest, version.model_digest), f"{name}@{alias}")
    for registration in registrations:
        # Also of versions that were deleted since: the ledger's decisions are about them.
        named = (registration.model_digest, *registration.lineage.values())
        needed.add(filter(DIGEST.fullmatch, named), f"ledger of {name}")


def _read_registrations(ledger: Ledger) -> list[Registration]:
    """The registrations beside the ledger, the oldest first."""
    names = ledger.store.names(ledger.folder_of(REGISTRATIONS))
    return sorted(ledger.read_notes(REGISTRATIONS, names, Registration), key=lambda registration: registration.at)


def _by_version(
    ledger: Ledger, registrations: Sequence[Registration], versions: Sequence[Version]
) -> dict[int, Registration]:
    """The registration of each version that was recorded to have its files."""
    if not versions:
        return {}
    numbers = [version.version for version in versions]
    with_record = recorded_versions(ledger, lowest=min(numbers), highest=max(numbers))
    contents = ledger.read_notes(VERSIONS, [entry_name(number) for number in sorted(with_record)], VersionContent)
    newest = {(registration.content, registration.model_digest): registration for registration in registrations}
    found = {entry.version: newest.get((entry.content, entry.model_digest)) for entry in contents}
    return {number: registration for number, registration in found.items() if registration}


def _digests_of_lineage(version: Version) -> Iterator[str]:
    """Every digest in the version's lineage.json: stages, the evaluation, and what each of them read.

    Raises:
        InputError: the file cannot be downloaded, or is not what was registered.
    """
    file = _lineage_file(version)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        stages = dict(content["stages"])
        evaluation = content["evaluation"]
        inputs = [digest for summary in (*stages.values(), evaluation) for digest in summary["inputs"].values()]
        return iter([content["model"], *stages, evaluation["digest"], *inputs])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"the lineage of {version} is not what `star register` writes ({type(error).__name__}), so nobody can know which "
            f"folders it needs: `star models delete {version.version} --name {version.name}`, or register it again"
        ) from error


def _lineage_file(version: Version) -> Path:
    kept = create_in_home("lineages")
    digest = version.files[LINEAGE_FILE]
    file = kept / (digest if DIGEST.fullmatch(digest) else "unknown")
    if file.is_file() and not file.is_symlink() and sha256_of(file) == digest:
        return file
    with TemporaryDirectory(dir=kept, prefix=".download-") as scratch:
        return download_file(version, LINEAGE_FILE, Path(scratch) / "files").replace(file)
