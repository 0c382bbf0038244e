"""Replaces the files and model folders that a configuration names by their path and sha256.

The sha256 is part of the configuration's digest, so a file whose content changes counts as a changed setting.
"""

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from star.config.base import Section
from star.config.model_files import digest_of_model_folder
from star.digest_cache import digest_of_file
from star.errors import InputError

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
PACKAGED = "star:"  # prefix of a file that comes with the package: `star:tools.json`


class FileRef(Section):
    """A file and its sha256 when the configuration was loaded."""

    path: str
    sha256: str

    def read_verified(self) -> Path:
        """Returns the path after comparing the file with the sha256 taken at load.

        Raises:
            InputError: the file is missing or its content has changed.
        """
        path = _locate(self.path)
        # The configuration's digest covers the content at load: other content must not be cached under it.
        if digest_of_file(path, trust="own") != self.sha256:
            raise InputError(f"{path} has changed since the run was configured: start the run again")
        return path

    @property
    def is_local(self) -> bool:
        """Whether the file is on this machine only, and not in the package."""
        return not self.path.startswith(PACKAGED)


class ModelFolder(Section):
    """A model folder and one sha256 over its files, so that retrained weights count as another base model."""

    path: str
    sha256: str  # empty in a configuration that was loaded for a stage that does not read this base

    def read_verified(self) -> Path:
        """Returns the path after comparing the folder with the sha256 taken when the configuration was loaded.

        Raises:
            InputError: the folder is missing, or a file that decides what the model does has changed.
        """
        folder = Path(self.path)
        if not folder.is_dir():
            raise InputError(f"no model folder at {folder}: check the path of the base")
        if digest_of_model_folder(folder, trust="own") != self.sha256:
            raise InputError(f"the model in {folder} has changed since the run was configured: start the run again")
        return folder


def paths_in(settings: str) -> list[Path]:
    """The files and model folders that settings name, as canonical JSON; not those of the package."""

    def below(value: object) -> Iterator[str]:
        if isinstance(value, dict):
            if value.keys() == {"path", "sha256"}:
                yield value["path"]
            for inner in value.values():
                yield from below(inner)

    return [Path(path) for path in below(json.loads(settings)) if not path.startswith(PACKAGED)]


def packaged_file(name: str) -> Path:
    """Returns the path of a profile or tools file that comes with the package."""
    return Path(str(resources.files("star.configs") / name))


def _locate(path: str) -> Path:
    return packaged_file(path.removeprefix(PACKAGED)) if path.startswith(PACKAGED) else Path(path)


def _to_file_ref(value: object) -> object:
    # A configuration that was loaded before holds path and sha256 already.
    if not isinstance(value, str | Path):
        return value
    path = str(value) if str(value).startswith(PACKAGED) else str(Path(value).expanduser().resolve())
    return {"path": path, "sha256": digest_of_file(_locate(path))}


def to_model_folder(value: object) -> object:
    """Replaces the path of a model folder by its path and sha256. Every other value, such as a Hugging Face id, stays as it is.

    Raises:
        InputError: it is such an id, and a folder of this name lies in the current directory.
    """
    if not isinstance(value, str) or not Path(value).expanduser().is_dir():
        return value
    refuse_folder_of_name(value, Path(value))
    folder = Path(value).expanduser().resolve()
    return {"path": str(folder), "sha256": digest_of_model_folder(folder)}


def refuse_folder_of_name(value: str, folder: Path) -> None:
    """Raises InputError for a name that may be a model of the hub where there is a folder of that name.

    Whoever can make a folder must not decide which model is loaded, and a folder that was always meant must not become
    a download of that name.
    """
    if HUB_ID.fullmatch(value) and folder.is_dir():
        raise InputError(
            f"{value} is a name of the model hub, and there is a folder of that name, {folder.resolve()}: write ./{value} "
            "if you mean the folder, or else rename it"
        )


File = Annotated[FileRef, BeforeValidator(_to_file_ref)]
