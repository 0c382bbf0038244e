"""The evaluation of a pipeline run: teacher, distilled and refined student on the same held-out rows, side by side.

The suites are functions of (model, tokenizer, ...) that return a model's entry; held-out is the one there is.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

from star.config import Config
from star.data.rows import read_rows
from star.evaluation.heldout import evaluate_heldout
from star.evaluation.report import markdown_table, write_report
from star.evaluation.statistics import paired_difference
from star.models import load_model, load_tokenizer
from star.prompts import render_rows
from star.storage import Workspace, read_manifest, write_json

EVALUATION = "evaluation.json"
OUTCOMES = "outcomes.json"  # of the refined student, row by row: what a later candidate is compared with
PAIRS = (("distilled", "teacher"), ("refined", "distilled"), ("refined", "teacher"))


def evaluate_models(models: dict[str, Path], data: Path, *, config: Config, work: Workspace) -> dict[str, float]:
    """Evaluates each model folder, a finished one not again after a kill, and writes evaluation.json, report.html and report.md.

    Returns:
        `<model>_<score>` for every score of every model.
    """
    rows = list(read_rows(data / "heldout.jsonl"))
    entries = [_evaluate_once(name, folder, rows, config=config, state=work.state) for name, folder in models.items()]
    outcomes = {entry["name"]: entry.pop("outcomes") for entry in entries}
    evaluation = {
        "title": "Teacher, distilled and refined student",
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "suite": {"heldout": {"rows": len(rows)}},
        "models": entries,
        "comparisons": _compare(outcomes, seed=config.seed),
        "curves": {name: curve for folder in models.values() for name, curve in _curves(folder)},
        "failures": _failures(outcomes["refined"], model="refined"),
        "lineage": _lineage({"data": data, **models}),
    }
    write_json(work.out / EVALUATION, evaluation)
    kept = ("id", "kind", "exact_match", "reward")
    write_json(work.out / OUTCOMES, [{key: outcome[key] for key in kept} for outcome in outcomes["refined"]])
    write_report(work.out / "report.html", evaluation)
    (work.out / "report.md").write_text(markdown_table(evaluation), encoding="utf-8")
    return {f"{entry['name']}_{score}": value["mean"] for entry in entries for score, value in entry["scores"].items()}


def _evaluate_once(name: str, folder: Path, rows: list[dict], *, config: Config, state: Path) -> dict:
    finished = state / f"{name}.json"
    if not finished.exists():
        tokenizer = load_tokenizer(folder)
        prompts = render_rows(rows, tokenizer)
        label = f"evaluate the {name} model"
        entry = evaluate_heldout(
            load_model(folder), tokenizer, rows, prompts, settings=config.evaluate, seed=config.seed, label=label
        )
        write_json(finished, {"name": name, **entry})
    return json.loads(finished.read_text(encoding="utf-8"))


def _compare(outcomes: dict[str, list[dict]], *, seed: int) -> list[dict]:
    comparisons = []
    for a, b in PAIRS:
        for metric, key in (("exact_match", "exact_match"), ("mean_reward", "reward")):
            first, second = ([outcome[key] for outcome in outcomes[name]] for name in (a, b))
            mean, low, high, p_value = paired_difference(first, second, seed=seed)
            comparisons.append(
                {"a": a, "b": b, "metric": metric, "difference": mean, "low": low, "high": high, "p_value": p_value}
            )
    return comparisons


def _curves(folder: Path):
    stage = read_manifest(folder).stage
    for file in sorted(folder.glob("*_curve.json")):
        yield f"{stage}: {file.stem.removesuffix('_curve')}", json.loads(file.read_text(encoding="utf-8"))


def _failures(outcomes: list[dict], *, model: str) -> list[dict]:
    wrong = sorted(
        (outcome for outcome in outcomes if not outcome["exact_match"]), key=lambda o: (o["reward"], o["id"])
    )
    return [
        {key: o[key] for key in ("id", "kind", "query", "expected", "predicted", "reward")} | {"model": model}
        for o in wrong
    ]


def _lineage(folders: dict[str, Path]) -> dict[str, str]:
    return {name: read_manifest(folder).digest for name, folder in folders.items()}
