"""Finds the model that a user names, registered or a folder, and returns the folder of its verified files."""

from pathlib import Path

from star.config.files import HUB_ID, refuse_folder_of_name
from star.config.model_files import is_gguf
from star.digest_cache import digest_of_file
from star.errors import InputError
from star.folders.owners import create_in_home
from star.registry.download import download_version
from star.registry.promotion.find import find_by_full_reference, find_by_reference_or_name, with_known_files
from star.registry.versions import Version, is_version_reference, is_written_as_path


def download_model(reference: str, out: Path) -> Path:
    """Downloads a registered model into `out`/<model digest>, checks the sha256 of every file, and returns that folder.

    A copy that is there already is checked, and downloaded again only if it is damaged.

    Args:
        reference: `name` (its champion), `name@alias` or `name/3`, with or without `models:/` before it.

    Raises:
        InputError: no such model, version or alias; not registered by `star`; the stored files differ from those
        registered.
    """
    return download_version(with_known_files(find_by_full_reference(reference)), out)


def find_model(model: str, *, name: str) -> tuple[Version | None, Path]:
    """The registered version that is meant, if one is, and the folder of its files, downloaded into `models/` of the home.

    Args:
        model: a version or alias of the registered model `name`, NAME/3, NAME@alias, or the NAME of a registered model,
            which stands for its champion. A folder or GGUF file is meant only where it is written as a path, such as
            ./NAME: whoever can make a folder called `champion` here must not decide which model is asked.

    Raises:
        InputError: there is neither.
    """
    folder = Path(model).expanduser()
    if is_written_as_path(model):
        if is_gguf(model) and folder.is_file():
            from star.modeling.gguf import folder_of_gguf

            return None, folder_of_gguf(folder, sha256=digest_of_file(folder))
        if not folder.is_dir():
            raise InputError(
                f"no model folder at {model}: give a folder, a GGUF file, an alias such as champion, or a version number"
            )
        return None, folder
    try:
        version = find_by_reference_or_name(model, name=name)
    except InputError as error:
        if folder.is_dir():
            raise InputError(f"{error}; write ./{model} if you mean the folder") from error
        raise
    version = with_known_files(version)
    return version, download_version(version, create_in_home("models"))


def get_model_folder(model: str, *, name: str) -> Path:
    """The folder of the model that `find_model` finds."""
    return find_model(model, name=name)[1]


def get_model_folder_or_hub_id(model: str, *, name: str) -> Path | str:
    """`get_model_folder`, but a hub id with its team, such as Qwen/Qwen3-0.6B, is returned as it is.

    Raises:
        InputError: it is such an id, and a folder of this name lies in the current directory.
    """
    if "/" not in model or not HUB_ID.fullmatch(model) or is_version_reference(model):
        return get_model_folder(model, name=name)
    refuse_folder_of_name(model, Path(model))
    return model
