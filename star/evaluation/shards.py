"""Evaluates the models of a run: whole, or in shards (`star evaluate --shard i/n`), which `star merge` puts together."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from star.config.experiment import Config
from star.errors import InputError
from star.evaluation.bases import bases_beside, keep_true_bases
from star.evaluation.evaluate import READING, TIMING, log_model_runs, score_and_write
from star.evaluation.gather import gather
from star.evaluation.gathered import Gathered, GatheredModel
from star.folders.manifest import METRICS
from star.folders.shard import WHOLE, Shard
from star.folders.workspace import Workspace
from star.json_file import write_json

GATHERED = "gathered.json"  # questions and answers, not scored yet


def evaluate_run(
    models: Mapping[str, Path], data: Path, *, config: Config, shard: Shard, workspace: Workspace
) -> dict[str, float]:
    """Evaluates teacher, distilled and refined student with their pretrained bases; a shard only gathers their answers.

    Args:
        models: the folders of the trained models, by name, the refined one last.
        data: the folder of `star synthesize`.

    Returns:
        The metrics of `score_and_write`, or of `write_shard`.
    """
    bases = keep_true_bases(bases_beside(config, teacher=models["teacher"]), models)
    gathered = gather(
        {**bases, **models},
        data,
        config=config,
        state=workspace.state,
        title="Teacher, distilled and refined student",
        shard=shard,
    )
    if shard != WHOLE:
        return write_shard(gathered, out=workspace.out)
    metrics = score_and_write([gathered], out=workspace.out)
    log_model_runs(metrics, gathered)
    return metrics


def write_shard(gathered: Gathered, *, out: Path) -> dict[str, float]:
    """Writes what a shard gathered.

    The timing has a file of its own, because it varies between identical runs and is excluded from the content digest.

    Returns:
        `asked`: the number of rows and entries of all suites and models.
    """
    models = [model.to_json() for model in gathered.models]
    timing = {model["name"]: model.pop("timing") for model in models}
    write_json(out / GATHERED, {**asdict(gathered), "models": models, "reading": READING})
    write_json(out / TIMING, timing)
    answers = [answers for model in gathered.models for answers in model.suites.values() if answers]
    return {"asked": sum(len(found if isinstance(found, list) else found["verdicts"]) for found in answers)}


def read_shard(folder: Path) -> Gathered:
    """Reads what `write_shard` wrote.

    Raises:
        InputError: an older STAR wrote it, which counted other answers as valid.
    """
    gathered, timing = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (GATHERED, TIMING))
    if gathered.pop("reading", None) != READING:
        raise InputError(f"an older STAR wrote {folder} and counted other answers as valid: run all shards again")
    models = [GatheredModel.from_json({**model, "timing": timing[model["name"]]}) for model in gathered["models"]]
    return Gathered(**{**gathered, "models": models})


def merge_shards(folders: list[Path], shards: list[Gathered], *, out: Path) -> dict[str, float]:
    """Writes the evaluation that one process would have written.

    Args:
        folders: the folders of all shards, in the order of their numbers.
        shards: what `read_shard` read from them.

    Returns:
        The metrics of `score_and_write`, with the `seconds` of all shards together.
    """
    metrics = score_and_write(shards, out=out)
    seconds = [json.loads((folder / METRICS).read_text(encoding="utf-8"))["seconds"] for folder in folders]
    return metrics | {"seconds": round(sum(seconds), 1)}
