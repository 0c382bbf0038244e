"""Adds up, at the end of a pipeline, how long its stages held accelerators: all shards, all attempts, also those that failed.

    {"seconds": {"refine-teacher": 5400.0, "rollout": 28800.0}, "cost": 23.75, "currency": "EUR"}

The sums are metrics of the pipeline's run in MLflow: accelerator_seconds, accelerator_cost, and both by stage
(`accelerator_seconds/rollout`). A process that was killed is counted up to its last event, if what it left on the volume was sent. A run
that nobody ended, such as that of a pod lost with its disk, is not counted: nobody knows its end.
"""

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from star.errors import InputError
from star.stages import STAGES
from star.tracking.accelerators import COST, SECONDS, TAG, Accelerators
from star.tracking.reason import reason_of
from star.tracking.searches import read_pages
from star.tracking.server import connect, experiment_id, mlflow_key

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STAGE_NAMES = {stage.name for stage in STAGES}


def log_accelerator_costs(run_id: str) -> dict[str, Any]:
    """Logs the sums of a pipeline to its run in MLflow, and returns them; an empty dictionary where no accelerator was held.

    An MLflow that does not answer is a line in the log.

    Args:
        run_id: ID of the pipeline run in KFP. Its MLflow runs are tagged with it.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = connect()
        tagged = f"tags.`kfp.pipeline_run_id` = '{run_id}'"
        runs = list(read_pages(client.search_runs, [experiment_id(client)], filter_string=tagged))
        return _add_up(client, runs)
    except (InputError, MlflowException) as error:
        print(f"the time of accelerators could not be added up: {reason_of(error)}", flush=True)
        return {}


def in_words(costs: dict[str, Any]) -> str:
    """`, 9.5 accelerator-hours (23.75 EUR)`, or nothing where none was held."""
    if not costs:
        return ""
    money = f" ({costs['cost']:.2f} {costs['currency']})" if "cost" in costs else ""
    return f", {sum(costs['seconds'].values()) / 3600:.3g} accelerator-hours{money}"


def _add_up(client: "MlflowClient", runs: list["Run"]) -> dict[str, Any]:
    seconds: dict[str, float] = defaultdict(float)
    costs: dict[str, float] = defaultdict(float)
    currencies: set[str] = set()
    for run in runs:
        stage, held = run.data.tags.get("star.stage", ""), _held_by(run)
        if stage not in STAGE_NAMES or held is None or not run.info.end_time:
            continue
        # A process that was killed has logged no sum. Its events say when it lived.
        lived = (run.info.end_time - run.info.start_time) / 1000
        metrics = run.data.metrics if SECONDS in run.data.metrics else held.metrics(lived)
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        if SECONDS not in metrics:
            continue
        seconds[stage] += metrics[SECONDS]
        if COST in metrics:
            costs[stage] += metrics[COST]
            currencies.add(held.currency)
    if not seconds:
        return {}
    # Two currencies in one pipeline cannot be added up.
    priced = dict(costs) if len(currencies) == 1 else {}
    _log(client, runs, {SECONDS: dict(seconds), **({COST: priced} if priced else {})})
    summary: dict[str, Any] = {"seconds": {stage: round(value, 1) for stage, value in seconds.items()}}
    if priced:
        summary |= {"cost": round(sum(priced.values()), 2), "currency": currencies.pop()}
    return summary


def _held_by(run: "Run") -> Accelerators | None:
    text = run.data.tags.get(TAG)
    try:
        return Accelerators.from_json(text) if text else None
    except (ValueError, RecursionError):  # whoever may write to MLflow may write this tag
        return None


def _log(client: "MlflowClient", runs: list["Run"], sums: dict[str, dict[str, float]]) -> None:
    from mlflow.exceptions import MlflowException

    parent = next(
        (run for run in runs if not run.data.tags.get("star.stage") and "mlflow.parentRunId" not in run.data.tags), None
    )
    if parent is None:
        return
    try:
        for name, by_stage in sums.items():
            client.log_metric(parent.info.run_id, name, sum(by_stage.values()))
            for stage, value in by_stage.items():
                client.log_metric(parent.info.run_id, mlflow_key(f"{name}/{stage}"), value)
    except MlflowException as error:
        print(f"the time of accelerators could not be logged: {reason_of(error)}", flush=True)
