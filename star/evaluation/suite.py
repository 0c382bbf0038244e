"""The evaluation of one or more models: every suite of the configuration, side by side, on the same rows.

What comes out: evaluation.json (scores with intervals, paired comparisons; the same bytes whenever it is run again), outcomes.jsonl (one
line a row, for `star compare`), timing.json (how fast it went), report.html and report.md.
"""

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import median

from star.config.experiment import Config
from star.evaluation.gather import Gathered, Model, gather
from star.evaluation.heldout import score_heldout
from star.evaluation.intervals import paired_difference
from star.evaluation.report import markdown_table, write_report
from star.folders.workspace import Workspace
from star.json_file import write_json
from star.tracking.runs import child_run

EVALUATION, OUTCOMES, TIMING = "evaluation.json", "outcomes.jsonl", "timing.json"
MEASURES = {
    "heldout": {"exact_match": "exact_match", "mean_reward": "reward"},
    "bfcl": {"bfcl": "valid"},
    "acebench": {"acebench": "valid"},
}
Outcomes = dict[str, list[dict]]  # by suite


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
    return complete([gather(models, data, config=config, state=work.state, title=title)], out=work.out)


def complete(parts: list[Gathered], *, out: Path) -> dict[str, float]:
    """Scores what was gathered, all at once or in parts, and writes the files of this module.

    Returns:
        what evaluate_models does.
    """
    settings, names = parts[0]["settings"], [model["name"] for model in parts[0]["models"]]
    shares = {name: [_model_of(part, name) for part in parts] for name in names}
    outcomes: dict[str, Outcomes] = {name: {} for name in names}
    entries = [_entry(shares[name], settings, outcomes[name]) for name in names]
    timing = {name: _timing(shares[name]) for name in names}
    last = names[-1]
    evaluation = {
        "title": parts[0]["title"],
        "suite": {suite: {"rows": len(rows)} for suite, rows in outcomes[last].items()},
        "models": entries,
        "comparisons": [found for a, b in combinations(reversed(outcomes), 2) for found in compare(a, b, outcomes)],
        "comparisons_by_kind": [
            found for a, b in combinations(reversed(outcomes), 2) for found in compare_by_kind(a, b, outcomes)
        ],
        "curves": parts[0]["curves"],
        "failures": _failures(outcomes[last].get("heldout", []), model=last),
        "lineage": parts[0]["lineage"],
        "stages": parts[0]["stages"],
    }
    _write(evaluation, outcomes, timing, out=out)
    scores = {f"{entry['name']}_{key}": score["mean"] for entry in entries for key, score in entry["scores"].items()}
    return scores | {f"{name}_{key}": value for name, taken in timing.items() for key, value in taken.items()}


def log_models(metrics: dict[str, float], gathered: Gathered) -> None:
    """Gives each model a run below the open one, with the metrics of `complete` that are its own."""
    suites = " ".join(gathered["settings"]["evaluate"]["suites"])
    for prefix in (f"{model['name']}_" for model in gathered["models"]):
        with child_run(prefix[:-1], tags={"star.suites": suites}) as child:
            child.log_metrics({k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)})


def compare(a: str, b: str, outcomes: dict[str, Outcomes], *, seed: int = 0) -> list[dict]:
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


def compare_by_kind(a: str, b: str, outcomes: dict[str, Outcomes]) -> Iterator[dict]:
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


def _model_of(part: Gathered, name: str) -> dict:
    return next(model for model in part["models"] if model["name"] == name)


def _entry(shares: list[dict], settings: dict, outcomes: Outcomes) -> dict:
    """A model's entry in the evaluation; its outcomes go into `outcomes`."""
    entry = {**{key: shares[0][key] for key in ("name", "parameters", "memory")}, "scores": {}}
    for suite in settings["evaluate"]["suites"]:
        gathered = [found for share in shares if (found := share["suites"][suite])]
        _SUITES[suite](gathered, settings, entry, outcomes)
    return entry


def _timing(shares: list[dict]) -> dict[str, float]:
    """Of all parts together; none of what was recalled after a kill."""
    taken = [share["timing"] for share in shares]
    seconds, tokens = (sum(timing[key] for timing in taken) for key in ("seconds", "tokens"))
    timing = {"seconds": round(seconds, 1)}
    if seconds:
        timing |= {"tokens_per_second": round(tokens / seconds, 1)}
        timing |= {"latency": round(median(timing["latency"] for timing in taken if "latency" in timing), 3)}
    return timing


def _heldout(gathered: list[list[dict]], settings: dict, entry: dict, outcomes: Outcomes) -> None:
    rows = sorted((outcome for part in gathered for outcome in part), key=lambda outcome: outcome["row"])
    found = score_heldout(rows, samples=settings["evaluate"]["samples"], seed=settings["seed"])
    entry["scores"] |= found.pop("scores")
    entry |= found
    outcomes["heldout"] = rows


def _bfcl(gathered: list[dict], settings: dict, entry: dict, outcomes: Outcomes) -> None:
    from star.config.bfcl_categories import CATEGORIES
    from star.evaluation.bfcl.run import score_bfcl

    found = score_bfcl(gathered, order=settings["evaluate"]["bfcl_categories"] or CATEGORIES)
    verdicts = found.pop("verdicts")
    entry["scores"] |= {f"bfcl_{key}": score for key, score in found["scores"].items()}
    entry["bfcl"] = found
    outcomes["bfcl"] = [{**verdict, "kind": verdict["category"]} for verdict in verdicts]


def _acebench(gathered: list[dict], settings: dict, entry: dict, outcomes: Outcomes) -> None:
    from star.evaluation.acebench import score_acebench

    found = score_acebench(gathered)
    outcomes["acebench"] = found.pop("verdicts")
    entry["scores"] |= {f"acebench_{key}": score for key, score in found["scores"].items()}
    entry["acebench"] = found


_SUITES = {"heldout": _heldout, "bfcl": _bfcl, "acebench": _acebench}


def _write(evaluation: dict, outcomes: dict[str, Outcomes], timing: dict[str, dict], *, out: Path) -> None:
    write_json(out / EVALUATION, evaluation)
    write_json(out / TIMING, timing)
    with (out / OUTCOMES).open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(line) + "\n" for line in _lines(outcomes))
    shown = {**evaluation, "models": [{**entry, **timing[entry["name"]]} for entry in evaluation["models"]]}
    write_report(out / "report.html", shown)
    (out / "report.md").write_text(markdown_table(shown), encoding="utf-8")


def _lines(outcomes: dict[str, Outcomes]) -> Iterator[dict]:
    for model, suites in outcomes.items():
        for suite, rows in suites.items():
            for row in rows:
                measures = {key: row[key] for key in MEASURES[suite].values()}
                yield {"model": model, "suite": suite, "id": row["id"], "kind": row["kind"], **measures}


def _failures(outcomes: list[dict], *, model: str) -> list[dict]:
    wrong = sorted(
        (outcome for outcome in outcomes if not outcome["exact_match"]), key=lambda o: (o["reward"], o["id"])
    )
    shown = ("id", "kind", "query", "expected", "predicted", "reward", "mistake")
    return [{key: o[key] for key in shown} | {"model": model} for o in wrong]
