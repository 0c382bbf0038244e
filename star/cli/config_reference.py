"""Writes docs/configuration.md from the configuration's own types: `python -m star.cli.config_reference > docs/configuration.md`."""

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from star.config.experiment import Config
from star.stages import STAGES

HEAD = """# Configuration

One YAML file an experiment; every key is validated before anything starts, and an unknown one is refused. Values not given have the
defaults below, which are the paper's where the paper has one. `extends: OTHER.yaml` starts from another file and overrides section by
section. Paths are relative to the file. A stage's result is cached by the sections it reads, by its inputs and by its code.
"""


def reference() -> str:
    """The reference as Markdown: one table a section, with type, default, meaning, and the stages that read it."""
    readers = {
        section: [stage.name for stage in STAGES if section in stage.sections] for section in Config.model_fields
    }
    parts = [HEAD, "\n## Top level\n\n", *_table(Config, skip_sections=True)]
    for name, field in Config.model_fields.items():
        for section in _sections(field.annotation):
            parts += [
                f"\n## {name}\n\n",
                f"{_first_line(section)} Read by {', '.join(readers[name]) or 'the compiler of the pipeline'}.\n\n",
                *_rows(section, ""),
            ]
    return "".join(parts)


def _table(model: type[BaseModel], *, skip_sections: bool) -> Iterator[str]:
    yield "| key | type | default | meaning |\n|---|---|---|---|\n"
    for name, field in model.model_fields.items():
        if not (skip_sections and list(_sections(field.annotation))):
            yield _row(name, field)


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    if not prefix:
        yield "| key | type | default | meaning |\n|---|---|---|---|\n"
    for name, field in model.model_fields.items():
        yield _row(prefix + name, field)
        for section in _sections(field.annotation):
            if section.__name__ != "FileRef":
                yield from _rows(section, f"{prefix}{name}.")


def _row(name: str, field) -> str:
    default = "required" if field.default is PydanticUndefined else _default(field.default)
    return f"| `{name}` | {_type_name(field.annotation)} | {default} | {field.description or ''} |\n"


def _default(value: object) -> str:
    if isinstance(value, BaseModel) or (
        isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values())
    ):
        return "below"
    return "none" if value is None else f"`{value}`"


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        if isinstance(argument, type) or get_origin(argument) is not None:
            yield from _sections(argument)


def _type_name(annotation: object) -> str:
    if annotation is type(None):
        return "none"
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType, typing.Union):
        return " or ".join(_type_name(part) for part in get_args(annotation) if part is not type(None))
    name = getattr(annotation, "__name__", str(annotation))
    return {"FileRef": "path", "str": "text", "int": "integer", "float": "number"}.get(name, name.lower())


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    print(reference(), end="")
