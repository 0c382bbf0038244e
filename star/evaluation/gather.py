"""What an evaluation gathers of its models before anything is scored: outcomes, verdicts, sizes, timing, where the models come from.

It is JSON and holds the answers of whole batches and categories only, so that parts of it, gathered apart, are put together and scored
as if one process had asked them all (star/evaluation/suite.py).
"""

import gc
import json
from collections.abc import Iterator
from pathlib import Path

from star.config.experiment import Config
from star.data.rows import read_rows
from star.evaluation.candidate import Candidate
from star.evaluation.heldout import ask_heldout, called_tools
from star.evaluation.journal import Journal
from star.folders.manifest import WHOLE, Part, read_manifest
from star.json_file import write_json
from star.modeling.models import count_parameters, load_model, load_tokenizer
from star.modeling.prompts import render_rows

PHASES = ("warmup", "sft", "ckd", "simrl")  # of trainings, in the order in which they happen
Model = Path | str
Gathered = dict


def gather(
    models: dict[str, Model], data: Path | None, *, config: Config, state: Path, title: str, part: Part = WHOLE
) -> Gathered:
    """Asks each model its part of every suite, a finished one not again after a kill.

    Args:
        models: folders or hub ids by the name they are shown under.
        data: the folder of `star synthesize`; needed for the suite heldout only.
        state: the folder for what a killed evaluation goes on from.

    Returns:
        `title`, `settings`, `models` (each with `name`, its size, `timing`, and what each of the `suites` gathered; a suite of which the
        part has no batch or category gathered nothing), `curves`, `lineage`, `stages`.
    """
    folders = {name: model for name, model in models.items() if isinstance(model, Path)}
    asked = [_ask_once(name, model, data, config=config, state=state, part=part) for name, model in models.items()]
    return {
        "title": title,
        "settings": json.loads(config.slice(("seed", "evaluate"))),
        "models": asked,
        "curves": {name: curve for folder in folders.values() for name, curve in _curves(folder)},
        "lineage": _lineage({**({"data": data} if data else {}), **folders}),
        "stages": _stages(list(models.values())[-1]),
    }


def _ask_once(name: str, model: Model, data: Path | None, *, config: Config, state: Path, part: Part) -> dict:
    finished = state / f"{name}.json"
    if not finished.exists():
        write_json(finished, {"name": name, **_ask(name, model, data, config=config, state=state, part=part)})
    return json.loads(finished.read_text(encoding="utf-8"))


def _ask(name: str, model: Model, data: Path | None, *, config: Config, state: Path, part: Part) -> dict:
    tokenizer, loaded = load_tokenizer(model), load_model(model)
    journal = Journal(state / f"{name}.jsonl")
    candidate = Candidate(name, loaded, tokenizer, config.evaluate, config.seed, journal, part)
    suites = {suite: _SUITES[suite](candidate, data) for suite in config.evaluate.suites}
    timing = {"tokens": candidate.tokens, "seconds": candidate.seconds}
    if candidate.seconds:
        timing["latency"] = candidate.latency()
    size = {"parameters": count_parameters(loaded), "memory": loaded.get_memory_footprint()}
    del loaded, candidate
    gc.collect()
    return {**size, "timing": timing, "suites": suites}


def _heldout(candidate: Candidate, data: Path) -> list[dict]:
    rows = list(read_rows(data / "heldout.jsonl"))
    seen = called_tools(list(read_rows(data / "train.jsonl")))
    return ask_heldout(candidate, rows, render_rows(rows, candidate.tokenizer), seen_tools=seen)


def _bfcl(candidate: Candidate, data: Path | None) -> dict | None:
    from star.config.bfcl_categories import CATEGORIES
    from star.evaluation.bfcl.run import run_harness

    categories = candidate.part.of(list(dict.fromkeys(candidate.settings.bfcl_categories or CATEGORIES)))
    if not categories:
        return None
    return run_harness(
        lambda queries: candidate.reply("bfcl", [query["prompt"] for query in queries]),
        label=f"BFCL of the {candidate.name} model",
        categories=tuple(categories),
        limit=candidate.settings.limit,
    )


def _acebench(candidate: Candidate, data: Path | None) -> dict | None:
    from star.evaluation.acebench import CATEGORIES, ask_acebench

    categories = candidate.part.of(list(CATEGORIES))
    return ask_acebench(candidate, Path(candidate.settings.acebench), categories=categories) if categories else None


_SUITES = {"heldout": _heldout, "bfcl": _bfcl, "acebench": _acebench}


def _curves(folder: Path) -> Iterator[tuple[str, list[dict]]]:
    phases = {file.stem.removesuffix("_curve"): file for file in sorted(folder.glob("*_curve.json"))}
    for phase in sorted(phases, key=lambda phase: PHASES.index(phase) if phase in PHASES else len(PHASES)):
        yield f"{read_manifest(folder).stage}: {phase}", json.loads(phases[phase].read_text(encoding="utf-8"))


def _lineage(folders: dict[str, Path]) -> dict[str, str]:
    """The digest of every folder that a stage made."""
    made = {name: folder for name, folder in folders.items() if (folder / "manifest.json").is_file()}
    return {name: read_manifest(folder).digest for name, folder in made.items()}


def _stages(model: Model) -> list[dict[str, str]]:
    """The stages that made a model, the last one first: what each wrote, with which settings and code."""
    if not isinstance(model, Path) or not (model / "manifest.json").is_file():
        return []
    manifest = read_manifest(model)
    shown = ("stage", "config_digest", "code_digest", "code_version")
    made = {manifest.digest: manifest.summary(), **manifest.ancestors}
    return [{"digest": digest, **{key: summary[key] for key in shown}} for digest, summary in made.items()]
