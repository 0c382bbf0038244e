"""The parts of an evaluation on disk: what `star evaluate --shard i/n` writes, and the evaluation that all of them make."""

import json
from pathlib import Path

from star.evaluation.gather import Gathered
from star.evaluation.suite import TIMING, complete
from star.folders.manifest import METRICS
from star.json_file import write_json

GATHERED = "gathered.json"  # what was asked and answered, not scored yet


def write_part(gathered: Gathered, *, out: Path) -> dict[str, float]:
    """Writes what a part gathered. How fast it went has a file of its own, as it does not belong to what a part is.

    Returns:
        `asked`: the rows and entries of all suites and models.
    """
    models = [{key: value for key, value in model.items() if key != "timing"} for model in gathered["models"]]
    write_json(out / GATHERED, {**gathered, "models": models})
    write_json(out / TIMING, {model["name"]: model["timing"] for model in gathered["models"]})
    suites = [found for model in models for found in model["suites"].values() if found]
    return {"asked": sum(len(found if isinstance(found, list) else found["verdicts"]) for found in suites)}


def read_part(folder: Path) -> Gathered:
    """What `write_part` wrote."""
    gathered, timing = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (GATHERED, TIMING))
    models = [{**model, "timing": timing[model["name"]]} for model in gathered["models"]]
    return {**gathered, "models": models}


def merge_parts(folders: list[Path], parts: list[Gathered], *, out: Path) -> dict[str, float]:
    """Writes the evaluation that one process would have made.

    Returns:
        what evaluate_models does, and the `seconds` of all parts.
    """
    metrics = complete(parts, out=out)
    taken = [json.loads((folder / METRICS).read_text(encoding="utf-8"))["seconds"] for folder in folders]
    return metrics | {"seconds": round(sum(taken), 1)}
