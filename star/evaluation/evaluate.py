"""Evaluates one or more models on every configured suite, on the same rows, and writes the results side by side.

It writes evaluation.json (scores with intervals, paired differences; the same bytes on every run), outcomes.jsonl
(one line per row and model, for `star compare`), failures.parquet (every wrong answer with its texts), timing.json
(speed), report.html and report.md.

gather.py asks the models, this file scores the answers, and report.py draws the scores. For example, with teacher and
refined on the suite heldout:

1. `gather` returns a `Gathered` whose two models each hold the outcomes on all held-out rows. With `--shard 1/2` it
   holds every second batch, and `score_and_write` runs when `star merge` has both shards.
2. `SUITES["heldout"].score` turns a model's outcomes into `SuiteScores`: {"exact_match": {"mean": 0.74, "low": 0.70,
   "high": 0.78}, ...}.
3. `paired_differences([("refined", "teacher")], outcomes)` compares both on the rows that both answered.
4. `score_and_write` writes all of it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from star.config.experiment import Config
from star.evaluation.failures import FAILURES, with_short_texts, worst_of, write_failures
from star.evaluation.gather import ModelSource, gather
from star.evaluation.gathered import Gathered, GatheredModel
from star.evaluation.paired_differences import Outcomes, paired_differences, paired_differences_by_kind
from star.evaluation.report import markdown_table, write_report
from star.evaluation.suite_scores import ScoringSettings, SuiteScores
from star.evaluation.suites import SUITES
from star.folders.workspace import Workspace
from star.json_file import write_json
from star.tracking.runs import child_run

EVALUATION, OUTCOMES, TIMING = "evaluation.json", "outcomes.jsonl", "timing.json"
# Value of `reading` in evaluation.json: which texts count as valid answers. In files without it, format errors are those
# of the official reward, which accepts calls that are never closed, and an answer without words counts as a refusal.
READING = "strict"


@dataclass(frozen=True)
class EvaluatedModel:
    """One model's size, speed and scores on every suite.

    Attributes:
        memory: bytes of the weights.
        timing: `seconds`, and where the model generated anything `tokens_per_second` and `latency`, as timing.json
            holds them.
        suites: the scores by suite, in the order of the configuration.
        base: name of the model that this one was trained from, where that is evaluated too.
    """

    name: str
    parameters: int
    memory: int
    timing: dict[str, float]
    suites: dict[str, SuiteScores]
    base: str | None

    @property
    def outcomes(self) -> Outcomes:
        """Each row's measures, by suite."""
        return {suite: found.outcomes for suite, found in self.suites.items()}

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The wrong answers of all suites, each suite's worst first."""
        return [row for found in self.suites.values() for row in found.failures]

    def to_json(self) -> dict[str, Any]:
        """The model's entry in evaluation.json."""
        entry: dict[str, Any] = {"name": self.name, "parameters": self.parameters, "memory": self.memory, "scores": {}}
        if self.base:
            entry["base"] = self.base
        for found in self.suites.values():
            entry["scores"] |= found.scores
            entry |= found.details
        return entry


def evaluate_models(
    models: Mapping[str, ModelSource], data: Path | None, *, config: Config, workspace: Workspace, title: str
) -> dict[str, float]:
    """Asks and scores each model, and writes the files of this module.

    A model that was finished before a kill is not asked again.

    Args:
        models: by the name they are shown under. The report is about the last one.
        data: the folder of `star synthesize`; needed for the suite heldout only.

    Returns:
        `<model>_<score>` for every score of every model, and `<model>_<measure of speed>`.
    """
    gathered = gather(models, data, config=config, state=workspace.state, title=title)
    return score_and_write([gathered], out=workspace.out)


def score_and_write(shards: list[Gathered], *, out: Path) -> dict[str, float]:
    """Scores what one process or several shards gathered, and writes the files of this module.

    Returns:
        The metrics of `evaluate_models`.
    """
    first = shards[0]
    models = [
        _score_model([shard.models[i] for shard in shards], first.scoring_settings) for i in range(len(first.models))
    ]
    last = models[-1]
    outcomes = {model.name: model.outcomes for model in models}
    pairs = _pairs_to_compare(models)
    failures = {model.name: model.failures for model in models}
    worst = worst_of(failures[last.name], model=last.name)
    evaluation = {
        "title": first.title,
        "reading": READING,
        "suite": {suite: {"rows": len(rows)} for suite, rows in last.outcomes.items()},
        "models": [model.to_json() for model in models],
        "comparisons": paired_differences(pairs, outcomes),
        "comparisons_by_kind": paired_differences_by_kind(pairs, outcomes),
        "curves": first.curves,
        "failures": with_short_texts(worst),
        "failure_count": len(failures[last.name]),
        "lineage": first.lineage,
        "decoding": first.decoding,
        "stages": first.stages,
    }
    write_json(out / EVALUATION, evaluation)
    write_failures(out / FAILURES, failures)
    _write_outcomes(out / OUTCOMES, outcomes)
    _write_timing_and_reports(
        {**evaluation, "failures": worst}, {model.name: model.timing for model in models}, out=out
    )
    return _metrics(models)


def log_model_runs(metrics: dict[str, float], gathered: Gathered) -> None:
    """Logs each model's own metrics of `score_and_write` to a child run of the open MLflow run."""
    suites = " ".join(gathered.scoring_settings.suites)
    for model in gathered.models:
        prefix = f"{model.name}_"
        with child_run(model.name, tags={"star.suites": suites, "star.reading": READING}) as child:
            child.log_metrics({k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)})


def _pairs_to_compare(models: list[EvaluatedModel]) -> list[tuple[str, str]]:
    """The last model with each before it, then the last but one, and so on; a base only with those trained from it."""
    bases = {model.base for model in models}
    trained = [model for model in reversed(models) if model.name not in bases]
    pairs = [(a.name, b.name) for a, b in combinations(trained, 2)]
    return pairs + [(model.name, model.base) for model in trained if model.base]


def _score_model(shards: list[GatheredModel], settings: ScoringSettings) -> EvaluatedModel:
    """Scores one model from what each shard gathered of it."""
    suites = {}
    for suite in settings.suites:
        # With more shards than batches or categories, some shards hold nothing of a suite.
        answers = [found for shard in shards if (found := shard.suites[suite])]
        suites[suite] = SUITES[suite].score(answers, settings)
    first = shards[0]
    return EvaluatedModel(first.name, first.parameters, first.memory, _timing_of(shards), suites, first.base)


def _timing_of(shards: list[GatheredModel]) -> dict[str, float]:
    """The time and speed of all shards together, without what was recalled after a kill."""
    seconds = sum(shard.timing.seconds for shard in shards)
    tokens = sum(shard.timing.tokens for shard in shards)
    timing = {"seconds": round(seconds, 1)}
    if seconds:
        latencies = [shard.timing.latency for shard in shards if shard.timing.latency is not None]
        timing |= {"tokens_per_second": round(tokens / seconds, 1), "latency": round(median(latencies), 3)}
    if (training := shards[0].timing.training) is not None:
        timing["training_accelerator_seconds"] = training
    return timing


def _metrics(models: list[EvaluatedModel]) -> dict[str, float]:
    scores = {
        f"{model.name}_{name}": score["mean"]
        for model in models
        for found in model.suites.values()
        for name, score in found.scores.items()
    }
    return scores | {f"{model.name}_{name}": value for model in models for name, value in model.timing.items()}


def _write_timing_and_reports(evaluation: dict[str, Any], timing: dict[str, dict[str, float]], *, out: Path) -> None:
    write_json(out / TIMING, timing)
    # The reports show the speed beside the scores; evaluation.json must not vary with it.
    shown = {**evaluation, "models": [{**entry, **timing[entry["name"]]} for entry in evaluation["models"]]}
    write_report(out / "report.html", shown)
    (out / "report.md").write_text(markdown_table(shown), encoding="utf-8")


def _write_outcomes(file: Path, outcomes: dict[str, Outcomes]) -> None:
    # Only what a comparison needs: the file is published with the model, whose texts would make it many times larger.
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(line) + "\n" for line in _outcome_lines(outcomes))


def _outcome_lines(outcomes: dict[str, Outcomes]) -> Iterator[dict[str, Any]]:
    for model, suites in outcomes.items():
        for suite, rows in suites.items():
            keys = ("id", "kind", *SUITES[suite].measures.values())
            for row in rows:
                yield {"model": model, "suite": suite, **{key: row[key] for key in keys}}
