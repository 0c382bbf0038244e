"""The ledger: who promoted what, when and why, and which attempt won. It is only ever added to.

Decision number n is the record `decisions/n`, which can be made once: of all attempts that were made over decision n - 1
exactly one becomes it. It holds the aliases as they are from then on. Every attempt writes its own record first, so an
outcome need not be written down: it follows from which attempt the next decision names, even after a kill.
"""

import getpass
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from star.hashing import digest_of
from star.registry.promotion.ledger_store import Records

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous-champion"
ALIASES = (PREVIOUS, CHALLENGER, CHAMPION)  # in the order they are written: the champion changes last
WON, LOST, REFUSED, CUT_SHORT = "won", "lost", "refused", "cut short"


@dataclass(frozen=True)
class Attempt:
    """Somebody's wish to change the aliases as decision `over` left them."""

    action: str  # promote, rollback, adopt, repair
    version: int | None
    over: int
    reason: str
    refused: str = ""  # why it was not even tried: the gate's verdict
    actor: str = field(default_factory=lambda: actor())
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Decision:
    """The aliases from decision `seq` on, and whose attempt it was. Number 0 stands for: none yet."""

    seq: int = 0
    aliases: dict[str, int] = field(default_factory=dict)
    attempt: Attempt | None = None
    parent: str = ""  # digest of the decision before: a record that was changed or taken out is noticed

    @property
    def digest(self) -> str:
        return digest_of(asdict(self))


def head(records: Records, name: str) -> Decision:
    """The newest decision about a model."""
    return _decision(records.last(_decisions(name)))


def decision(records: Records, name: str, seq: int) -> Decision:
    """The decision of that number, or number 0 when there is none."""
    return _decision(records.read(_decisions(name), _number(seq)))


def write_attempt(records: Records, name: str, attempt: Attempt) -> None:
    """Adds an attempt to the ledger, before anything else is done about it."""
    records.create(_attempts(name), f"{attempt.at}-{attempt.attempt}", json.dumps(asdict(attempt), ensure_ascii=False))


def decide(
    records: Records, name: str, attempt: Attempt, *, over: Decision, aliases: dict[str, int]
) -> Decision | None:
    """Makes the attempt the decision after `over`; None when another attempt became it."""
    made = Decision(over.seq + 1, aliases, attempt, over.digest)
    if records.create(_decisions(name), _number(made.seq), json.dumps(asdict(made), ensure_ascii=False)):
        return made
    # A retry after a lost answer finds its own record.
    return made if decision(records, name, made.seq) == made else None


def history(records: Records, name: str) -> list[tuple[Attempt, str]]:
    """Every attempt with its outcome, the oldest first."""
    winners = {made.seq: made.attempt.attempt for made in decisions(records, name)}
    attempts = [Attempt(**json.loads(text)) for text in records.all(_attempts(name))]
    return [(attempt, _outcome(attempt, winners)) for attempt in attempts]


def decisions(records: Records, name: str) -> list[Decision]:
    """All decisions, the oldest first."""
    return [_decision(text) for text in records.all(_decisions(name))]


def broken_links(records: Records, name: str) -> list[str]:
    """What is wrong with the chain of decisions: a sentence for every one that does not follow from the one before."""
    before, wrong = Decision(), []
    for made in decisions(records, name):
        if made.seq != before.seq + 1:
            wrong.append(f"decision {before.seq + 1} about {name} is missing from the ledger")
        elif made.parent != before.digest:
            wrong.append(f"decision {before.seq} about {name} was changed after it was made")
        before = made
    return wrong


def actor() -> str:
    """Who acts: user and machine, and the Kubeflow run where there is one."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    run = os.environ.get("KFP_RUN_ID")
    return f"{user}@{socket.gethostname()}" + (f" (KFP run {run})" if run else "")


def _outcome(attempt: Attempt, winners: dict[int, str]) -> str:
    if attempt.refused:
        return REFUSED
    winner = winners.get(attempt.over + 1)
    return CUT_SHORT if winner is None else WON if winner == attempt.attempt else LOST


def _decision(text: str | None) -> Decision:
    if text is None:
        return Decision()
    content = json.loads(text)
    return Decision(**{**content, "attempt": Attempt(**content["attempt"])})


def _decisions(name: str) -> str:
    return f"{name}/decisions"


def _attempts(name: str) -> str:
    return f"{name}/attempts"


def _number(seq: int) -> str:
    return f"{seq:08d}"
