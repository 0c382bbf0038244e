"""Reads and writes the ledger of promotions: who wanted which version promoted, when and why, and which attempt won.

Entries are only ever added. There are two kinds:

- An attempt says what somebody wants. It is written first, before anything else is done about it.
- A decision makes one attempt valid and holds all aliases from then on. Decision n is the entry `decisions/<n>`, which
  can be created once: of all attempts made over decision n - 1 exactly one becomes decision n.

Example: versions 1, 2 and 3 are registered. Version 1 is promoted, then versions 2 and 3 at the same time, then there
is a rollback:

    attempt      version  over  outcome        decision  aliases                                 parent
    promote      1        0     won            1         champion 1                              digest of decision 0
    promote      2        1     lost           -
    promote      3        1     won            2         champion 3, previous-champion 1         digest of decision 1
    rollback     1        2     won            3         champion 1, previous-champion 3         digest of decision 2

The outcome is not stored. It follows from which attempt decision `over + 1` names, so a kill cannot leave a wrong one:
an attempt whose process was killed before its decision is "cut short" while nobody else has made that decision, and
"lost" from then on. `parent` chains the decisions, so that a changed or removed one is noticed (`broken_links`).
"""

import getpass
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from star.hashing import digest_of
from star.registry.promotion.ledger_store import LedgerStore

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous-champion"
ALIASES = (PREVIOUS, CHALLENGER, CHAMPION)  # in the order they are written: the champion changes last
WON, LOST, REFUSED, CUT_SHORT = "won", "lost", "refused", "cut short"


# The fields of both classes are the keys of the stored JSON, and digests are computed over them. A field that is added,
# renamed or moved breaks the chain of every ledger that exists.


@dataclass(frozen=True)
class Attempt:
    """Somebody's wish to change the aliases as decision `over` left them."""

    action: str  # promote, rollback, adopt (aliases moved in MLflow), repair
    version: int | None
    over: int
    reason: str
    refused: str = ""  # why it was not even tried, such as the gate's failed checks
    actor: str = field(default_factory=lambda: actor())
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="microseconds"))
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)  # id


@dataclass(frozen=True)
class Decision:
    """The aliases from decision number `seq` on, and the attempt that won. Number 0 stands for: no decision yet."""

    seq: int = 0
    aliases: dict[str, int] = field(default_factory=dict)
    attempt: Attempt | None = None  # None only in number 0, which is not stored
    parent: str = ""  # digest of the decision before

    @property
    def digest(self) -> str:
        """Digest over all fields. The next decision's `parent` is this value."""
        return digest_of(asdict(self))


def newest_decision(store: LedgerStore, name: str) -> Decision:
    """The newest decision about a model; number 0 when there is none."""
    return _parse_decision(store.read_last(_decisions_folder(name)))


def read_decision(store: LedgerStore, name: str, seq: int) -> Decision:
    """The decision of that number, or number 0 when there is none."""
    return _parse_decision(store.read(_decisions_folder(name), _entry_name(seq)))


def list_decisions(store: LedgerStore, name: str) -> list[Decision]:
    """All decisions, the oldest first."""
    return [_parse_decision(text) for text in store.read_all(_decisions_folder(name))]


def write_attempt(store: LedgerStore, name: str, attempt: Attempt) -> None:
    """Adds an attempt to the ledger, before anything else is done about it."""
    # Names sort by time, because `at` has the same width always.
    store.create(
        _attempts_folder(name), f"{attempt.at}-{attempt.attempt}", json.dumps(asdict(attempt), ensure_ascii=False)
    )


def write_decision(
    store: LedgerStore, name: str, attempt: Attempt, *, over: Decision, aliases: dict[str, int]
) -> Decision | None:
    """Makes the attempt the decision after `over`, with these aliases; returns None when another attempt became it."""
    made = Decision(over.seq + 1, aliases, attempt, over.digest)
    if store.create(_decisions_folder(name), _entry_name(made.seq), json.dumps(asdict(made), ensure_ascii=False)):
        return made
    # A client library that retries after a lost answer finds the entry that it wrote itself.
    return made if read_decision(store, name, made.seq) == made else None


def history(store: LedgerStore, name: str) -> list[tuple[Attempt, str]]:
    """Every attempt with its outcome, the oldest first."""
    winners = {made.seq: made.attempt.attempt for made in list_decisions(store, name) if made.attempt}
    attempts = [Attempt(**json.loads(text)) for text in store.read_all(_attempts_folder(name))]
    return [(attempt, _outcome(attempt, winners)) for attempt in attempts]


def broken_links(store: LedgerStore, name: str) -> list[str]:
    """Checks the chain of decisions: a sentence for every decision that does not follow from the one before."""
    before, wrong = Decision(), []
    for made in list_decisions(store, name):
        # After a gap `parent` cannot match either. One sentence per break is enough.
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
    """The outcome of an attempt; `winners` holds the id of the attempt that each decision names."""
    if attempt.refused:
        return REFUSED
    winner = winners.get(attempt.over + 1)
    # Until somebody makes that decision, a killed attempt and one that is still under way look the same.
    if winner is None:
        return CUT_SHORT
    return WON if winner == attempt.attempt else LOST


def _parse_decision(text: str | None) -> Decision:
    if text is None:
        return Decision()
    content = json.loads(text)
    return Decision(**{**content, "attempt": Attempt(**content["attempt"])})


def _decisions_folder(name: str) -> str:
    return f"{name}/decisions"


def _attempts_folder(name: str) -> str:
    return f"{name}/attempts"


def _entry_name(seq: int) -> str:
    return f"{seq:08d}"  # names sort as the numbers do
