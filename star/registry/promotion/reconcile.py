"""Puts right what a kill left: aliases that do not show the last decision, publications that were not finished.

Nothing is decided here. What the ledger says holds; what contradicts it without a reason is reported, not overwritten.
"""

from star.registry.promotion import ledger
from star.registry.promotion.ledger import Attempt, Decision
from star.registry.promotion.ledger_store import records_of
from star.registry.promotion.promote import PROJECTING, adopt_moved_aliases, picture, project
from star.registry.publish import unfinished_publications
from star.registry.versions import find_version, list_versions
from star.tracking.server import connect


def reconcile(name: str) -> tuple[list[str], list[str]]:
    """Completes promotions and publications that were cut short.

    Returns:
        what was put right, and what a person must look at: a sentence each.

    Raises:
        InputError: MLflow does not answer, or has no model of that name.
    """
    versions = {version.version: version for version in list_versions(name)}
    if not versions:
        find_version(name)  # says what is missing
    client = connect()
    records = records_of(name, client)
    done: list[str] = []
    if adopted := adopt_moved_aliases(name, client=client, records=records):
        done.append(f"{adopted.attempt.reason}: in the ledger as decision {adopted.seq}")
    head, before = ledger.head(records, name), picture(name, client)
    attempt = Attempt("repair", None, head.seq, "reconcile")
    project(name, client=client, records=records, attempt=attempt.attempt)
    for writer in before.writers:  # of the promotions that were seen under way, all is shown now
        client.delete_registered_model_tag(name, PROJECTING + writer)
    if before.aliases != picture(name, client).aliases:
        done.append(f"the aliases show decision {head.seq} now: {_shown(head)}")
    done += [f"{model} was not published to its end: removed" for model in unfinished_publications(name, remove=True)]
    wrong = ledger.broken_links(records, name)
    for alias, number in head.aliases.items():
        if number not in versions:
            wrong.append(f"the {alias} of {name}, version {number}, was deleted in MLflow: promote another version")
    return done, wrong


def _shown(head: Decision) -> str:
    return ", ".join(f"{alias} is version {number}" for alias, number in sorted(head.aliases.items())) or "none"
