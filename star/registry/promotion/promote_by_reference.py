"""Promotes a version that a user names, here or in another MLflow registry: what `star promote` does."""

from star.folders.owners import create_in_home
from star.registry.copy_version import copy_version
from star.registry.download import download_version
from star.registry.promotion.promote_and_rollback import promote
from star.registry.versions import Version, find_by_reference
from star.tracking.server import use_tracking_uri


def promote_model(model: str, *, name: str, to: str, reason: str, to_registry: str | None = None) -> Version:
    """Checks the version's files against its digests and promotes it, whatever the gate said of it.

    Args:
        model: a version, an alias, NAME/VERSION or NAME@ALIAS.
        name: the registered model, where `model` does not name one.
        to: champion or challenger.
        to_registry: address of another MLflow; the version is copied there and promoted there.

    Raises:
        InputError: there is no such version, its files are not what was registered, or MLflow does not answer.
    """
    version = find_by_reference(model, name=name)
    # Downloaded even for a promotion here, because the download compares every file with its digest.
    folder = download_version(version, create_in_home("models"))
    if to_registry is None:
        return promote(version.name, version.version, to=to, reason=reason)
    with use_tracking_uri(to_registry):
        copied = copy_version(version, folder)
        return promote(copied.name, copied.version, to=to, reason=reason)
