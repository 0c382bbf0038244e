"""Judges aliases that somebody moved in MLflow, by its pages or its API, where nothing but the alias says who did it.

People promote in MLflow's pages, and that stays. But whoever reaches MLflow can move an alias, register any files, and
write any tag. So a move counts when two things hold that MLflow alone cannot make true:

- the version's files are those of a registration: they are downloaded and hashed, and the ledger's store has a record of
  these hashes (version_records.py);
- they have passed the gate by that record, or the version was champion before by a promotion or a rollback.

Example: version 3 is the champion, and somebody moves `champion` in the pages.

    to version    its files                              the gate    result
    4             from the run's own logged model        passed      champion 4, previous-champion 3
    5             as registered                          refused     3 stays; `star promote 5` makes 5 the champion
    6             of no registration                     -           3 stays; `star promote 6` takes them as they are
    none          -                                      -           3 stays
"""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star.errors import InputError
from star.folders.owners import create_in_home
from star.hashing import digest_of
from star.registry.download import OtherFilesError, download_unchecked, verify_stored_files
from star.registry.promotion.ledger import Ledger
from star.registry.promotion.records import ALIASES, CHALLENGER, CHAMPION, PREVIOUS, Attempt, Decision, Registration
from star.registry.promotion.version_records import (
    PASSED,
    find_recorded,
    find_registration,
    record_content,
    with_registration,
)
from star.registry.publish import CONTENT_TAG, hash_files
from star.registry.versions import Version
from star.tracking.server import connect

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

LOGGED_MODEL = "models:/m-"  # how the source of a version begins that was registered from a LoggedModel


@dataclass(frozen=True)
class Move:
    """An alias that MLflow shows elsewhere than the newest decision."""

    alias: str
    decided: int | None
    shown: int | None

    def __str__(self) -> str:
        return f"{self.alias} from {self.decided or 'none'} to {self.shown or 'none'}"

    @property
    def reason(self) -> str:
        """What the ledger says of it."""
        return f"moved in MLflow: {self}"


@dataclass(frozen=True)
class Judged:
    """The aliases after all moves that count, and why the others do not."""

    aliases: dict[str, int]
    counted: list[Move]
    refused: list[tuple[Move, str]]
    new: list[Move]  # those of the refused that the ledger does not say yet


class NotKnownError(InputError):
    """A version has files that no registration recorded."""


def judge_moves(
    shown: Mapping[str, int], before: Decision, *, ledger: Ledger, versions: Mapping[int, Version]
) -> Judged:
    """Judges every alias that MLflow shows elsewhere than the newest decision.

    Args:
        shown: the aliases in MLflow.
        versions: by their numbers, those of the versions with an alias in MLflow or in the newest decision that exist.
    """
    moves = [
        Move(alias, before.aliases.get(alias), shown.get(alias))
        for alias in ALIASES
        if before.aliases.get(alias) != shown.get(alias)
    ]
    counted, refused, new = [], [], []
    remembered = _remembered(before, ledger)
    for move in moves:
        why, is_new = remembered.get(move.reason), False
        if why is None:
            why, is_new = _why_not(move, ledger=ledger, versions=versions)
        if why is None:
            counted.append(move)
        else:
            refused.append((move, why))
            new += [move] if is_new else []
    return Judged(_aliases_after(before.aliases, counted, existing=versions.keys()), counted, refused, new)


def remark(move: Move, why: str, *, name: str, before: Decision) -> str:
    """A sentence on a move that does not count, with the command for it."""
    holds = f"the {move.alias} is version {move.decided} still" if move.decided else f"there is no {move.alias}"
    # Before the first decision there is nothing that MLflow could be corrected by.
    back = f"`star registry reconcile --name {name}` corrects MLflow" if before.seq else ""
    if move.shown is None:
        return f"the alias {move.alias} was taken away in MLflow: {holds}; {back}"
    cure = {CHAMPION: "", CHALLENGER: " --to challenger"}.get(move.alias)
    adopt = "" if cure is None else f"`star promote {move.shown}{cure} --name {name}` adopts it"
    cures = ", ".join(part for part in (adopt, back) if part)
    said = f"the alias {move.alias} in MLflow points to version {move.shown}, which {why}: {holds}"
    return f"{said}; {cures}" if cures else said


def verify_version(version: Version, ledger: Ledger) -> tuple[Version, Registration]:
    """Downloads and hashes a version's files, and finds the registration that recorded them.

    A version whose files are known then gets a record, with which later downloads are compared.

    Raises:
        NotKnownError: no registration recorded these files.
        InputError: the files cannot be downloaded.
    """
    known = find_recorded(ledger, version.version) or expected_registration(version, ledger)
    if known:
        try:
            verify_stored_files(with_registration(version, known), create_in_home("models"))
        except OtherFilesError as error:
            raise NotKnownError(str(error)) from error
    else:
        with tempfile.TemporaryDirectory(prefix="star-version-") as scratch:
            files = hash_files(download_unchecked(version, Path(scratch) / "model"))
        known = find_registration(ledger, digest_of(files))
        if known is None:
            raise NotKnownError("has files that no registration recorded")
    # Who only reads cannot write it, and compares the files again next time.
    with suppress(InputError):
        record_content(ledger, version.version, known, reason="its files were compared")
    return with_registration(version, known), known


def expected_registration(version: Version, ledger: Ledger) -> Registration | None:
    """The registration whose LoggedModel a version was registered from, by what MLflow says; its files are not read.

    The LoggedModel must be the one that the registration names: another one can carry the same tags, and other files.
    """
    if not version.source.startswith(LOGGED_MODEL):
        return None
    model_id = version.source.removeprefix("models:/")
    logged = _logged_model(model_id)
    content = logged.tags.get(CONTENT_TAG) if logged else None
    found = find_registration(ledger, content) if content else None
    return found if found and found.logged_model == model_id else None


def _logged_model(model_id: str) -> "LoggedModel | None":
    from mlflow.exceptions import MlflowException

    try:
        return connect().get_logged_model(model_id)
    except MlflowException:  # deleted, or no id that MLflow knows
        return None


def _why_not(move: Move, *, ledger: Ledger, versions: Mapping[int, Version]) -> tuple[str | None, bool]:
    """Why a move does not count, None when it does; and whether that is sure, so that the ledger can say it."""
    if move.shown is None:
        # Nobody becomes champion by it. A version that was deleted cannot be the champion any more.
        gone = move.decided not in versions
        return (None, False) if gone or move.alias == CHALLENGER else ("was taken away", True)
    if move.shown not in versions:
        return "does not exist", False
    version = versions[move.shown]
    # Asked before the files are downloaded, which can be gigabytes.
    expected = find_recorded(ledger, version.version) or expected_registration(version, ledger)
    try:
        if expected and not _may_be_champion(version, expected, ledger=ledger):
            return "has not passed the gate", True
        _, known = verify_version(version, ledger)
        return (None, False) if _may_be_champion(version, known, ledger=ledger) else ("has not passed the gate", True)
    except NotKnownError as error:
        return str(error), True
    except InputError as error:
        return f"cannot be verified now ({error})", False


def _may_be_champion(version: Version, registration: Registration, *, ledger: Ledger) -> bool:
    """Whether it passed the gate, or was made champion before by somebody who can write to the ledger."""
    if registration.gate == PASSED:
        return True
    return any(
        made.attempt
        and made.attempt.action in ("promote", "rollback")
        and made.aliases.get(CHAMPION) == version.version
        for made in ledger.decisions_back_to(1)
    )


def _remembered(before: Decision, ledger: Ledger) -> dict[str, str]:
    """Moves over the newest decision that the ledger says do not count -> why, so that no file is downloaded again."""
    since = before.attempt.at if before.attempt else ""
    names = ledger.store.names(ledger.folder_of("attempts"), after=since)
    return {
        attempt.reason: attempt.refused
        for attempt in ledger.read_notes("attempts", names, Attempt)
        if attempt.action == "adopt" and attempt.refused and attempt.over == before.seq
    }


def _aliases_after(before: Mapping[str, int], counted: Sequence[Move], *, existing: Collection[int]) -> dict[str, int]:
    """The aliases after moves that count. After a new champion, the old one is the previous one if nobody moved that too."""
    after = dict(before)
    moved: dict[str, int | None] = {move.alias: move.shown for move in counted}
    if CHAMPION in moved:
        old, new = before.get(CHAMPION), moved[CHAMPION]
        if new is not None and old in existing:
            moved.setdefault(PREVIOUS, old)
        if new is not None and before.get(CHALLENGER) == new:
            moved.setdefault(CHALLENGER, None)  # a promoted challenger is no longer the challenger
    for alias, number in moved.items():
        if number is None:
            after.pop(alias, None)
        else:
            after[alias] = number
    return after
