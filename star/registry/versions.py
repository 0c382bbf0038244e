"""Lists a model's registered versions as MLflow shows them. What its tags say is a claim of whoever can write to MLflow."""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from star.errors import InputError
from star.tracking.searches import quoted_text, read_pages
from star.tracking.server import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.exceptions import MlflowException

PAGE = 100  # versions that MLflow is asked for at a time, each with all its tags
SHOWN = 20  # numbers of versions in an error's message
NEWEST_FIRST = ["version_number DESC"]
# Tags of a version. The last two are prefixes: one tag per score, and per entry of the lineage that a person can read. The digests, of
# files and of the lineage, are one tag as JSON, because MLflow's page shows every tag. Older versions have them in tags of their own.
DIGEST_TAG, FILES_TAG, DIGESTS_TAG = "star.model_digest", "star.files", "star.verification"
SCORE_TAG, LINEAGE_TAG = "star.score.", "star.lineage."
DIGEST = re.compile(r"[0-9a-f]{64}")
PRECISION_KEY = "precision"  # key of the lineage of a model whose weights were converted, such as to "bf16"
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


class Page(NamedTuple):
    """Some versions of a model, newest first, and whether there are older ones."""

    versions: list[Version]
    older: bool


def version_pages(name: str, *, size: int = PAGE) -> Iterator[Page]:
    """The versions of a model, newest first, in pages of so many; none when nothing was registered under that name.

    Each page begins behind the last version of the one before, so a version that is registered or deleted meanwhile moves no other.

    Raises:
        InputError: MLflow does not answer, or the name can be no model's.
    """
    client = connect()
    if (model := _find_model(name, client)) is None:
        return
    wanted = f"name = {_quoted(name)}"
    older = ""
    while True:
        found = client.search_model_versions(wanted + older, max_results=size, order_by=NEWEST_FIRST)
        if found:
            yield Page([read_version(entry, aliases=model.aliases) for entry in found], older=bool(found.token))
        if not found.token:
            return
        older = f" and version_number < {found[-1].version}"


def list_versions(name: str) -> list[Version]:
    """All versions of a model, newest first; an empty list when nothing was registered under that name.

    It reads as many pages as there are: what needs certain versions asks for these.

    Raises:
        InputError: MLflow does not answer.
    """
    return [version for page in version_pages(name) for version in page.versions]


def newest_versions(name: str, *, size: int = PAGE) -> list[Version]:
    """The newest versions, at most so many, of a model that must be registered.

    Raises:
        InputError: nothing was registered under that name, or MLflow does not answer.
    """
    if page := next(version_pages(name, size=size), None):
        return page.versions
    where = "check MLFLOW_TRACKING_URI and STAR_HOME"
    raise InputError(f"no model {name!r} is registered: run `star run` first, or {where}")


def require_versions(name: str) -> None:
    """Checks that a model is registered and has a version; raises as `newest_versions`."""
    if not has_versions(name):
        newest_versions(name, size=1)


def has_versions(name: str) -> bool:
    """Whether anything is registered under a name; raises as `version_pages`."""
    return bool(connect().search_model_versions(f"name = {_quoted(name)}", max_results=1, order_by=NEWEST_FIRST))


def find_version(name: str, *, version: int | None = None, alias: str = "champion") -> Version:
    """The version of that number, or without a number the one that MLflow gives the alias.

    Raises:
        InputError: there is no such version; the message lists the newest that exist.
    """
    if version is not None:
        if found := find_versions(name, {version}):
            return found[version]
        raise InputError(f"{name} has no version {version}: choose one of {known_numbers(name)}")
    model = _find_model(name, connect())
    if model and alias in model.aliases:
        return find_version(name, version=int(model.aliases[alias]))
    known = known_numbers(name)
    raise InputError(f"no version of {name} is called {alias!r}: name a version ({known}), or `star promote` one first")


def find_versions(name: str, numbers: Collection[int]) -> dict[int, Version]:
    """Those of the versions of these numbers that exist. Each is one request, however many versions there are."""
    client = connect()
    from mlflow.exceptions import MlflowException

    found = {}
    for number in sorted(number for number in numbers if 0 < number < 2**31):  # what MLflow's databases hold
        try:
            entry = client.get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise _of_name(name, error) from error
        else:
            found[number] = read_version(entry, aliases=dict.fromkeys(entry.aliases, number))
    return found


def find_versions_of(name: str, model_digest: str) -> list[Version]:
    """The versions whose tags say that they are the model of this digest, newest first. MLflow searches for the tag."""
    client = connect()
    if (model := _find_model(name, client)) is None:
        return []
    # A digest that no quotes can hold, which no STAR wrote, is searched for with any character in the place of a quote.
    quoted = quoted_text(model_digest)
    comparison = f"= {quoted}" if quoted else "LIKE '{}'".format(re.sub(r"['\"\\]", "_", model_digest))
    wanted = f"name = {_quoted(name)} and tags.`{DIGEST_TAG}` {comparison}"
    found: Iterator[ModelVersion] = read_pages(
        client.search_model_versions, wanted, max_results=PAGE, order_by=NEWEST_FIRST
    )
    versions = [read_version(entry, aliases=model.aliases) for entry in found]
    return [version for version in versions if version.model_digest == model_digest]


def known_numbers(name: str) -> str:
    """The numbers of the newest versions, to choose from; raises as `newest_versions`."""
    versions = newest_versions(name, size=SHOWN + 1)
    older = f" and older ones (`star models --all --name {name}`)" if len(versions) > SHOWN else ""
    return ", ".join(str(version.version) for version in versions[:SHOWN]) + older


def read_version(entry: "ModelVersion", *, aliases: Mapping[str, int | str]) -> Version:
    """Reads MLflow's entry of a version.

    Args:
        aliases: all aliases of the registered model, because a searched entry does not hold its own.
    """
    number = int(entry.version)
    files, digests = _read_digests(entry.tags.get(DIGESTS_TAG, "{}"))

    def tags_with_prefix(prefix: str) -> dict[str, str]:
        return {key.removeprefix(prefix): value for key, value in entry.tags.items() if key.startswith(prefix)}

    return Version(
        name=entry.name,
        version=number,
        aliases=tuple(sorted(alias for alias, version in aliases.items() if int(version) == number)),
        scores=_numbers(tags_with_prefix(SCORE_TAG)),
        lineage=tags_with_prefix(LINEAGE_TAG) | digests,
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        model_digest=entry.tags.get(DIGEST_TAG, ""),
        files=files or _texts(_json_of(entry.tags.get(FILES_TAG, "{}"))),
        source=entry.source or "",
        run_id=entry.run_id or None,
    )


def _find_model(name: str, client: "MlflowClient") -> "RegisteredModel | None":
    """MLflow's entry of a registered model, with its aliases; None when there is none of that name."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise _of_name(name, error) from error


def _of_name(name: str, error: "MlflowException") -> Exception:
    """An InputError where MlflowException is about a name that no model can have, else the error itself."""
    if error.error_code != "INVALID_PARAMETER_VALUE":
        return error
    return InputError(f"{name[:80]!r} can be no registered model's name: {error.message[:200]}")


def _quoted(name: str) -> str:
    if quoted := quoted_text(name):
        return quoted
    raise InputError(
        f"MLflow cannot search for the versions of {name[:80]!r}: rename it without quotes and backslashes"
    )


def _numbers(tags: Mapping[str, str]) -> dict[str, float]:
    """The tags that hold a number. Everybody who reaches MLflow can write others, and one of them must not end `star models`."""
    numbers = {}
    for key, value in tags.items():
        with contextlib.suppress(ValueError):
            numbers[key] = float(value)
    return numbers


def digests_tag(files: Mapping[str, str], lineage: Mapping[str, str]) -> str:
    """The content of the tag DIGESTS_TAG: sha256 by file, and the digests of a lineage."""
    digests = {key: value for key, value in lineage.items() if DIGEST.fullmatch(value)}
    return json.dumps({"files": dict(files), "lineage": digests})


def _read_digests(tag: str) -> tuple[dict[str, str], dict[str, str]]:
    """The files and the lineage of `digests_tag`; none if the tag is not of that form, as if it were missing."""
    content = _json_of(tag)
    found = content if isinstance(content, dict) else {}
    return _texts(found.get("files")), _texts(found.get("lineage"))


def _json_of(tag: str) -> object:
    try:
        return json.loads(tag)
    except (ValueError, RecursionError):
        return None


def _texts(content: object) -> dict[str, str]:
    """An object of texts, such as file -> sha256; an empty one in place of anything else."""
    is_valid = isinstance(content, dict) and all(isinstance(value, str) for value in content.values())
    return content if is_valid else {}  # type: ignore[return-value]  # JSON has no other keys than texts


def is_version_reference(model: str) -> bool:
    """Whether `model` is NAME/3 of the registry. A hub id has the same form, but none ends in a number alone."""
    return re.fullmatch(r"[^/]+/\d+", model) is not None


def is_written_as_path(model: str) -> bool:
    """Whether a text can only mean a folder: it starts like a path, or has slashes that no reference to a version has."""
    if model.startswith((".", "/", "~")):
        return True
    return "/" in model and REFERENCE.fullmatch(model) is None
