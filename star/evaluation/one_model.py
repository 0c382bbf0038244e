"""One model on chosen suites: what `star evaluate --model` does. Under the storage's contract: whole or not there, resumed after a kill."""

import json
import re
import sys
from pathlib import Path

from pydantic import ValidationError

from star.config.evaluation import Evaluate
from star.config.experiment import Config
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.folders.manifest import METRICS, Manifest, open_input
from star.folders.run_once import Result, describe_work, run_once
from star.folders.workspace import Workspace
from star.hashing import digest_of, sha256_of
from star.home import home

STAGE = "evaluate-model"


def evaluate_one(
    source: Path | str,
    *,
    title: str,
    config: Config,
    suites: tuple[str, ...] | None,
    limit: int | None,
    categories: tuple[str, ...] | None,
    acebench: Path | None,
    data: Path | None,
    out: Path | None,
    resume: bool,
) -> None:
    """Evaluates a model and prints its table; the same work again answers from the folder it wrote.

    Args:
        source: the model's folder, or its hub id.
        title: the model as the user named it.
        suites, limit, categories (of BFCL), acebench: instead of the configuration's.
        data: the folder of `star synthesize`, else that of the last run.
        out: the folder to write, else one under the home's `evaluations/`.

    Raises:
        InputError: the model, the data or a suite is not there.
    """
    settings = _settings(config.evaluate, suites=suites, limit=limit, bfcl_categories=categories, acebench=acebench)
    config = config.model_copy(update={"evaluate": settings})
    data = _data(data) if "heldout" in settings.suites else None
    out = (out or home() / "evaluations" / re.sub(r"[^\w.-]+", "_", title).strip("._")).absolute()

    def describe() -> Manifest:
        inputs: dict[str, Manifest | str] = {"model": _content(source)}
        if data:
            inputs["data"] = open_input(data, stage="synthesize")
        settled = json.dumps([title, config.slice(("seed", "evaluate"))])
        return describe_work(STAGE, settings=settled, code=code_digest(evaluate_models_of), inputs=inputs)

    def work(workspace: Workspace, manifest: Manifest) -> Result:
        return Result(evaluate_models_of(source, data, config=config, work=workspace, title=title))

    run_once(describe, work, out=out, resume=resume)
    print((out / "report.md").read_text(encoding="utf-8"))
    print(f"{out / 'report.html'}", file=sys.stderr)


def evaluate_models_of(source: Path | str, data: Path | None, *, config: Config, work, title: str) -> dict[str, float]:
    """evaluate_models of one model."""
    from star.evaluation.suite import evaluate_models

    return evaluate_models({_label(title): source}, data, config=config, work=work, title=f"Evaluation of {title}")


def _label(model: str) -> str:
    return Path(model).name or model


def _settings(settings: Evaluate, **given: object) -> Evaluate:
    changed = {key: str(value) if key == "acebench" else value for key, value in given.items() if value is not None}
    try:
        return Evaluate.model_validate({**settings.model_dump(), **changed})
    except ValidationError as error:
        said = error.errors()[0]
        option = "--suite: " if said["loc"] else ""  # a rule about several fields names them itself
        raise InputError(option + said["msg"].removeprefix("Value error, ")) from None


def _data(data: Path | None) -> Path:
    latest = home() / "latest" / "synthesize"
    if data is None and not latest.is_dir():
        raise InputError(
            "the suite heldout needs rows: give --data, the folder of `star synthesize`, or run `star run` first"
        )
    return data or latest


def _content(source: Path | str) -> str:
    """What the model is: a digest over its files, or its id."""
    if isinstance(source, str):
        return source
    files = sorted(file for file in source.iterdir() if file.suffix in (".json", ".safetensors", ".jinja"))
    made = {METRICS, "manifest.json"}
    return digest_of([(file.name, sha256_of(file)) for file in files if file.name not in made])
