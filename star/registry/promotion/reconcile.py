"""Completes what a kill left unfinished: aliases that are not the newest decision's, publications without a version.

Decides nothing. The ledger is right; what contradicts it without an explanation is reported for a person to look at.
"""

from star.errors import InputError
from star.registry.promotion.audit import audit
from star.registry.promotion.conditional_writes import require_conditional_writes
from star.registry.promotion.open_ledger import note_head, open_ledger
from star.registry.promotion.promote_and_rollback import (
    WRITER_TAG,
    read_aliases,
    settle_moved_aliases,
    without_version,
    write_aliases,
)
from star.registry.promotion.records import Attempt, Decision
from star.registry.publish import remove_unfinished_publications
from star.registry.versions import find_versions, require_versions
from star.tracking.server import connect


def reconcile(name: str) -> tuple[list[str], list[str]]:
    """Completes promotions and publications that were cut short, and checks the ledger.

    Returns:
        What was repaired, and what a person must look at: one sentence each.

    Raises:
        InputError: MLflow does not answer, or has no model of that name.
    """
    require_versions(name)
    client = connect()
    ledger = open_ledger(name, client)
    done: list[str] = []
    # What follows writes the aliases that the ledger says. In a damaged one nobody can know them.
    if wrong := ledger.all_decisions()[1]:
        return [], wrong
    # Before any alias is written, because writing would overwrite a move by hand.
    known = ledger.newest()
    settled = settle_moved_aliases(name, client=client, ledger=ledger)
    if settled.decision.seq != known.seq and settled.decision.attempt:
        done.append(f"{settled.decision.attempt.reason}: in the ledger as decision {settled.decision.seq}")
    newest, before = ledger.newest(), read_aliases(name, client)
    existing = find_versions(name, newest.aliases.values())
    if gone := [alias for alias, number in newest.aliases.items() if number not in existing]:
        return done, [*audit(ledger), *(without_version(name, alias, decision=newest) for alias in gone)]
    # Before the first decision nobody has said which aliases are right, so none is taken away.
    if newest.seq:
        attempt = Attempt("repair", None, newest.seq, "reconcile")
        write_aliases(name, client=client, ledger=ledger, writer=attempt.attempt)
        note_head(name, newest, registry=ledger.registry, client=client)
    # Whatever these writers had still to write is written now. The tags of killed ones would stay for ever.
    for writer in before.writers:
        client.delete_registered_model_tag(name, WRITER_TAG + writer)
    if before.aliases != read_aliases(name, client).aliases:
        done.append(f"the aliases show decision {newest.seq} now: {_describe_aliases(newest)}")
    done += [f"{model} was not published to its end: removed" for model in remove_unfinished_publications(name)]
    wrong = audit(ledger)
    if not newest.seq:
        # Asked again: while the tag of a killed writer was there, its aliases looked unfinished.
        wrong += settle_moved_aliases(name, client=client, ledger=ledger).remarks
    try:
        require_conditional_writes(ledger.store)
    except InputError as error:  # the chain can be whole although of two winners one was overwritten
        wrong.append(str(error))
    return done, wrong


def _describe_aliases(decision: Decision) -> str:
    return ", ".join(f"{alias} is version {number}" for alias, number in sorted(decision.aliases.items())) or "none"
