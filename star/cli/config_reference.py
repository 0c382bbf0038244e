"""Writes docs/configuration.md from the configuration's own types: `python -m star.cli.config_reference > docs/configuration.md`."""

import types
from collections.abc import Iterator
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from star.config.experiment import Config
from star.config.files import Input
from star.stages import STAGES

HEAD = """# Configuration

For everybody who writes a profile: all keys, with type, default and meaning. An experiment is one YAML file, and every section of it is
optional:

```yaml
# my.yaml
extends: tiny              # start from a packaged profile, or from another file, and override section by section
name: my-experiment
data:
  tools: my-tools.json     # paths are relative to this file
distill: {steps: 400}
```

```
star run --config my.yaml
```

Every value is validated before anything starts. An unknown key is refused. The profiles `qwen3-*.yaml` have the paper's
values ([paper.md](paper.md)).
A changed setting makes the stages that read its section run again, and what follows them; all other results stay cached.

In the tables, `a.b` is the key `b` inside of `a`, `a[].b` the key `b` of each entry of the list `a`, and `NAME` stands for a name
that you choose. The default `none` means that the key is not set (`null` in YAML). `required` holds only where the section or the
settings around it are given.
"""
TAIL = """
## Environment variables

What belongs to a machine or a person is not in the profile. On a cluster these variables go under `cluster.environment`, and secrets [under
`cluster.secrets`](security.md#secrets). MLflow's (`MLFLOW_TRACKING_URI`), those of the object store (`AWS_ACCESS_KEY_ID`) and those of the
model hub (`HF_TOKEN`) have the meaning that their own documents give them.

| variable | meaning |
|---|---|
"""
# Of the sections that no stage's result depends on.
OTHER_READERS = {
    "cluster": "the compiler of the pipeline and the pre-flight",
    "safety": "everything that loads a model",
    "keep": "`star clean`",
    "study": "[`star study`](study.md)",
}
# Variables that people set -> their meaning. Those that STAR sets for its own processes are not among them.
VARIABLES = {
    "STAR_HOME": "Folder of local runs, in place of `runs/`",
    "STAR_WORK": "Folder for unfinished work that outlives a process's own disk, such as one on a volume; "
    "on a cluster `cluster.work_claim`",
    "STAR_SHARED_WITH": "[Who else may go on with unfinished work](security.md#shared-folders): `nobody` (default), `group` or `everyone`; "
    "on a cluster `cluster.shared_with`",
    "STAR_REUSE": "[More places with results](architecture.md#results-from-other-folders), separated by spaces",
    "STAR_PROCESSES": "Processes of [each training](distillation.md#several-gpus) of `star run`",
    "STAR_REGISTRY": "Bucket where [promotions are decided](mlflow.md#a-server-on-postgresql-and-s3) and weights are published: `s3://BUCKET/PREFIX`",
    "STAR_LEDGER_KEY": "Key that [signs the ledger](mlflow.md#a-signed-ledger): the path of a file, or `env:NAME`",
    "STAR_API_KEY": "Key of the endpoint of [`star data synthesize`](data.md#generated-rows) and "
    "of [`star call`](kubernetes.md#5-serve-the-champion)",
    "STAR_TEACHER_KEY": "Key of [a teacher's server](teacher.md#a-served-teacher)",
    "STAR_PLAIN_HTTP": "Servers that get their key over `http://`, separated by spaces, such as `http://vllm.models:8000`",
    "STAR_WEBHOOK": "Address that the exit handler of a pipeline on a cluster posts its summary to",
    "KFP_HOST": "Address of the server of Kubeflow Pipelines; `--host`",
    "KFP_TOKEN": "Bearer token for that server",
    "KFP_NAMESPACE": "Namespace of the user on that server; `--namespace`",
    "KFP_EXPERIMENT": "Experiment that groups the runs there; `--experiment`",
}
TABLE = "| key | type | default | meaning |\n|---|---|---|---|\n"
TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "boolean", dict: "mapping", tuple: "list"}


def reference() -> str:
    """Returns the reference as Markdown: one table per section, with type, default, meaning, and the stages that read it."""
    readers = {
        section: [f"`{stage.name}`" for stage in STAGES if section in stage.sections] for section in Config.model_fields
    }
    parts = [HEAD, "\n## Top level\n\n", TABLE]
    parts += [_row(name, field) for name, field in Config.model_fields.items() if not list(_sections(field.annotation))]
    for name, field in Config.model_fields.items():
        for section in _sections(field.annotation):
            read_by = ", ".join(readers[name]) or OTHER_READERS[name]
            parts += [f"\n## {name}\n\n{_first_line(section)} Read by {read_by}.\n\n", TABLE, *_rows(section, "")]
    return "".join([*parts, TAIL, *(f"| `{name}` | {meaning} |\n" for name, meaning in VARIABLES.items())])


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield _row(prefix + name, field)
        origin = _origin(field.annotation)
        inner = f"{prefix}{name}{'.NAME' if origin is dict else '[]' if origin is tuple else ''}."
        for section in _sections(field.annotation):
            if not issubclass(section, Input):  # written as a path; STAR adds the sha256
                yield from _rows(section, inner)


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.default is PydanticUndefined else _default(field.default)
    return f"| `{name}` | {_type_name(field.annotation)} | {default} | {field.description or ''} |\n"


def _default(value: object) -> str:
    if isinstance(value, BaseModel) or (
        isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values())
    ):
        return "below"
    if isinstance(value, tuple):
        return f"`[{', '.join(str(item) for item in value)}]`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{key}: {item}' for key, item in value.items())}}}`"
    return "none" if value is None else f"`{value}`"


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        if isinstance(argument, type) or get_origin(argument) is not None:
            yield from _sections(argument)


def _origin(annotation: object) -> object:
    return _origin(get_args(annotation)[0]) if get_origin(annotation) is Annotated else get_origin(annotation)


def _type_name(annotation: object) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        names = [_type_name(part) for part in arguments if part is not types.NoneType]
        return " or ".join(dict.fromkeys(names))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "path" if issubclass(annotation, Input) else "settings"
    return TYPE_NAMES[origin or annotation]  # type: ignore[index]  # the types that the sections use


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    print(reference(), end="")
