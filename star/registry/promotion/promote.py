"""Who is the champion: promotions, the way back, and MLflow's aliases as their picture.

A promotion is decided by one conditional write to the ledger (ledger.py). The aliases `champion`, `challenger` and
`previous-champion` are written afterwards; a kill in between leaves the old picture, which `star registry reconcile` or the
next promotion completes. An alias that somebody moved in MLflow is taken into the ledger before anything is done over it.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from star.errors import InputError
from star.registry.promotion import ledger
from star.registry.promotion.ledger import ALIASES, CHALLENGER, CHAMPION, PREVIOUS, Attempt, Decision
from star.registry.promotion.ledger_store import Records, records_of
from star.registry.versions import Version, find_version, list_versions
from star.tracking.server import connect, insist

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PROJECTED, PROJECTING = "star.projected", "star.projecting."  # tags: the decision that the aliases show; who is at it


class Overtaken(RuntimeError):
    """Another attempt was decided first. Nothing was changed."""


@dataclass(frozen=True)
class Picture:
    """What MLflow shows of a registered model at one moment."""

    aliases: dict[str, int]
    projected: int  # the last decision that was shown completely
    writers: tuple[str, ...]  # attempts that are writing aliases, or were killed while they did


def champion(name: str) -> Version | None:
    """The version of `name` that was decided to be the champion, if any."""
    if not list_versions(name):
        return None
    number = standing(name).aliases.get(CHAMPION)
    return find_version(name, version=number) if number else None


def standing(name: str) -> Decision:
    """The newest decision, after an alias that was moved in MLflow has been taken into the ledger.

    Raises:
        InputError: MLflow does not answer, or has no model of that name.
    """
    client = connect()
    records = records_of(name, client)
    return adopt_moved_aliases(name, client=client, records=records) or ledger.head(records, name)


def promote(
    name: str, version: int, *, to: str = CHAMPION, reason: str = "", over: int | None = None, action: str = "promote"
) -> Version:
    """Makes a version the champion (the old one is `previous-champion` then) or the challenger.

    Args:
        over: the number of the decision that this one was weighed against; the newest one when not given.

    Raises:
        InputError: there is no such version.
        Overtaken: somebody else's attempt was decided first.
    """
    client = connect()
    candidate = find_version(name, version=version)
    records = records_of(name, client)
    before = adopt_moved_aliases(name, client=client, records=records) or ledger.head(records, name)
    aliases = _aliases_after(before.aliases, version, to=to, name=name)
    if aliases == before.aliases and over in (None, before.seq):
        project(name, client=client, records=records, attempt="again")
        return find_version(name, version=version)
    attempt = Attempt(action, version, before.seq if over is None else over, reason)
    ledger.write_attempt(records, name, attempt)
    made = None
    if attempt.over == before.seq:
        made = ledger.decide(records, name, attempt, over=before, aliases=aliases)
    if made is None:
        now = ledger.head(records, name)
        raise Overtaken(
            f"{candidate} was not promoted: {_said(now)} came first; look at it with `star models`, then promote again"
        )
    project(name, client=client, records=records, attempt=attempt.attempt)
    return find_version(name, version=version)


def rollback(name: str, *, reason: str = "") -> Version:
    """Makes `previous-champion` the champion again; the one that steps down is the previous one then: a second rollback undoes it.

    Raises:
        InputError: there is no previous champion.
        Overtaken: somebody else's attempt was decided first.
    """
    if not list_versions(name):
        find_version(name)  # says what is missing
    before = standing(name)
    if PREVIOUS not in before.aliases:
        raise InputError(f"{name} has no {PREVIOUS} to go back to: `star promote` a version")
    return promote(name, before.aliases[PREVIOUS], reason=reason, over=before.seq, action="rollback")


def refuse(name: str, version: int, *, over: int, why: str) -> None:
    """Writes into the ledger that a version was not promoted, and why."""
    records = records_of(name, connect())
    ledger.write_attempt(records, name, Attempt("promote", version, over, "", refused=why))


def delete_version(name: str, version: int) -> None:
    """Deletes a version that nobody uses.

    Raises:
        InputError: there is no such version, or it bears an alias.
    """
    client = connect()
    found = find_version(name, version=version)
    borne = {alias for alias, number in standing(name).aliases.items() if number == version} | set(found.aliases)
    if borne:
        raise InputError(f"{found} is the {' and '.join(sorted(borne))}: promote another version before you delete it")
    client.delete_model_version(name, str(version))


def adopt_moved_aliases(name: str, *, client: "MlflowClient", records: Records) -> Decision | None:
    """Takes aliases that somebody moved in MLflow into the ledger as a decision; None when they are as decided.

    Aliases that differ because a promotion is under way, or was killed, are not somebody's move: `project` completes them.
    """
    before = ledger.head(records, name)
    seen = picture(name, client)
    if not _moved(seen, before):
        return None
    # Only what two looks in a row show, with no decision between them, is not a promotion that is just under way.
    if ledger.head(records, name).seq != before.seq or picture(name, client) != seen:
        return None
    if ledger.head(records, name).seq != before.seq:
        return None
    reason = f"moved in MLflow: {_difference(before.aliases, seen.aliases)}"
    attempt = Attempt("adopt", seen.aliases.get(CHAMPION), before.seq, reason)
    ledger.write_attempt(records, name, attempt)
    made = ledger.decide(records, name, attempt, over=before, aliases=seen.aliases)
    if made is None:
        return None
    log.warning("the aliases of %s were %s: taken into the ledger as decision %s", name, reason, made.seq)
    project(name, client=client, records=records, attempt=attempt.attempt)
    return made


def project(name: str, *, client: "MlflowClient", records: Records, attempt: str) -> None:
    """Writes the newest decision's aliases to MLflow, until no newer decision was made meanwhile."""
    head = ledger.head(records, name)
    if picture(name, client) == Picture(head.aliases, head.seq, ()):
        return
    client.set_registered_model_tag(name, PROJECTING + attempt, str(head.seq))
    while True:
        seen = picture(name, client)
        _note_strangers(name, seen, head, records=records)
        for alias in ALIASES:
            if head.aliases.get(alias) != seen.aliases.get(alias):
                _write_alias(client, name, alias, head.aliases.get(alias))
        shown = str(head.seq)
        insist(lambda: client.set_registered_model_tag(name, PROJECTED, shown))  # noqa: B023  called here
        # Whoever writes last looks once more: a decision made meanwhile is shown, not the one it replaced.
        newest = ledger.head(records, name)
        if newest.seq == head.seq:
            break
        head = newest
    client.delete_registered_model_tag(name, PROJECTING + attempt)


def picture(name: str, client: "MlflowClient") -> Picture:
    """What MLflow shows now."""
    model = client.get_registered_model(name)
    return Picture(
        {alias: int(number) for alias, number in model.aliases.items() if alias in ALIASES},
        int(model.tags.get(PROJECTED, 0)),
        tuple(sorted(key.removeprefix(PROJECTING) for key in model.tags if key.startswith(PROJECTING))),
    )


def _moved(seen: Picture, decided: Decision) -> bool:
    return seen.aliases != decided.aliases and seen.projected == decided.seq and not seen.writers


def _note_strangers(name: str, seen: Picture, head: Decision, *, records: Records) -> None:
    """An alias on a version that no decision since the last complete picture put it on was moved by hand: that is written down."""
    since = [ledger.decision(records, name, seq).aliases for seq in range(seen.projected, head.seq + 1)]
    for alias, number in seen.aliases.items():
        if all(aliases.get(alias) != number for aliases in since):
            reason = (
                f"{alias} was moved in MLflow to {number} during a promotion, and is {head.aliases.get(alias)} again"
            )
            log.warning("%s: %s", name, reason)
            ledger.write_attempt(records, name, Attempt("repair", number, head.seq, reason, refused=reason))


def _aliases_after(aliases: dict[str, int], version: int, *, to: str, name: str) -> dict[str, int]:
    old = aliases.get(CHAMPION)
    if to == CHALLENGER:
        if version == old:
            raise InputError(f"{name} version {version} is the champion: a challenger is another version")
        return {**aliases, CHALLENGER: version}
    if to != CHAMPION:
        raise InputError(f"a version can be promoted to {CHAMPION} or {CHALLENGER}, not to {to!r}")
    if version == old:
        return aliases
    kept = {alias: number for alias, number in aliases.items() if (alias, number) != (CHALLENGER, version)}
    return {**kept, CHAMPION: version, **({PREVIOUS: old} if old else {})}


def _write_alias(client: "MlflowClient", name: str, alias: str, version: int | None) -> None:
    if version is None:
        insist(lambda: client.delete_registered_model_alias(name, alias))
    else:
        insist(lambda: client.set_registered_model_alias(name, alias, str(version)))


def _said(made: Decision) -> str:
    if made.attempt is None:
        return "nothing"
    return f"{made.attempt.action} of version {made.attempt.version} by {made.attempt.actor} (decision {made.seq})"


def _difference(before: dict[str, int], after: dict[str, int]) -> str:
    changed = sorted(alias for alias in before.keys() | after.keys() if before.get(alias) != after.get(alias))
    return ", ".join(f"{alias} from {before.get(alias, 'none')} to {after.get(alias, 'none')}" for alias in changed)
