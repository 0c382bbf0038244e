"""Checks a whole ledger from its first record on, and says what became of each attempt.

Every other command reads on from the last decision that was found right (ledger.py). An audit reads each record once,
several at a time.
"""

from collections.abc import Iterator, Sequence

from star.registry.promotion.ledger import Ledger, decision_record, typed
from star.registry.promotion.records import Attempt, DamagedRecordError, Decision, parse_record

WON, LOST, REFUSED, CUT_SHORT = "won", "lost", "refused", "cut short"


def read_history(ledger: Ledger) -> tuple[list[tuple[Attempt, str]], list[str]]:
    """Every attempt with its outcome, the oldest first; and as `audit`."""
    decisions, wrong = ledger.all_decisions()
    winners = {made.seq: made.attempt for made in decisions if made.attempt}
    attempts, damaged = _read_attempts(ledger)
    damaged += _wrong_attempts(ledger, attempts, decisions)
    return [(attempt, _outcome(attempt, winners)) for attempt in attempts], wrong + damaged


def audit(ledger: Ledger) -> list[str]:
    """Checks every record from the first one on: a sentence for each that is not right, with what to do."""
    return read_history(ledger)[1]


def _read_attempts(ledger: Ledger) -> tuple[list[Attempt], list[str]]:
    found, wrong = [], []
    for name, text in ledger.texts("attempts", ledger.store.names(ledger.folder_of("attempts"))):
        try:
            attempt = parse_record(text or "", Attempt)
            if name != f"{attempt.at}-{attempt.attempt}":
                raise DamagedRecordError("it was copied to another name")
            found.append(attempt)
        except DamagedRecordError as error:
            wrong.append(
                f"{ledger.where}: attempts/{typed(name)[:80]} is not readable: {error}: {ledger.set_aside(f'attempts/{name}')}"
            )
    return found, wrong


def _wrong_attempts(ledger: Ledger, attempts: Sequence[Attempt], decisions: Sequence[Decision]) -> Iterator[str]:
    by_id = {attempt.attempt: attempt for attempt in attempts}
    for made in decisions:
        if made.attempt and by_id.get(made.attempt.attempt) != made.attempt:
            cure = f"restore {_entry(made.attempt)}; if the decision was forged, {ledger.set_aside(decision_record(made.seq))}"
            yield f"{ledger.where}: the attempt of decision {made.seq} is missing or was changed: {cure}"
    # With a key the first decision that comes will be signed. What it will make wrong is named now.
    next_signed = len(decisions) + 1 if ledger.keys else None
    signed_from = next((made.seq for made in decisions if made.signature), next_signed)
    for attempt in attempts:
        bad = ledger.wrong_signature(attempt)
        unsigned = not attempt.signature and signed_from is not None and attempt.over >= signed_from - 1
        if bad or unsigned:
            said = bad or "is not signed"
            yield f"{ledger.where}: {_entry(attempt)} {said}: {ledger.set_aside(_entry(attempt))}"


def _entry(attempt: Attempt) -> str:
    return f"attempts/{attempt.at}-{attempt.attempt}"


def _outcome(attempt: Attempt, winners: dict[int, Attempt]) -> str:
    """The outcome of an attempt; `winners` holds the attempt that each decision names."""
    if attempt.refused:
        return REFUSED
    winner = winners.get(attempt.over + 1)
    # Until somebody makes that decision, a killed attempt and one that is still under way look the same.
    if winner is None:
        return CUT_SHORT
    return WON if winner.attempt == attempt.attempt else LOST
