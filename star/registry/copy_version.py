"""A version from one registry into another: its weights copied, proven to be the same, its tags with it."""

import tempfile
from pathlib import Path

from star.registry.download import fetch_version
from star.registry.publish import annotate, register_model
from star.registry.versions import Version


def copy_to(version: Version, folder: Path) -> Version:
    """Registers a fetched version under the same name in the MLflow of the environment, and fetches it back to compare every file.

    Args:
        folder: the version's files, as `fetch_version` gave them.

    Raises:
        InputError: the other MLflow does not answer, or what it stored is not what was sent.
    """
    origin = {**version.lineage, "copied_from": str(version)}
    copied = register_model(
        folder, name=version.name, scores=version.scores, lineage=origin, model_digest=version.model_digest
    )
    if copied.lineage != origin:  # it was there before: what it says may be older
        copied = annotate(copied, scores=version.scores, lineage=origin)
    with tempfile.TemporaryDirectory(prefix="star-copy-") as scratch:
        fetch_version(copied, Path(scratch))
    return copied
