"""The evaluation of one or more models: every suite of the configuration, side by side, on the same rows.

What comes out: evaluation.json (scores with intervals, paired comparisons; the same bytes whenever it is run again), outcomes.jsonl (one
line a row, for `star compare`), timing.json (how fast it went), report.html and report.md.
"""

import gc
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from star.config import Config
from star.data.rows import read_rows
from star.evaluation.answers import Candidate
from star.evaluation.heldout import called_tools, evaluate_heldout
from star.evaluation.journal import Journal
from star.evaluation.report import markdown_table, write_report
from star.evaluation.statistics import paired_difference
from star.models import count_parameters, load_model, load_tokenizer
from star.prompts import render_rows
from star.storage import Workspace, read_manifest, write_json

EVALUATION, OUTCOMES, TIMING = "evaluation.json", "outcomes.jsonl", "timing.json"
MEASURES = {
    "heldout": {"exact_match": "exact_match", "mean_reward": "reward"},
    "bfcl": {"bfcl": "valid"},
    "acebench": {"acebench": "valid"},
}
PHASES = ("warmup", "sft", "ckd", "simrl")  # of trainings, in the order in which they happen
Model = Path | str


def evaluate_models(
    models: dict[str, Model], data: Path | None, *, config: Config, work: Workspace, title: str
) -> dict[str, float]:
    """Evaluates each model, a finished one not again after a kill, and writes the files of this module.

    Args:
        models: folders or hub ids by the name they are shown under; the last one is what the report is about.
        data: the folder of `star synthesize`; needed for the suite heldout only.

    Returns:
        `<model>_<score>` for every score of every model, and its speed.
    """
    entries = [_evaluate_once(name, model, data, config=config, state=work.state) for name, model in models.items()]
    timing = {entry["name"]: entry.pop("timing") for entry in entries}
    outcomes = {entry["name"]: entry.pop("outcomes") for entry in entries}
    last = entries[-1]["name"]
    folders = {name: model for name, model in models.items() if isinstance(model, Path)}
    evaluation = {
        "title": title,
        "suite": {suite: {"rows": len(rows)} for suite, rows in outcomes[last].items()},
        "models": entries,
        "comparisons": [found for a, b in combinations(reversed(outcomes), 2) for found in compare(a, b, outcomes)],
        "comparisons_by_kind": [
            found for a, b in combinations(reversed(outcomes), 2) for found in compare_by_kind(a, b, outcomes)
        ],
        "curves": {name: curve for folder in folders.values() for name, curve in _curves(folder)},
        "failures": _failures(outcomes[last].get("heldout", []), model=last),
        "lineage": _lineage({**({"data": data} if data else {}), **folders}),
        "stages": _stages(models[last]),
    }
    write_json(work.out / EVALUATION, evaluation)
    write_json(work.out / TIMING, timing)
    with (work.out / OUTCOMES).open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(line) + "\n" for line in _lines(outcomes))
    shown = {**evaluation, "models": [{**entry, **timing[entry["name"]]} for entry in entries]}
    write_report(work.out / "report.html", shown)
    (work.out / "report.md").write_text(markdown_table(shown), encoding="utf-8")
    scores = {f"{entry['name']}_{key}": score["mean"] for entry in entries for key, score in entry["scores"].items()}
    return scores | {f"{name}_{key}": value for name, taken in timing.items() for key, value in taken.items()}


def compare(a: str, b: str, outcomes: dict[str, dict[str, list[dict]]], *, seed: int = 0) -> list[dict]:
    """Paired differences a - b on the rows that both models answered, for every measure of every suite.

    Args:
        outcomes: rows with `id` and the measures, by model and by suite.
    """
    comparisons = []
    for suite, measures in MEASURES.items():
        first, second = ({row["id"]: row for row in outcomes[name].get(suite, [])} for name in (a, b))
        common = [key for key in first if key in second]
        for metric, key in measures.items() if common else ():
            columns = ([float(side[row][key]) for row in common] for side in (first, second))
            found = paired_difference(*columns, seed=seed)
            comparisons.append({"a": a, "b": b, "metric": metric, "rows": len(common), **_named(found)})
    return comparisons


def compare_by_kind(a: str, b: str, outcomes: dict[str, dict[str, list[dict]]]) -> Iterator[dict]:
    """`compare` on each kind of row alone, for a gate that looks at every category."""
    kinds = sorted({row["kind"] for rows in outcomes[a].values() for row in rows})
    for kind in kinds:
        of_kind = {
            name: {suite: [row for row in rows if row["kind"] == kind] for suite, rows in outcomes[name].items()}
            for name in (a, b)
        }
        yield from ({**found, "kind": kind} for found in compare(a, b, of_kind))


def _named(found) -> dict[str, float]:
    return {"difference": found.mean, "low": found.low, "high": found.high, "p_value": found.p_value}


def _evaluate_once(name: str, model: Model, data: Path | None, *, config: Config, state: Path) -> dict:
    finished = state / f"{name}.json"
    if not finished.exists():
        write_json(finished, {"name": name, **_evaluate(name, model, data, config=config, state=state)})
    return json.loads(finished.read_text(encoding="utf-8"))


def _evaluate(name: str, model: Model, data: Path | None, *, config: Config, state: Path) -> dict:
    tokenizer, loaded = load_tokenizer(model), load_model(model)
    journal = Journal(state / f"{name}.jsonl")
    candidate = Candidate(name, loaded, tokenizer, config.evaluate, config.seed, journal)
    entry: dict = {"scores": {}, "outcomes": {}}
    for suite in config.evaluate.suites:
        _SUITES[suite](candidate, entry, data)
    timing = {"seconds": round(candidate.seconds, 1)}
    if candidate.seconds:
        timing |= {"tokens_per_second": round(candidate.tokens / candidate.seconds, 1)}
        timing |= {"latency": round(candidate.latency(), 3)}
    size = {"parameters": count_parameters(loaded), "memory": loaded.get_memory_footprint()}
    del loaded, candidate
    gc.collect()
    return {**size, "timing": timing, **entry}


def _heldout(candidate: Candidate, entry: dict, data: Path) -> None:
    rows = list(read_rows(data / "heldout.jsonl"))
    seen = called_tools(list(read_rows(data / "train.jsonl")))
    prompts = render_rows(rows, candidate.tokenizer)
    found = evaluate_heldout(candidate, rows, prompts, seen_tools=seen)
    entry["scores"] |= found.pop("scores")
    entry["outcomes"]["heldout"] = found.pop("outcomes")
    entry |= found


def _bfcl(candidate: Candidate, entry: dict, data: Path | None) -> None:
    from star.evaluation.bfcl import evaluate_bfcl
    from star.evaluation.bfcl_scores import CATEGORIES

    found = evaluate_bfcl(
        lambda queries: candidate.reply("bfcl", [query["prompt"] for query in queries]),
        label=f"BFCL of the {candidate.name} model",
        categories=candidate.settings.bfcl_categories or CATEGORIES,
        limit=candidate.settings.limit,
    )
    verdicts = found.pop("verdicts")
    entry["scores"] |= {f"bfcl_{key}": score for key, score in found["scores"].items()}
    entry["outcomes"]["bfcl"] = [{**verdict, "kind": verdict["category"]} for verdict in verdicts]
    entry["bfcl"] = found


def _acebench(candidate: Candidate, entry: dict, data: Path | None) -> None:
    from star.evaluation.acebench import evaluate_acebench

    found = evaluate_acebench(candidate, Path(candidate.settings.acebench))
    entry["outcomes"]["acebench"] = found.pop("verdicts")
    entry["scores"] |= {f"acebench_{key}": score for key, score in found["scores"].items()}
    entry["acebench"] = found


_SUITES = {"heldout": _heldout, "bfcl": _bfcl, "acebench": _acebench}


def _lines(outcomes: dict[str, dict[str, list[dict]]]) -> Iterator[dict]:
    for model, suites in outcomes.items():
        for suite, rows in suites.items():
            for row in rows:
                measures = {key: row[key] for key in MEASURES[suite].values()}
                yield {"model": model, "suite": suite, "id": row["id"], "kind": row["kind"], **measures}


def _curves(folder: Path) -> Iterator[tuple[str, list[dict]]]:
    phases = {file.stem.removesuffix("_curve"): file for file in sorted(folder.glob("*_curve.json"))}
    for phase in sorted(phases, key=lambda phase: PHASES.index(phase) if phase in PHASES else len(PHASES)):
        yield f"{read_manifest(folder).stage}: {phase}", json.loads(phases[phase].read_text(encoding="utf-8"))


def _failures(outcomes: list[dict], *, model: str) -> list[dict]:
    wrong = sorted(
        (outcome for outcome in outcomes if not outcome["exact_match"]), key=lambda o: (o["reward"], o["id"])
    )
    shown = ("id", "kind", "query", "expected", "predicted", "reward", "mistake")
    return [{key: o[key] for key in shown} | {"model": model} for o in wrong]


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
