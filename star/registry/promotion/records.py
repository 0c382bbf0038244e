"""Defines the ledger's records, and reads them from texts that anybody may have written.

Attempts and decisions are the chain (ledger.py). Registrations and the contents of versions lie beside it: what STAR knows
of a version, whatever MLflow's tags say (version_records.py).

A record is a JSON object with exactly the fields of its class. `registry` and `signature` are left out where they are
empty, as in every record of an older STAR. So the digests of older records stay what they were.
"""

import getpass
import json
import os
import socket
import uuid
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from star.hashing import digest_of

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous-champion"
ALIASES = (PREVIOUS, CHALLENGER, CHAMPION)  # in the order they are written: the champion changes last
RECORD_CHARACTERS = 1 << 20  # an honest record has under a thousand, and a reason of any length that somebody types
_OPTIONAL = ("registry", "signature")

VersionNumber = Annotated[int, Field(ge=1, lt=2**31)]  # what MLflow's databases hold


# The fields of the classes are the keys of the stored JSON, and digests are computed over them. A field that is added,
# renamed or moved breaks the chain of every ledger that exists, unless it is left out where it is empty.


@dataclass(frozen=True)
class Attempt:
    """Somebody's wish to change the aliases as decision `over` left them."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    action: str  # promote, rollback, adopt (aliases moved in MLflow), repair, sign
    version: VersionNumber | None
    over: Annotated[int, Field(ge=0)]
    reason: str
    refused: str = ""  # why it was not even tried, such as the gate's failed checks
    actor: str = field(default_factory=lambda: actor())
    at: str = field(default_factory=lambda: now())
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)  # id
    registry: str = ""  # id of the registry that the ledger belongs to
    signature: str = ""


@dataclass(frozen=True)
class Decision:
    """The aliases from decision number `seq` on, and the attempt that won. Number 0 stands for: no decision yet."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    seq: Annotated[int, Field(ge=0)] = 0
    aliases: dict[str, VersionNumber] = field(default_factory=dict)
    attempt: Attempt | None = None  # None only in number 0, which is not stored
    parent: str = ""  # digest of the decision before
    registry: str = ""
    signature: str = ""

    @cached_property
    def digest(self) -> str:
        """Digest over all fields. The next decision's `parent` is this value."""
        return digest_of(_content(self))


@dataclass(frozen=True)
class Registration:
    """Files that STAR registered or that a person vouched for, what was measured of them, and what the gate said."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    files: dict[str, str]  # relative path -> sha256
    model_digest: str
    source: str  # address of the files
    logged_model: str  # id of MLflow's LoggedModel that stands for them, if any
    scores: dict[str, float]
    lineage: dict[str, str]
    gate: str = ""  # passed, refused; empty before the gate has decided
    actor: str = field(default_factory=lambda: actor())
    at: str = field(default_factory=lambda: now())
    registry: str = ""
    signature: str = ""

    @property
    def content(self) -> str:
        """Digest of the files' hashes. Files with the same bytes have the same, wherever they lie."""
        return digest_of(self.files)


@dataclass(frozen=True)
class VersionContent:
    """Which registration's files a version has, once its files were verified. Written once for a version."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    version: VersionNumber
    content: str  # of the registration
    model_digest: str  # of the registration
    reason: str
    actor: str = field(default_factory=lambda: actor())
    at: str = field(default_factory=lambda: now())
    registry: str = ""
    signature: str = ""


Record = TypeVar("Record", Attempt, Decision, Registration, VersionContent)
AnyRecord = Attempt | Decision | Registration | VersionContent

_ADAPTERS: dict[type, TypeAdapter] = {
    kind: TypeAdapter(kind) for kind in (Attempt, Decision, Registration, VersionContent)
}


class DamagedRecordError(Exception):
    """A text is no record. The message says in a few words why."""


def record_text(record: AnyRecord) -> str:
    """The stored JSON of a record."""
    return json.dumps(_content(record), ensure_ascii=False)


def signed_digest(record: AnyRecord) -> str:
    """Digest over all fields but the record's own signature, which is made over this value."""
    return digest_of({key: value for key, value in _content(record).items() if key != "signature"})


def parse_record(text: str, kind: type[Record]) -> Record:
    """Reads a stored record.

    Raises:
        DamagedRecordError: the text is something else, whatever it is.
    """
    if len(text) > RECORD_CHARACTERS:
        raise DamagedRecordError(f"it has more than {RECORD_CHARACTERS:,} characters")
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # half of a surrogate pair would end every digest in an error
    except (ValueError, RecursionError) as error:
        raise DamagedRecordError("it is not JSON, or was cut") from error
    try:
        read: Record = _ADAPTERS[kind].validate_json(text)
    except (ValidationError, RecursionError) as error:
        where = "" if isinstance(error, RecursionError) else ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DamagedRecordError(
            f"it does not have the fields of {_a(kind)}{f' ({where[:80]})' if where else ''}"
        ) from error
    # The classes have defaults for records that are made now. A stored one has every field.
    for record, stored in ((read, content), (getattr(read, "attempt", None), content.get("attempt"))):
        if isinstance(record, AnyRecord):
            missing = {entry.name for entry in fields(record)} - set(_OPTIONAL) - set(stored)
            if missing:
                raise DamagedRecordError(f"it has no {sorted(missing)[0]}")
    if isinstance(read, Decision) and (read.attempt is None or read.seq == 0):
        raise DamagedRecordError("it has no attempt or no number")
    if isinstance(read, Decision) and not read.aliases.keys() <= set(ALIASES):
        raise DamagedRecordError("it has an alias that no decision has")
    return read


def now() -> str:
    """The time, in a form that sorts by time as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def actor() -> str:
    """Who acts: user and machine, and the Kubeflow run where there is one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    run = os.environ.get("KFP_RUN_ID")
    return f"{user}@{socket.gethostname()}" + (f" (KFP run {run})" if run else "")


def _content(record: AnyRecord) -> dict:
    # An audit does this for every record, and `dataclasses.asdict` copies all that it finds: five times the time.
    values = {entry.name: getattr(record, entry.name) for entry in fields(record)}
    return {
        key: _content(value) if isinstance(value, Attempt) else value
        for key, value in values.items()
        if value != "" or key not in _OPTIONAL
    }


def _a(kind: type) -> str:
    return (
        "a version's content"
        if kind is VersionContent
        else f"{'an' if kind is Attempt else 'a'} {kind.__name__.lower()}"
    )
