"""Copies a version from one registry to another, with its tags, and checks every file of the copy."""

import tempfile
from pathlib import Path

from star.registry.download import verify_stored_files
from star.registry.promotion.register_model import register_model, update_registration
from star.registry.versions import Version


def copy_version(version: Version, folder: Path) -> Version:
    """Registers a downloaded version in the MLflow of the environment, and downloads it again to compare every file.

    Args:
        version: the version in the registry that it comes from.
        folder: its files, as `download_version` returned them.

    Returns:
        The version in the registry that it was copied to.

    Raises:
        InputError: the other MLflow does not answer, or it stored other files than those sent.
    """
    lineage = {**version.lineage, "copied_from": str(version)}
    copied = register_model(
        folder, name=version.name, scores=version.scores, lineage=lineage, model_digest=version.model_digest
    )
    if copied.lineage != lineage:  # the model was registered there before, perhaps with older scores
        copied = update_registration(copied, scores=version.scores, lineage=lineage)
    with tempfile.TemporaryDirectory(prefix="star-copy-") as scratch:
        verify_stored_files(copied, Path(scratch))
    return copied
