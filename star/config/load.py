"""Reads a configuration from YAML: resolves `extends` and relative paths, validates, and names the key in every error."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from star.config.dvc_source import names_dvc
from star.config.experiment import Config
from star.config.files import PACKAGED, packaged_file, refuse_folder_of_name
from star.config.hub_files import is_on_hub
from star.config.model_files import is_gguf
from star.config.plain_text import refusal
from star.errors import InputError
from star.folders.s3_client import is_s3_url
from star.yaml_documents import parse_yaml

PROFILES = ("tiny", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "study-tiny")
MAX_EXTENDS = 8  # files that extend each other; more than that is taken for a loop
# Settings that may be paths.
PATHS = (("data", "tools"), ("data", "seed_data"), ("teacher", "base"), ("student", "base"), ("evaluate", "acebench"))
# Pydantic adds the tried type of a union to an error's location.
TYPE_NAMES = ("str", "Architecture", "ModelFolder", "GgufFile", "FileRef", "RowsFolder")


def load_config(path: Path | str, *, seed_data: Path | None = None, sections: Collection[str] | None = None) -> Config:
    """Reads and validates a YAML file, or a packaged profile by its name (`tiny`, `qwen3-0.6b`, ...).

    Paths in the file are relative to the file. `extends: OTHER.yaml` starts from another file and overrides section by section.

    Args:
        path: the file, or the name of a packaged profile.
        seed_data: file with rows, in place of the configuration's `data.seed_data`.
        sections: those that will be read; None for all. The base models of others are not hashed.

    Raises:
        InputError: the file is missing, is not YAML, has an unknown key, a value out of range or a secret in it; the message names
            the key.
    """
    content = _read_yaml(_find(path))
    if seed_data is not None:
        # Before the validation, so that the file's sha256 is part of the configuration like that of any other file.
        rows = seed_data if is_s3_url(seed_data) else seed_data.expanduser().resolve()
        content = _merge(content, {"data": {"seed_data": str(rows)}})
    if reason := refusal(content):
        raise InputError(f"{path}: {reason}")
    if sections is not None:
        _leave_bases_unread(content, sections)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise InputError(f"{path}: {problems}") from error


def _leave_bases_unread(content: dict[str, Any], sections: Collection[str]) -> None:
    """Names the base models of the other sections without the sha256 of their files, which can take minutes to compute."""
    for name in {"teacher", "student"}.difference(sections):
        settings = content.get(name)
        if not isinstance(settings, dict):
            continue
        if names_dvc(base := settings.get("base")):
            base = base["dvc"]
        elif not isinstance(base, str) or not (is_s3_url(base) or is_gguf(base) or Path(base).is_dir()):
            continue
        content[name] = {**settings, "base": {"path": base, "sha256": ""}}


def _find(path: Path | str, *, folder: Path = Path()) -> Path:
    return packaged_file(f"{path}.yaml") if str(path) in PROFILES else folder / path


def _read_yaml(path: Path, *, depth: int = 0) -> dict[str, Any]:
    import yaml

    try:
        content = parse_yaml(path.read_text(encoding="utf-8").encode())
    except FileNotFoundError:
        raise InputError(f"no configuration at {path}: give a YAML file or one of {', '.join(PROFILES)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        fault = error.__cause__
        # Only this one knows the line.
        if isinstance(fault, yaml.MarkedYAMLError) and fault.problem_mark:
            error = ValueError(fault.problem)
            path_and_line = f"{path} line {fault.problem_mark.line + 1}"
        else:
            path_and_line = str(path)
        raise InputError(f"{path_and_line} is not valid YAML: {error}") from fault
    if not isinstance(content, dict) or not isinstance(content.get("extends", ""), str):
        raise InputError(f"{path} must hold settings by name, like `seed: 7`, and `extends` one file")
    base = content.pop("extends", None)
    # Before the merge, after which nobody knows from which file a path came.
    _make_absolute(content, folder=path.parent.resolve())
    if base is None:
        return content
    if depth == MAX_EXTENDS:
        raise InputError(f"{path}: more than {MAX_EXTENDS} files extend each other: does one extend itself?")
    return extend(_read_yaml(_find(base, folder=path.parent), depth=depth + 1), content)


def _make_absolute(content: dict[str, Any], *, folder: Path) -> None:
    """Resolves the paths in a file against the file's folder. A `base` counts as a path if such a folder exists."""
    for section, key in PATHS:
        if isinstance(settings := content.get(section), dict):
            _make_path_absolute(settings, key, folder=folder)
    data = content.get("data")
    sources = data.get("sources") if isinstance(data, dict) else None
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict):
            _make_path_absolute(source, "path", folder=folder)


def _make_path_absolute(settings: dict[str, Any], key: str, *, folder: Path) -> None:
    value = settings.get(key)
    if isinstance(value, dict) and isinstance(repo := value.get("repo"), str) and (folder / repo).is_dir():
        settings[key] = {**value, "repo": str((folder / repo).resolve())}
    if isinstance(value, dict) and isinstance(path := value.get("path"), str):
        settings[key] = {**value, "path": path if _has_no_folder(path) else str(folder / Path(path).expanduser())}
    if not isinstance(value, str) or _has_no_folder(value):
        return
    if key == "base":
        refuse_folder_of_name(value, folder / value)
    # What is not written as a path, such as a/b/c, may be a mistake, so the folder must exist.
    if key != "base" or is_gguf(value) or (folder / value).is_dir():
        settings[key] = str(folder / Path(value).expanduser())


def _has_no_folder(path: str) -> bool:
    return path.startswith(PACKAGED) or is_s3_url(path) or is_on_hub(path)


def extend(profile: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A profile with the settings of one that extends it, section by section."""
    merged = _merge(profile, over)
    registry = merged.get("registry")
    # The name of the older base on the hub is not that of another one.
    if (
        _students_base(profile) != _students_base(merged)
        and isinstance(registry, dict)
        and "base_model" not in (over.get("registry") or {})
    ):
        merged["registry"] = {key: value for key, value in registry.items() if key != "base_model"}
    return merged


def _students_base(profile: dict[str, Any]) -> object:
    student = profile.get("student")
    return student.get("base") if isinstance(student, dict) else None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    # A revision is a commit of one model's repository, so another `base` does not inherit it.
    if over.get("base", base.get("base")) != base.get("base"):
        merged.pop("revision", None)
    # Both say how long a training is, so one takes the place of the other.
    for length, other in (("steps", "epochs"), ("epochs", "steps")):
        if over.get(length) is not None and other not in over:
            merged.pop(other, None)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        # An input at another place is another one, and a field of the older would not fit: only `rev` and the like are merged.
        both = both and not value.keys() & {"path", "dvc"}
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _describe(problem: ErrorDetails) -> str:
    name = ".".join(str(part) for part in problem["loc"] if part not in TYPE_NAMES) or "the file"
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{name}`: check the spelling against docs/configuration.md"
    # pydantic puts this prefix before the text of every ValueError.
    return f"`{name}`: {problem['msg'].removeprefix('Value error, ')}"
