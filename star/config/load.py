"""Reads a configuration from YAML: `extends`, paths relative to the file, and errors that name the key."""

from pathlib import Path

from pydantic import ValidationError

from star.config.experiment import Config
from star.config.files import PACKAGED, packaged_file
from star.errors import InputError

PROFILES = ("tiny", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b")
MAX_EXTENDS = 8


def load_config(path: Path | str, *, seed_data: Path | None = None) -> Config:
    """Reads and validates a YAML file, or a packaged profile by its name (`tiny`, `qwen3-0.6b`, ...).

    Paths in the file are relative to the file. `extends: OTHER.yaml` starts from another file and overrides section by section.

    Raises:
        InputError: the file is missing, is not YAML, has an unknown key or a value out of range; the message names the key.
    """
    content = _read_yaml(_find(path))
    if seed_data is not None:
        content = _merge(content, {"data": {"seed_data": str(seed_data.expanduser().resolve())}})
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise InputError(f"{path}: {problems}") from error


def _find(path: Path | str, *, folder: Path = Path()) -> Path:
    return packaged_file(f"{path}.yaml") if str(path) in PROFILES else folder / path


def _read_yaml(path: Path, *, depth: int = 0) -> dict:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no configuration at {path}: give a YAML file or one of {', '.join(PROFILES)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        where = f" line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise InputError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict) or not isinstance(content.get("extends", ""), str):
        raise InputError(f"{path} must hold settings by name, like `seed: 7`, and `extends` one file")
    base = content.pop("extends", None)
    _make_absolute(content, folder=path.parent.resolve())
    if base is None:
        return content
    if depth == MAX_EXTENDS:
        raise InputError(f"{path}: more than {MAX_EXTENDS} files extend each other: does one extend itself?")
    return _merge(_read_yaml(_find(base, folder=path.parent), depth=depth + 1), content)


def _make_absolute(content: dict, *, folder: Path) -> None:
    """Paths in a file are relative to the file; a base is a path when there is such a folder."""
    for section, key in (("data", "tools"), ("data", "seed_data"), ("teacher", "base"), ("student", "base")):
        settings = content.get(section)
        value = settings.get(key) if isinstance(settings, dict) else None
        if isinstance(value, str) and not value.startswith(PACKAGED) and (key != "base" or (folder / value).is_dir()):
            settings[key] = str(folder / Path(value).expanduser())


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged


def _describe(problem: dict) -> str:
    name = (
        ".".join(str(part) for part in problem["loc"] if part not in ("str", "Architecture", "ModelFolder"))
        or "the file"
    )
    if problem["type"] == "extra_forbidden":
        return f"unknown key `{name}`: check the spelling against docs/configuration.md"
    return f"`{name}`: {problem['msg'].removeprefix('Value error, ')}"
