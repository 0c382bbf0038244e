"""Registers a model's files as a version, and records beside the ledger what they are (version_records.py).

A version that exists is taken for the model only if all its files are the model's: those that are stored, read and hashed.
Its tags alone prove nothing, because whoever reaches MLflow can write them, also before the model is registered.

A trained model that is published in another precision is another version with other files:

    version 1   model 4fe1, fp32        `registry.precision: fp32` finds version 1 from then on,
    version 2   model 4fe1, bf16        and `bf16` version 2
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from star.errors import InputError
from star.evaluation.evaluate import OUTCOMES
from star.folders.owners import create_in_home
from star.hashing import digest_of
from star.registry.download import OtherFilesError, verify_stored_files
from star.registry.lineage import LINEAGE_FILE
from star.registry.promotion.audit import read_history
from star.registry.promotion.ledger import Ledger
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.records import Registration
from star.registry.promotion.version_records import (
    PASSED,
    find_recorded,
    find_registration,
    record_content,
    with_registration,
    write_registration,
)
from star.registry.publish import (
    CARD,
    create_version,
    ensure_registered_model,
    hash_files,
    repair_in_bucket,
    require_model,
    store_model,
    update_tags,
)
from star.registry.versions import PRECISION_KEY, Version, find_versions_of
from star.tracking.server import connect

logger = logging.getLogger(__name__)

WRITTEN_ANEW = {CARD, LINEAGE_FILE, OUTCOMES}  # at each publication; the other files are the model itself


def register_model(
    folder: Path, *, name: str, scores: Mapping[str, float], lineage: Mapping[str, str], model_digest: str
) -> Version:
    """The version of `register_or_find`."""
    return register_or_find(folder, name=name, scores=scores, lineage=lineage, model_digest=model_digest)[0]


def register_or_find(
    folder: Path, *, name: str, scores: Mapping[str, float], lineage: Mapping[str, str], model_digest: str
) -> tuple[Version, list[str]]:
    """Registers a Hugging Face folder as the next version of `name`, or returns the version that is this model already.

    Args:
        scores: name of a score -> its value; tags of the version and metrics of the LoggedModel.
        lineage: tags that say where the model comes from.
        model_digest: of the model as it was trained; two versions have the same only if their precisions differ.

    Returns:
        The version, and a sentence for each version that says it is this model and is not.

    Raises:
        InputError: the folder holds no model, the name cannot be used, MLflow or the ledger's store does not answer.
    """
    require_model(folder, name=name)
    client = connect()
    ensure_registered_model(client, name)
    ledger = open_ledger(name, client)
    files = hash_files(folder)
    passed_over: list[str] = []
    # Looked up first, so that a stage that is retried or run again creates no second version of the same content.
    for version in find_versions_of(name, model_digest):
        known = find_recorded(ledger, version.version)
        if known and known.lineage.get(PRECISION_KEY) != lineage.get(PRECISION_KEY):
            continue
        try:
            return _verified(version, known, ledger, folder=folder, files=files), passed_over
        except OtherFilesError as error:
            passed_over.append(f"{version} has the digest of this model in its tags and is another: {error}")
            logger.warning("%s", passed_over[-1])
    stored = store_model(folder, files, name=name, scores=scores, model_digest=model_digest)
    measured = {key: float(value) for key, value in scores.items()}
    made = Registration(files, model_digest, stored.source, stored.logged_model.model_id, measured, dict(lineage))
    registration = write_registration(ledger, made)
    version = create_version(stored, name=name, scores=scores, lineage=lineage, model_digest=model_digest)
    record_content(ledger, version.version, registration, reason="registered")
    return with_registration(version, registration), passed_over


def update_registration(
    version: Version, *, scores: Mapping[str, float], lineage: Mapping[str, str], gate: str = ""
) -> Version:
    """Writes newer scores and lineage to a version's registration and tags, and returns the version with them.

    Args:
        gate: what the gate said of the version, where it did.
    """
    ledger = open_ledger(version.name, connect())
    if known := find_recorded(ledger, version.version):
        merged = Registration(
            known.files,
            known.model_digest,
            known.source,
            known.logged_model,
            {**known.scores, **scores},
            {**known.lineage, **lineage},
            gate,
        )
        known = write_registration(ledger, merged)
    updated = update_tags(version, scores=scores, lineage=lineage)
    return with_registration(updated, known) if known else updated


def vouch_for(version: Version, files: Mapping[str, str], *, ledger: Ledger, gate: str = "", reason: str) -> Version:
    """Records files that were verified or that a person takes as they are, with what the version's tags say of them."""
    registration = find_registration(ledger, digest_of(dict(files)))
    if registration is None:
        digest = version.model_digest or digest_of(dict(files))
        made = Registration(dict(files), digest, version.source, "", version.scores, version.lineage, gate)
        registration = write_registration(ledger, made)
    record_content(ledger, version.version, registration, reason=reason)
    return with_registration(version, registration)


def _verified(
    version: Version, recorded: Registration | None, ledger: Ledger, *, folder: Path, files: Mapping[str, str]
) -> Version:
    """The version, after all its stored files were found to be those of the model in `folder`.

    Args:
        recorded: the registration that the version was recorded to have.

    Raises:
        OtherFilesError: they are not, or nothing says that STAR registered them.
    """
    known = recorded or find_registration(ledger, digest_of(version.files), model_digest=version.model_digest)
    claimed = with_registration(version, known) if known else version
    if claimed.model_digest != version.model_digest:
        raise OtherFilesError(f"it was registered as model {claimed.model_digest[:12]}")
    if other := sorted(_other_files(claimed.files, files)):
        raise OtherFilesError(f"{', '.join(other[:5])} differ")
    if known is None and claimed.files != files and not _gate_of(version, ledger):
        raise OtherFilesError(f"no registration recorded its {', '.join(sorted(WRITTEN_ANEW))}")
    repair_in_bucket(claimed, folder)
    try:
        verify_stored_files(claimed, create_in_home("models"))
    except OtherFilesError:
        raise
    except InputError as error:  # files that cannot be read are not those of the model either
        raise OtherFilesError(str(error)) from error
    if known is None:
        gate = _gate_of(version, ledger)
        return vouch_for(version, claimed.files, ledger=ledger, gate=gate, reason="registered by an older STAR")
    record_content(ledger, version.version, known, reason="registered")
    return claimed


def _other_files(claimed: Mapping[str, str], files: Mapping[str, str]) -> Iterator[str]:
    """The files of the model itself that differ. Card, lineage and outcomes differ with each publication."""
    for path in claimed.keys() | files.keys():
        if path not in WRITTEN_ANEW and claimed.get(path) != files.get(path):
            yield path


def _gate_of(version: Version, ledger: Ledger) -> str:
    """What the ledger of an older STAR says of a version: `passed`, `refused`, or nothing."""
    verdicts = [
        attempt
        for attempt, _ in read_history(ledger)[0]
        if attempt.version == version.version and attempt.action == "promote"
    ]
    if any(attempt.reason == "passed the gate" for attempt in verdicts):
        return PASSED
    return "refused" if any(attempt.refused for attempt in verdicts) else ""
