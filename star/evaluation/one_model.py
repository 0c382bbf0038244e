"""Evaluates one model on chosen suites: what `star evaluate --model` does. Resumes after a kill, like a stage."""

import json
import re
import sys
from pathlib import Path

from pydantic import ValidationError

from star.config.evaluation import Evaluate
from star.config.experiment import Config
from star.config.model_files import deciding_files
from star.config.safety import use_safety
from star.digest_cache import Trust, digests_of
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.folders.manifest import METRICS, Manifest, open_input
from star.folders.run_once import Result, draft_manifest, run_once
from star.folders.workspace import Workspace
from star.hashing import digest_of
from star.home import home

STAGE = "evaluate-model"


def choose_suites(config: Config, **options: object) -> Config:
    """Returns the configuration with other settings of `evaluate`, validated like a file. An option of None changes nothing.

    Args:
        options: `suites`, `limit`, `bfcl_categories` and `acebench`, as the section `evaluate` has them.

    Raises:
        InputError: an option is not valid.
    """
    changed = {key: str(value) if key == "acebench" else value for key, value in options.items() if value is not None}
    try:
        settings = Evaluate.model_validate({**config.evaluate.model_dump(), **changed})
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "literal_error":
            known = first["ctx"]["expected"].replace("'", "")
            raise InputError(f"--suite: there is no suite {first['input']!r}: use some of {known}") from None
        option = "--suite: " if first["loc"] else ""  # a rule about several fields names them itself
        raise InputError(option + first["msg"].removeprefix("Value error, ")) from None
    return config.model_copy(update={"evaluate": settings})


def evaluate_one(
    source: Path | str,
    *,
    title: str,
    config: Config,
    data: Path | None,
    out: Path | None,
    resume: bool,
) -> None:
    """Evaluates a model and prints its table. With the same input again, it prints the table of the folder it wrote.

    Args:
        source: the model's folder, or its hub id.
        title: the model as the user named it.
        config: the settings, as `choose_suites` returns them.
        data: the folder of `star synthesize`; None for that of the last run.
        out: the folder to write; None for one under the home's `evaluations/`.
        resume: whether to go on from what an earlier, killed run left.

    Raises:
        InputError: the data does not exist.
    """
    use_safety(config.safety)
    data = _data_or_latest(data) if "heldout" in config.evaluate.suites else None
    out = (out or home() / "evaluations" / re.sub(r"[^\w.-]+", "_", title).strip("._")).absolute()

    # run_once compares this with the folder's manifest to see whether the work was done before.
    def describe() -> Manifest:
        # A hub id stands for itself: the files behind it are not known before they are downloaded.
        inputs: dict[str, Manifest | str] = {"model": _digest_or_id(source)}
        if data:
            inputs["data"] = open_input(data, stage="synthesize")
        settled = json.dumps([title, config.slice(("seed", "precision", "evaluate"))])
        return draft_manifest(STAGE, settings=settled, code=code_digest(_evaluate), inputs=inputs)

    def work(workspace: Workspace, manifest: Manifest) -> Result:
        if data:
            open_input(data, stage="synthesize", trust="own")
        if manifest.inputs["model"] != _digest_or_id(source, trust="own"):
            raise InputError(f"the model in {source} has changed since the evaluation began: start it again")
        return Result(_evaluate(source, data, config=config, workspace=workspace, title=title))

    sources = [folder for folder in (source, data) if isinstance(folder, Path)]
    run_once(describe, work, out=out, resume=resume, sources=sources)
    print((out / "report.md").read_text(encoding="utf-8"))
    print(f"{out / 'report.html'}", file=sys.stderr)


def _evaluate(
    source: Path | str, data: Path | None, *, config: Config, workspace: Workspace, title: str
) -> dict[str, float]:
    # Imported in here, because the code digest is taken over what this function imports.
    from star.evaluation.bases import as_it_can_be_asked
    from star.evaluation.evaluate import evaluate_models

    models = {Path(title).name or title: as_it_can_be_asked(source, title=title)}
    return evaluate_models(models, data, config=config, workspace=workspace, title=f"Evaluation of {title}")


def _data_or_latest(data: Path | None) -> Path:
    latest = home() / "latest" / "synthesize"
    if data is None and not latest.is_dir():
        raise InputError(
            "the suite heldout needs rows: give --data, the folder of `star synthesize`, or run `star run` first"
        )
    return data or latest


def _digest_or_id(source: Path | str, *, trust: Trust = "all") -> str:
    """What identifies the model: the digest of its files, or its hub id."""
    if isinstance(source, str):
        return source
    top = sorted(file.name for file in source.iterdir() if file.suffix in (".json", ".safetensors", ".jinja"))
    # After the others, so that a model without such files has the digest that it always had.
    names = top + [name for name in deciding_files(source) if name not in top]
    # These vary between identical runs: the same weights must have the same digest.
    written_by_stages = {METRICS, "manifest.json"}
    found = digests_of([source / name for name in names if name not in written_by_stages], trust=trust)
    return digest_of([(file.relative_to(source).as_posix(), sha256) for file, sha256 in found.items()])
