"""Lists a model's registered versions as MLflow shows them. What its tags say is a claim of whoever can write to MLflow."""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from star.errors import InputError
from star.tracking.server import connect

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# Tags of a version. The last two are prefixes: one tag per score and per entry of the lineage.
DIGEST_TAG, FILES_TAG = "star.model_digest", "star.files"
SCORE_TAG, LINEAGE_TAG = "star.score.", "star.lineage."
READING_KEY = "reading"  # key of the lineage: `reading` of the evaluation, which one of an older STAR does not have
# The excluded characters separate the parts of a reference. A quote would end the filter string of a search in MLflow.
NAME_PATTERN = r"[^/:@'\"]+"
REFERENCE = re.compile(rf"(?:models:/)?(?P<name>{NAME_PATTERN})(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))?")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    scores: dict[str, float]
    lineage: dict[str, str]
    created: datetime
    model_digest: str
    files: dict[str, str]  # relative path -> sha256; empty for a version that `star` did not register
    source: str = ""  # address of its files
    run_id: str | None = None  # the MLflow run that registered it

    @property
    def older_reading(self) -> bool:
        """Whether its scores are by an older STAR, which counted other answers as valid."""
        return READING_KEY not in self.lineage

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def list_versions(name: str) -> list[Version]:
    """All versions of a model, newest first; an empty list when nothing was registered under that name.

    Raises:
        InputError: MLflow does not answer.
    """
    client = connect()
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases  # the search below does not fill them in
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return []
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise InputError(f"{name[:80]!r} can be no registered model's name: {error.message[:200]}") from error
        raise
    found: list[ModelVersion] = []
    token = None
    while token != "":  # MLflow answers in pages
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found, token = [*found, *page], page.token or ""
    return sorted((read_version(entry, aliases=aliases) for entry in found), key=lambda version: -version.version)


def require_versions(name: str) -> list[Version]:
    """`list_versions` of a model that must be registered.

    Raises:
        InputError: nothing was registered under that name, or MLflow does not answer.
    """
    versions = list_versions(name)
    if not versions:
        where = "check MLFLOW_TRACKING_URI and STAR_HOME"
        raise InputError(f"no model {name!r} is registered: run `star run` first, or {where}")
    return versions


def find_version(name: str, *, version: int | None = None, alias: str = "champion") -> Version:
    """The version of that number, or without a number the one that MLflow gives the alias.

    Raises:
        InputError: there is no such version; the message lists those that exist.
    """
    versions = require_versions(name)
    known = ", ".join(str(entry.version) for entry in versions)
    if version is not None:
        if found := next((entry for entry in versions if entry.version == version), None):
            return found
        raise InputError(f"{name} has no version {version}: choose one of {known}")
    if found := next((entry for entry in versions if alias in entry.aliases), None):
        return found
    raise InputError(f"no version of {name} is called {alias!r}: name a version ({known}), or `star promote` one first")


def read_version(entry: "ModelVersion", *, aliases: Mapping[str, int | str]) -> Version:
    """Reads MLflow's entry of a version.

    Args:
        aliases: all aliases of the registered model, because a searched entry does not hold its own.
    """
    number = int(entry.version)

    def tags_with_prefix(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): value for key, value in entry.tags.items() if key.startswith(prefix)}

    return Version(
        name=entry.name,
        version=number,
        aliases=tuple(sorted(alias for alias, version in aliases.items() if int(version) == number)),
        scores=_numbers(tags_with_prefix(SCORE_TAG)),
        lineage=tags_with_prefix(LINEAGE_TAG),
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        model_digest=entry.tags.get(DIGEST_TAG, ""),
        files=_digests(entry.tags.get(FILES_TAG, "{}")),
        source=entry.source or "",
        run_id=entry.run_id or None,
    )


def _numbers(tags: Mapping[str, str]) -> dict[str, float]:
    """The tags that hold a number. Everybody who reaches MLflow can write others, and one of them must not end `star models`."""
    numbers = {}
    for key, value in tags.items():
        with contextlib.suppress(ValueError):
            numbers[key] = float(value)
    return numbers


def _digests(tag: str) -> dict[str, str]:
    """File -> sha256 of a tag; none if the tag is not of that form, as if it were missing."""
    try:
        files = json.loads(tag)
    except (ValueError, RecursionError):
        return {}
    is_valid = isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())
    return files if is_valid else {}


def is_version_reference(model: str) -> bool:
    """Whether `model` is NAME/3 of the registry. A hub id has the same form, but none ends in a number alone."""
    return re.fullmatch(r"[^/]+/\d+", model) is not None


def is_written_as_path(model: str) -> bool:
    """Whether a text can only mean a folder: it starts like a path, or has slashes that no reference to a version has."""
    if model.startswith((".", "/", "~")):
        return True
    return "/" in model and REFERENCE.fullmatch(model) is None
