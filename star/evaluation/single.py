"""One model on chosen suites: what `star evaluate --model` does. Under the storage's contract: whole or not there, resumed after a kill."""

import re
import sys
from pathlib import Path

from pydantic import ValidationError

from star.code import code_digest
from star.config import Config, Evaluate, sha256_of
from star.errors import InputError
from star.inference import names_version, resolve_model
from star.registry.tracking import home
from star.storage import (
    METRICS,
    Manifest,
    digest_of,
    is_finished,
    open_input,
    partial_folder,
    publish,
    refuse_foreign,
    write_json,
)

STAGE = "evaluate-model"


def evaluate_one(
    model: str,
    *,
    config: Config,
    suites: tuple[str, ...] | None,
    limit: int | None,
    categories: tuple[str, ...] | None,
    acebench: Path | None,
    data: Path | None,
    name: str,
    out: Path | None,
    resume: bool,
) -> None:
    """Evaluates a model and prints its table; the same work again answers from the folder it wrote.

    Args:
        model: a folder, an alias or version of the registered model `name`, or a hub id.
        suites, limit, categories (of BFCL), acebench: instead of the configuration's.
        data: the folder of `star synthesize`, else that of the last run.
        out: the folder to write, else one under the home's `evaluations/`.

    Raises:
        InputError: the model, the data or a suite is not there.
    """
    settings = _settings(config.evaluate, suites=suites, limit=limit, bfcl_categories=categories, acebench=acebench)
    config = config.model_copy(update={"evaluate": settings})
    source = _source(model, name=name)
    data = _data(data) if "heldout" in settings.suites else None
    out = (out or home() / "evaluations" / re.sub(r"[^\w.-]+", "_", model).strip("._")).absolute()
    refuse_foreign(out)
    inputs = {"model": _content(source), **({"data": open_input(data, stage="synthesize").digest} if data else {})}
    digest = digest_of(config.slice(("seed", "evaluate")))
    code = code_digest(evaluate_models_of)
    fingerprint = digest_of([STAGE, model, digest, code, inputs])
    if not is_finished(out, fingerprint=fingerprint):
        with partial_folder(out, stage=STAGE, fingerprint=fingerprint, resume=resume) as work:
            metrics = evaluate_models_of(source, data, config=config, work=work, title=model)
            write_json(work.out / METRICS, metrics)
            publish(work.out, out=out, manifest=Manifest(STAGE, fingerprint, digest, code, "", inputs))
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


def _source(model: str, *, name: str) -> Path | str:
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists() and not names_version(model)
    return model if is_hub_id else resolve_model(model, name=name)


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
