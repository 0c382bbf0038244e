"""Promotes versions and rolls back. The ledger decides; MLflow's aliases are a projection of its newest decision.

Example: versions 1, 2 and 3 of the model `star` are registered.

    command                    newest decision in the ledger        champion   previous-champion   (MLflow's aliases)
    -                          0: none                              -          -
    star promote 1             1: promote of version 1              1          -
    star promote 3             2: promote of version 3              3          1
    star rollback              3: rollback of version 1             1          3

A promotion has two steps. First one conditional write makes it the next decision (ledger.py); of several promotions at
the same time one wins, and the others raise `Overtaken`. Then the aliases are written. A kill between the two steps
leaves the older aliases (after `star promote 3`: champion 1, though the ledger says 3); `star registry reconcile` or
the next promotion completes them.

Aliases can also be moved by hand in MLflow's pages. `settle_moved_aliases` makes such a move a decision of its own where
it counts (moved_aliases.py), and an attempt that was refused where it does not, so that it is in the ledger before
anything is decided over it. Two kinds of tags on the registered model tell a move by
hand from a projection that is under way: the number of the last decision whose aliases were written completely, and one
tag per writer at work.
"""

import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from star.errors import InputError
from star.registry.promotion.conditional_writes import require_conditional_writes
from star.registry.promotion.ledger import DamagedLedgerError, Ledger
from star.registry.promotion.moved_aliases import Judged, judge_moves, remark
from star.registry.promotion.open_ledger import find_ledger, note_head, open_ledger, reaches_ledgers
from star.registry.promotion.records import ALIASES, CHALLENGER, CHAMPION, PREVIOUS, Attempt, Decision
from star.registry.promotion.registry_id import WRITTEN_TAG
from star.registry.versions import Version, find_version, find_versions, has_versions, require_versions
from star.tracking.server import connect, retry_write

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

WRITER_TAG = "star.projecting."  # and an attempt's id: a process that is writing aliases


class Overtaken(RuntimeError):
    """Another attempt was decided first. Nothing was changed."""


@dataclass(frozen=True)
class MlflowAliases:
    """The aliases that MLflow shows of a registered model at one moment."""

    aliases: dict[str, int]
    written: int  # number of the last decision whose aliases were written completely
    writers: tuple[str, ...]  # attempts that are writing aliases, or were killed while they did


@dataclass(frozen=True)
class Holding:
    """The aliases that hold, whatever MLflow shows."""

    decision: Decision  # the newest one
    aliases: dict[str, int]  # the decision's; where the ledger cannot be written from here, with the moves that count
    remarks: list[str]  # on what MLflow shows and does not hold


def holding_aliases(name: str) -> Holding | None:
    """The aliases of a model that hold, to be read. None where no ledger is within reach: MLflow's are all there is.

    Raises:
        InputError: MLflow does not answer, or nobody can know, because the ledger is damaged.
    """
    client = connect()
    if ledger := find_ledger(name, client):
        return settle_moved_aliases(name, client=client, ledger=ledger, must_write=False)
    if not reaches_ledgers(name, client):
        return None
    # Also a model that somebody made anew or renamed: the ledger under its name is of another one.
    shown = read_aliases(name, client).aliases
    said = f"this model of the name {name} has no ledger here, so its aliases in MLflow make no champion"
    return Holding(Decision(), {}, [f"{said}: `star promote N --name {name}` does"] if shown else [])


def champion(name: str) -> Version | None:
    """The version of `name` that is the champion by the ledger, if any."""
    if not has_versions(name):
        return None
    number = current_decision(name).aliases.get(CHAMPION)
    return find_version(name, version=number) if number else None


def current_decision(name: str) -> Decision:
    """The newest decision, after aliases that were moved in MLflow have been settled.

    Raises:
        InputError: MLflow does not answer, or has no model of that name.
    """
    client = connect()
    ledger = open_ledger(name, client)
    return settle_moved_aliases(name, client=client, ledger=ledger).decision


def promote(
    name: str, version: int, *, to: str = CHAMPION, reason: str = "", over: int | None = None, action: str = "promote"
) -> Version:
    """Makes a version the champion (the old one becomes `previous-champion`) or the challenger.

    Args:
        to: `champion` or `challenger`.
        reason: why, for the ledger.
        over: number of the decision that the caller has seen and wants to replace; the newest one when None.
        action: what the ledger calls it.

    Raises:
        InputError: there is no such version, or it cannot be promoted to that alias.
        Overtaken: another attempt was decided first.
    """
    client = connect()
    candidate = find_version(name, version=version)
    ledger = open_ledger(name, client)
    before = settle_moved_aliases(name, client=client, ledger=ledger).decision
    existing = find_versions(name, before.aliases.values())  # MLflow's pages also delete versions with an alias
    kept = {alias: number for alias, number in before.aliases.items() if number in existing}
    aliases = _aliases_after(kept, version, to=to, name=name)
    if aliases == before.aliases and over in (None, before.seq):
        # Nothing to decide, but a killed promotion may have left older aliases.
        write_aliases(name, client=client, ledger=ledger, writer="again")
        return find_version(name, version=version)
    attempt = Attempt(action, version, before.seq if over is None else over, reason)
    require_conditional_writes(ledger.store)
    # The attempt is written before the decision, so that a kill between the two shows up as "cut short" in the ledger.
    attempt = ledger.write_attempt(attempt)
    # An attempt over an older decision has lost already. It is in the ledger, and nothing else is written.
    made = None
    if attempt.over == before.seq:
        made = ledger.write_decision(attempt, over=before, aliases=aliases)
    if made is None:
        first = _describe(ledger.newest())
        raise Overtaken(
            f"{candidate} was not promoted: {first} came first; look at it with `star models`, then promote again"
        )
    write_aliases(name, client=client, ledger=ledger, writer=attempt.attempt)
    return find_version(name, version=version)


def rollback(name: str, *, reason: str = "") -> Version:
    """Makes `previous-champion` the champion again. The two change places, so a second rollback undoes the first.

    Raises:
        InputError: there is no previous champion.
        Overtaken: another attempt was decided first.
    """
    require_versions(name)
    before = current_decision(name)
    if PREVIOUS not in before.aliases:
        raise InputError(f"{name} has no {PREVIOUS} to go back to: `star promote` a version")
    # With `over`, because after a promotion in between the alias names another version than the one read here.
    return promote(name, before.aliases[PREVIOUS], reason=reason, over=before.seq, action="rollback")


def record_refusal(name: str, version: int, *, over: int, why: str) -> None:
    """Writes into the ledger that a version was not promoted over decision `over`, and why."""
    ledger = open_ledger(name, connect())
    ledger.write_attempt(Attempt("promote", version, over, "", refused=why))


def delete_version(name: str, version: int) -> None:
    """Deletes a version that has no alias.

    Raises:
        InputError: there is no such version, or it has an alias.
    """
    client = connect()
    found = find_version(name, version=version)
    # MLflow drops the aliases of a deleted version without an error, so the ledger and MLflow are both asked before.
    aliases = {alias for alias, number in current_decision(name).aliases.items() if number == version}
    aliases |= set(found.aliases)
    if aliases:
        raise InputError(
            f"{found} is the {' and '.join(sorted(aliases))}: promote another version before you delete it"
        )
    client.delete_model_version(name, str(version))


def settle_moved_aliases(name: str, *, client: "MlflowClient", ledger: Ledger, must_write: bool = True) -> Holding:
    """Makes aliases that somebody moved in MLflow a decision where they count, and writes down where they do not.

    Aliases that differ because a promotion is under way or was killed were not moved by hand: `write_aliases` completes
    them.

    Args:
        must_write: whether it is an error that the ledger cannot be written from here. Who only reads may not.
    """
    from mlflow.exceptions import MlflowException

    before = ledger.newest()
    if ledger.is_far_from_head:
        with suppress(MlflowException):  # who only reads checks the same again next time
            note_head(name, before, registry=ledger.registry, client=client)
    seen = read_aliases(name, client)
    if seen.aliases == before.aliases:
        return Holding(before, before.aliases, [])
    if not _moved_by_hand(seen, before):
        said = f"MLflow does not show decision {before.seq} completely: `star registry reconcile --name {name}` corrects it"
        return Holding(before, before.aliases, [said])
    versions = find_versions(name, {*seen.aliases.values(), *before.aliases.values()})
    judged = judge_moves(seen.aliases, before, ledger=ledger, versions=versions)
    remarks = [remark(move, why, name=name, before=before) for move, why in judged.refused]
    try:
        made = _write_moves(name, seen, before, judged, client=client, ledger=ledger)
    except (InputError, MlflowException, OSError) as error:
        if must_write or isinstance(error, DamagedLedgerError):
            raise
        logger.info("the ledger of %s is only read: %s", name, error)
        return Holding(before, judged.aliases, remarks)
    newest = made or ledger.newest()
    return Holding(newest, newest.aliases, remarks)


def _write_moves(
    name: str, seen: MlflowAliases, before: Decision, judged: Judged, *, client: "MlflowClient", ledger: Ledger
) -> Decision | None:
    """Writes into the ledger what was judged; returns the decision, None where nothing counts or somebody was faster."""
    if not (judged.counted or judged.new):
        return None
    # A promotion that starts now would look the same. So the aliases must be the same at a second look, and there must be
    # no new decision before it or after it.
    if ledger.newest().seq != before.seq or read_aliases(name, client) != seen:
        return None
    if ledger.newest().seq != before.seq:
        return None
    require_conditional_writes(ledger.store)
    for move in judged.new:
        why = dict(judged.refused)[move]
        logger.warning("%s", remark(move, why, name=name, before=before))
        ledger.write_attempt(Attempt("adopt", move.shown, before.seq, move.reason, refused=why))
    if not judged.counted:
        return None
    reason = f"moved in MLflow: {', '.join(str(move) for move in judged.counted)}"
    attempt = Attempt("adopt", judged.aliases.get(CHAMPION), before.seq, reason)
    attempt = ledger.write_attempt(attempt)
    made = ledger.write_decision(attempt, over=before, aliases=judged.aliases)
    if made is None:
        return None
    logger.warning("the aliases of %s were %s: taken into the ledger as decision %s", name, reason, made.seq)
    # Most are right already. This records the decision's number as written; else it would look unfinished.
    write_aliases(name, client=client, ledger=ledger, writer=attempt.attempt)
    return made


def write_aliases(name: str, *, client: "MlflowClient", ledger: Ledger, writer: str) -> None:
    """Writes the newest decision's aliases to MLflow, again if a newer decision was made meanwhile.

    Args:
        writer: id of the attempt, for the tag that says that aliases are being written.
    """
    decision = ledger.newest()
    if read_aliases(name, client) == MlflowAliases(decision.aliases, decision.seq, ()):
        return
    # Set before the first alias changes: while a writer is at work, nobody takes differing aliases for a move by hand.
    client.set_registered_model_tag(name, WRITER_TAG + writer, str(decision.seq))
    while True:
        seen = read_aliases(name, client)
        # Before anything shows the decision: from here on it cannot be taken out of the ledger unseen.
        note_head(name, decision, registry=ledger.registry, client=client)
        _record_overwritten_moves(name, seen, decision, ledger=ledger)
        for alias in ALIASES:
            if decision.aliases.get(alias) != seen.aliases.get(alias):
                _write_alias(client, name, alias, decision=decision)
        # Written after all aliases, so that a projection cut short by a kill never looks complete.
        written = str(decision.seq)
        retry_write(lambda: client.set_registered_model_tag(name, WRITTEN_TAG, written))  # noqa: B023  called here
        # The last of several writers must not leave the aliases of an older decision, so each reads the ledger again.
        newest = ledger.newest()
        if newest.seq == decision.seq:
            break
        decision = newest
    # A kill before this line leaves the tag. Until `reconcile` removes it, no move by hand is adopted.
    client.delete_registered_model_tag(name, WRITER_TAG + writer)


def read_aliases(name: str, client: "MlflowClient") -> MlflowAliases:
    """The aliases that MLflow shows now."""
    model = client.get_registered_model(name)
    return MlflowAliases(
        # Users may have aliases of other names, which the ledger does not decide.
        {alias: int(number) for alias, number in model.aliases.items() if alias in ALIASES},
        int(written) if re.fullmatch(r"[0-9]{1,8}", written := model.tags.get(WRITTEN_TAG, "0")) else 0,
        tuple(sorted(key.removeprefix(WRITER_TAG) for key in model.tags if key.startswith(WRITER_TAG))),
    )


def _moved_by_hand(seen: MlflowAliases, newest: Decision) -> bool:
    """Whether the aliases differ from the newest decision, though they were written completely and nobody writes them."""
    # Before the first decision there is nothing to write: a number is that of one which is no longer in the ledger.
    is_written = not newest.seq or seen.written == newest.seq
    return seen.aliases != newest.aliases and is_written and not seen.writers


def _record_overwritten_moves(name: str, seen: MlflowAliases, newest: Decision, *, ledger: Ledger) -> None:
    """Writes into the ledger which aliases somebody moved by hand during a promotion, before they are overwritten.

    Such an alias is on a version that no decision has put it on since the aliases were last written completely.
    """
    moved = dict(seen.aliases)
    for made in ledger.decisions_back_to(seen.written):
        moved = {alias: number for alias, number in moved.items() if made.aliases.get(alias) != number}
        if not moved:
            return
    for alias, number in moved.items():
        reason = f"{alias} was moved in MLflow to {number}, and is {newest.aliases.get(alias, 'none')} again"
        logger.warning("%s: %s", name, reason)
        ledger.write_attempt(Attempt("repair", number, newest.seq, reason, refused=reason))


def _aliases_after(aliases: dict[str, int], version: int, *, to: str, name: str) -> dict[str, int]:
    """The aliases after a version is promoted, from the aliases before."""
    old = aliases.get(CHAMPION)
    if to == CHALLENGER:
        if version == old:
            raise InputError(f"{name} version {version} is the champion: a challenger is another version")
        return {**aliases, CHALLENGER: version}
    if to != CHAMPION:
        raise InputError(f"a version can be promoted to {CHAMPION} or {CHALLENGER}, not to {to!r}")
    if version == old:
        return aliases
    # A promoted challenger is no longer the challenger.
    kept = {alias: number for alias, number in aliases.items() if (alias, number) != (CHALLENGER, version)}
    return {**kept, CHAMPION: version, **({PREVIOUS: old} if old else {})}


def _write_alias(client: "MlflowClient", name: str, alias: str, *, decision: Decision) -> None:
    from mlflow.exceptions import MlflowException

    version = decision.aliases.get(alias)
    if version is None:
        retry_write(lambda: client.delete_registered_model_alias(name, alias))
        return
    try:
        retry_write(lambda: client.set_registered_model_alias(name, alias, str(version)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(without_version(name, alias, decision=decision)) from error


def without_version(name: str, alias: str, *, decision: Decision) -> str:
    """What to do about an alias of the newest decision on a version that MLflow does not have."""
    return (
        f"the {alias} of {name}, version {decision.aliases[alias]} by decision {decision.seq}, is not in MLflow: if it was deleted, "
        f"promote another version; if you do not know the decision, look at it with `star registry ledger --name {name}`"
    )


def _describe(decision: Decision) -> str:
    attempt = decision.attempt
    if attempt is None:
        return "nothing"
    return f"{attempt.action} of version {attempt.version} by {attempt.actor} (decision {decision.seq})"
