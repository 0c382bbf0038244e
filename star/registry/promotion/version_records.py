"""Keeps what STAR itself knows of versions, where whoever reaches MLflow cannot write: beside the ledger's chain.

MLflow's tags say which files a version has, its scores, and whether it passed the gate. They are claims of whoever can
write to MLflow. Two kinds of records say the same of what STAR has verified:

    registrations/<content>-<time>    files with their hashes, scores, the gate's verdict; the newest of a content holds
    versions/00000003                 version 3 has these files: they were downloaded and hashed

Example: the stage `register` writes a registration and version 1's record. Somebody registers version 2 in MLflow's pages
from the same run's logged model. Its files are downloaded once, their content is that of the registration, so version 2
gets a record too, and is known with its scores. Every later download of either version is compared with the registration.

Where the ledger is signed these records are too, and others are left out.
"""

from dataclasses import replace

from star.registry.promotion.ledger import Ledger, entry_name
from star.registry.promotion.records import Registration, VersionContent, now
from star.registry.versions import Version

REGISTRATIONS, VERSIONS = "registrations", "versions"  # folders in the store
PASSED = "passed"  # what a registration says of the gate


def write_registration(ledger: Ledger, registration: Registration) -> Registration:
    """Adds a registration; from then on it is what is known of these files."""
    while True:
        if written := ledger.write_note(REGISTRATIONS, f"{registration.content}-{registration.at}", registration):
            return written
        registration = replace(registration, at=now())  # somebody wrote one in the same microsecond


def record_content(ledger: Ledger, version: int, registration: Registration, *, reason: str) -> None:
    """Says that a version has these files, if nothing was said of it yet. They must have been verified."""
    made = VersionContent(version, registration.content, registration.model_digest, reason)
    ledger.write_note(VERSIONS, entry_name(version), made)


def find_registration(ledger: Ledger, content: str, *, model_digest: str | None = None) -> Registration | None:
    """The newest registration of a content, with the gate's last verdict; None when STAR never registered it."""
    # `.` sorts right behind `-`.
    names = ledger.store.names(ledger.folder_of(REGISTRATIONS), after=f"{content}-", until=f"{content}.")
    found = [
        entry
        for entry in ledger.read_notes(REGISTRATIONS, names, Registration)
        # Under another content's name a registration would vouch for files that it does not hold.
        if entry.content == content and model_digest in (None, entry.model_digest)
    ]
    if not found:
        return None
    newest = max(found, key=lambda entry: entry.at)
    verdict = max((entry for entry in found if entry.gate), key=lambda entry: entry.at, default=newest)
    return replace(newest, gate=verdict.gate)


def find_recorded(ledger: Ledger, version: int) -> Registration | None:
    """The registration of the files that a version was recorded to have; None when nothing was."""
    records = ledger.read_notes(VERSIONS, [entry_name(version)], VersionContent)
    if not records or records[0].version != version:
        return None
    return find_registration(ledger, records[0].content, model_digest=records[0].model_digest)


def recorded_versions(ledger: Ledger, *, lowest: int, highest: int) -> set[int]:
    """The numbers of the versions from `lowest` to `highest` that have a record."""
    before, until = entry_name(lowest - 1), entry_name(highest)
    names = ledger.store.names(ledger.folder_of(VERSIONS), after=before, until=until)
    return {int(name) for name in names if name.isdecimal()}


def with_registration(version: Version, registration: Registration) -> Version:
    """The version with what a registration says of it."""
    return replace(
        version,
        files=registration.files,
        model_digest=registration.model_digest,
        scores=registration.scores,
        lineage=registration.lineage,
        source=registration.source,
    )
