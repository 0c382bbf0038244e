"""Replaces the files and folders that a configuration names by where they are and their sha256.

    tools: team/tools.yaml                                       a file of this machine, relative to the configuration
    tools: star:tools.json                                       a file of the package
    tools: s3://bucket/team/tools.yaml                           an object in S3; it is read once to know its sha256
    tools: {path: s3://bucket/team/tools.yaml, sha256: 5fec...}  the same without reading it now
    seed_data: hf://datasets/TEAM/NAME@COMMIT/rows.jsonl         a file of a data set on the Hugging Face hub, by its revision
    tools: {dvc: tools.yaml, repo: https://..., rev: v3}         what DVC tracks at a revision (star/config/dvc_source.py)

The content decides, and not the place: the same bytes from a disk, from S3 or under their digest in the inputs of a cluster
(star/pipelines/upload_inputs.py) are the same setting, the same work and the same result. Whoever reads an input gets a
local path of verified content from `read_verified`.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter

from star.config.base import Section
from star.config.dvc_source import DvcSource, names_dvc, resolve_dvc
from star.config.hub_files import fetch_from_hub, is_on_hub
from star.config.model_files import choose_deciding, deciding_files, digest_of_model_folder, is_gguf
from star.digest_cache import digest_of_file
from star.errors import InputError
from star.folders.s3_client import S3Folder, is_s3_url
from star.folders.s3_inputs import (
    digest_of_files,
    digest_of_object,
    digest_of_prefix,
    fetch_file,
    fetch_folder,
    fetch_small_files,
    fetched_place,
    names_in,
)

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
PACKAGED = "star:"  # prefix of a file that comes with the package: `star:tools.json`
SHA256 = r"^([0-9a-f]{64})?$"


class Input(Section, ABC):
    """A file or a folder: where it is, and its sha256 when the configuration was loaded.

    Attributes:
        path: on this machine (absolute), s3://..., hf://..., or star:... for a file of the package.
        sha256: of its content; empty in a configuration that was loaded for a stage that does not read this base.
        dvc: where it came from, if a team tracks it with DVC.
    """

    path: str
    sha256: str = Field(pattern=SHA256)
    dvc: DvcSource | None = None

    @property
    def is_packaged(self) -> bool:
        """Whether it comes with the package, so that every machine and pod has it."""
        return self.path.startswith(PACKAGED)

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine only: no pod has it."""
        return not (self.is_packaged or self.is_in_s3 or self.is_on_hub)

    @property
    def is_in_s3(self) -> bool:
        """Whether it is fetched from S3 by whoever reads it."""
        return is_s3_url(self.path)

    @property
    def is_on_hub(self) -> bool:
        """Whether it is a file of a data set on the hub, which whoever reads it downloads."""
        return is_on_hub(self.path)

    @abstractmethod
    def read_verified(self) -> Path:
        """Returns a local path, after comparing the content with the sha256 taken at load. What is in S3 is fetched once.

        Raises:
            InputError: it is missing, or its content has changed.
        """


class FileRef(Input):
    """A file, and its sha256 when the configuration was loaded.

    Attributes:
        name: of the file; its ending says how it is read, and ids of rejected rows have it. By default that of `path`.
    """

    name: str | None = Field(None, pattern=r"^\.{0,2}[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*$")

    @property
    def file_name(self) -> str:
        """Its name, also where `path` ends in a digest."""
        return self.name or PurePosixPath(self.path).name

    def read_verified(self) -> Path:
        """The local path of the file, whose content is that of the sha256."""
        if self.is_in_s3:
            return fetch_file(self.path, sha256=self.sha256, name=self.file_name)
        path = fetch_from_hub(self.path) if self.is_on_hub else _locate(self.path)
        # The configuration's digest covers the content at load: other content must not be cached under it.
        if digest_of_file(path, trust="own") != self.sha256:
            raise InputError(f"{self.path} has changed since the run was configured: start the run again")
        return path


class GgufFile(FileRef):
    """A model in one GGUF file, which `star.modeling.gguf` makes a model folder of."""


class ModelFolder(Input):
    """A model folder and one sha256 over its files, so that retrained weights count as another base model."""

    def read_verified(self) -> Path:
        """The local path of the model folder, whose content is that of the sha256."""
        if self.is_in_s3:
            return fetch_folder(self.path, sha256=self.sha256, choose=choose_deciding)
        folder = Path(self.path)
        if not folder.is_dir():
            raise InputError(f"no model folder at {folder}: check the path of the base")
        if digest_of_model_folder(folder, trust="own") != self.sha256:
            raise InputError(f"the model in {folder} has changed since the run was configured: start the run again")
        return folder

    def read_description(self) -> Path:
        """Returns a local folder with its JSON files, for a look at its sizes. Of one in S3 no weights are fetched for it."""
        return (
            fetch_small_files(self.path, sha256=self.sha256, choose=choose_deciding)
            if self.is_in_s3
            else Path(self.path)
        )


class Checkout(Input):
    """A checkout of a benchmark and one sha256 over all its files but hidden ones and compiled code."""

    def read_verified(self) -> Path:
        """The local path of the checkout, whose content is that of the sha256."""
        if self.is_in_s3:
            return fetch_folder(self.path, sha256=self.sha256, choose=_choose_all)
        if _digest_of_checkout(folder := Path(self.path)) != self.sha256:
            raise InputError(f"{folder} has changed since the run was configured: start the run again")
        return folder


class RowsFolder(Input):
    """A folder of files of rows and one sha256 over them: all of its files, but those of a clone's `.git`.

    Attributes:
        files: number of files that count. A file of rows has no such field.
    """

    files: int

    def read_verified(self) -> Path:
        """The local path of the folder of rows, whose content is that of the sha256."""
        if self.is_in_s3:
            return fetch_folder(self.path, sha256=self.sha256, choose=choose_rows)
        folder = Path(self.path)
        if not folder.is_dir() or digest_of_files(folder, choose_rows(names_in(folder)), trust="own") != self.sha256:
            raise InputError(f"{folder} is missing or has changed since the run was configured: start the run again")
        return folder


def choose_rows(names: Collection[str], read: object = None) -> list[str]:
    """The names in a folder of rows that count: all but those in a clone's `.git`."""
    return sorted(name for name in names if PurePosixPath(name).parts[0] != ".git")


def inputs_in(settings: Section, prefix: str = "") -> Iterator[tuple[str, Input]]:
    """Yields the name of each setting that is an input, like `data.tools` or `data.sources.0.path`, and the input."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Input):
            yield f"{prefix}{name}", value
        elif isinstance(value, Section):
            yield from inputs_in(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for place, entry in enumerate(value):
                if isinstance(entry, Section):
                    yield from inputs_in(entry, f"{prefix}{name}.{place}.")


def read_input(content: object) -> FileRef | RowsFolder:
    """A file or a folder of rows as a lineage names it.

    Raises:
        ValidationError: the content is something else.
    """
    adapter: TypeAdapter[FileRef | RowsFolder] = TypeAdapter(FileRef | RowsFolder)
    return adapter.validate_python(content)


def files_of(source: Input) -> list[str]:
    """The paths of the files that count in a folder of this machine, in the order of its list."""
    folder = Path(source.path)
    if isinstance(source, ModelFolder):
        return deciding_files(folder)
    return (choose_rows if isinstance(source, RowsFolder) else _choose_all)(names_in(folder))


def identity(settings: Any) -> Any:
    """Settings, as from JSON, with only the content of each input in place of where it is.

    A file of the package keeps its name: it has no other one.
    """
    if isinstance(settings, dict):
        if settings.keys() >= {"path", "sha256"}:
            return _identity_of(settings)
        return {key: identity(value) for key, value in settings.items()}
    return [identity(value) for value in settings] if isinstance(settings, list) else settings


def _identity_of(source: dict[str, Any]) -> dict[str, str]:
    path, sha256 = source["path"], source["sha256"]
    if path.startswith(PACKAGED):
        return {"path": path, "sha256": sha256}
    # Only a file has a name. That of a folder or a model changes nothing.
    name = source.get("name") or PurePosixPath(path).name
    return {"name": name, "sha256": sha256} if "name" in source and not is_gguf(name) else {"sha256": sha256}


def paths_in(settings: str) -> list[Path]:
    """The local paths of the inputs that settings name, as JSON; of one in S3 the place of its copy. Not those of the package."""

    def below(value: object) -> Iterator[Path]:
        if isinstance(value, dict) and value.keys() >= {"path", "sha256"}:
            path = value["path"]
            if is_gguf(value.get("name") or path) and value["sha256"]:
                yield fetched_place(value["sha256"])  # the model folder that is made of it
            # What comes from the hub lies in its client's cache.
            if not path.startswith(PACKAGED) and not is_on_hub(path):
                yield fetched_place(value["sha256"]) if is_s3_url(path) else Path(path)
            return
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from below(inner)

    return list(below(json.loads(settings)))


def packaged_file(name: str) -> Path:
    """Returns the path of a profile or tools file that comes with the package."""
    return Path(str(resources.files("star.configs") / name))


def _locate(path: str) -> Path:
    return packaged_file(path.removeprefix(PACKAGED)) if path.startswith(PACKAGED) else Path(path)


def _to_file_ref(value: object) -> object:
    if names_dvc(value):
        return _of_kind("name", resolve_dvc(value, choose=_choose_all))
    given, path = _path_without_digest(value)
    if path is None:
        return value
    if is_s3_url(path):
        return {**given, "path": path, "sha256": digest_of_object(path)}
    if is_on_hub(path):
        return {**given, "path": path, "sha256": digest_of_file(fetch_from_hub(path))}
    path = path if path.startswith(PACKAGED) else str(Path(path).expanduser().resolve())
    return {**given, "path": path, "sha256": digest_of_file(_locate(path))}


def to_model_folder(value: object) -> object:
    """Replaces the path of a model folder or GGUF file by its path and sha256. Every other value, such as a Hugging Face id, stays.

    Raises:
        InputError: it is such an id, and a folder of this name lies in the current directory.
    """
    if named := _gguf_named_by(value):
        return {"name": PurePosixPath(named).name, **_file_fields(value)}
    if names_dvc(value):
        return _of_kind("files", resolve_dvc(value, choose=choose_deciding))
    given, path = _path_without_digest(value)
    if path is None:
        return value
    if is_s3_url(path):
        return {**given, "path": path, "sha256": digest_of_prefix(path, choose=choose_deciding)}
    if not Path(path).expanduser().is_dir():
        if given:
            raise InputError(f"no model folder at {path}: check the path of the base")
        return value
    refuse_folder_of_name(path, Path(path))
    folder = Path(path).expanduser().resolve()
    return {**given, "path": str(folder), "sha256": digest_of_model_folder(folder)}


def _gguf_named_by(value: Any) -> str | None:
    """The path of the GGUF file that a base names, in any of the ways to name an input; None where it names something else."""
    path = (value.get("path") or value.get("dvc")) if isinstance(value, dict) else value
    return str(path) if isinstance(path, str | Path) and is_gguf(str(path)) else None


def _file_fields(value: Any) -> dict[str, Any]:
    """The fields of a file; its `name` is what tells it from a folder."""
    found = _to_file_ref(value)
    assert isinstance(found, dict)  # noqa: S101 - it was given as a path, or as fields
    return {key: content for key, content in found.items() if content is not None}


def _to_checkout(value: object) -> object:
    if names_dvc(value):
        return _of_kind("files", resolve_dvc(value, choose=_choose_all))
    given, path = _path_without_digest(value)
    if path is None:
        return value
    if is_s3_url(path):
        return {**given, "path": path, "sha256": digest_of_prefix(path, choose=_choose_all)}
    folder = Path(path).expanduser().resolve()
    return {**given, "path": str(folder), "sha256": _digest_of_checkout(folder)}


def _to_rows(value: object) -> object:
    """A file of rows, or a folder of such files on this machine or tracked by DVC."""
    if names_dvc(value):
        return resolve_dvc(value, choose=choose_rows)
    _, path = _path_without_digest(value)
    if path is None or is_s3_url(path) or not Path(path).expanduser().is_dir():
        return _to_file_ref(value)
    folder = Path(path).expanduser().resolve()
    names = choose_rows(names_in(folder))
    return {"path": str(folder), "sha256": digest_of_files(folder, names, trust="own"), "files": len(names)}


def _of_kind(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Refuses a folder where a file is read (`name`), and a file where a folder is read (`files`)."""
    if kind not in found:
        wanted = "a file: name one in it" if kind == "name" else "a folder"
        raise InputError(
            f"{found['dvc']['path']} is {'a folder' if kind == 'name' else 'a file'}, and this setting needs {wanted}"
        )
    return {key: value for key, value in found.items() if key != "files"}


def _path_without_digest(value: Any) -> tuple[dict[str, Any], str | None]:
    """The fields that were given beside the path, and the path; None for what has a digest, or is no input."""
    given, path = ({}, value) if isinstance(value, str | Path) else (value, None)
    if isinstance(value, dict) and "sha256" not in value:
        path = value.get("path")
    if not isinstance(path, str | Path):
        # A configuration that was loaded before has a digest already.
        return {}, None
    # A Path has one slash in place of two.
    return dict(given), str(S3Folder.parse(path)) if is_s3_url(path) else str(path)


def _digest_of_checkout(folder: Path) -> str:
    if not folder.is_dir():
        raise InputError(f"no folder at {folder}: give the path of a checkout")
    return digest_of_files(folder, _choose_all(names_in(folder)), trust="own")


def _choose_all(names: Collection[str], read: object = None) -> list[str]:
    """All names but those in hidden folders (`.git`), hidden files, and compiled code, which Python writes when it is run."""
    return sorted(
        name
        for name in names
        if not any(part.startswith(".") or part == "__pycache__" for part in PurePosixPath(name).parts)
    )


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
Rows = Annotated[FileRef | RowsFolder, BeforeValidator(_to_rows)]
CheckoutFolder = Annotated[Checkout, BeforeValidator(_to_checkout)]
