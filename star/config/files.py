"""Files and model folders that a configuration names, with their sha256: a changed file is a changed setting."""

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from star.config.base import Section
from star.errors import InputError
from star.hashing import sha256_of

PACKAGED = "star:"  # before the name of a file that comes with the package


class FileRef(Section):
    """A file with its sha256: a changed file is a changed setting."""

    path: str
    sha256: str

    def read_verified(self) -> Path:
        """The path, after its content was compared with the digest taken when the configuration was loaded."""
        path = _located(self.path)
        if sha256_of(path) != self.sha256:
            raise InputError(f"{path} has changed since the run was configured: start the run again")
        return path

    @property
    def is_local(self) -> bool:
        """Whether only this machine has it."""
        return not self.path.startswith(PACKAGED)


class ModelFolder(Section):
    """A model folder with the sha256 over its files: weights trained anew are another base."""

    path: str
    sha256: str


def _located(path: str) -> Path:
    return packaged_file(path.removeprefix(PACKAGED)) if path.startswith(PACKAGED) else Path(path)


def packaged_file(name: str) -> Path:
    """A profile or a tools file that comes with the package."""
    return Path(str(resources.files("star.configs") / name))


def _file_ref(value: Any) -> Any:
    if not isinstance(value, str | Path):
        return value
    path = str(value) if str(value).startswith(PACKAGED) else str(Path(value).expanduser().resolve())
    return {"path": path, "sha256": sha256_of(_located(path))}


def _model_folder(value: Any) -> Any:
    if not isinstance(value, str) or not Path(value).expanduser().is_dir():
        return value
    folder = Path(value).expanduser().resolve()
    content = [
        (file.name, sha256_of(file)) for file in sorted(folder.iterdir()) if file.suffix in (".json", ".safetensors")
    ]
    return {"path": str(folder), "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest()}


File = Annotated[FileRef, BeforeValidator(_file_ref)]
