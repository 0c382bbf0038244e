"""The end of a pipeline on a cluster, good or bad: runs in MLflow are closed, copies for several nodes are removed, what is unfinished is
named, a webhook hears of it.

Nothing here may hide how the pipeline itself ended: a server or a webhook that does not answer is a line in the log.
"""

import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from star.errors import InputError, redacted
from star.folders.workspace import exchange_folder

WEBHOOK_SECONDS = 10.0
RUN_STATES = {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED"}  # of KFP, to MLflow's; everything else is FAILED


def close_pipeline(run_id: str, *, state: str, failed_task: str, error: str | None) -> dict[str, object]:
    """Closes the runs of a pipeline, removes what its tasks exchanged with TrainJobs, and tells how it ended.

    Args:
        run_id: of the pipeline's run in KFP, which its runs in MLflow are tagged with.
        state: SUCCEEDED, FAILED or CANCELLED.

    Returns:
        the summary that the webhook of STAR_WEBHOOK was sent: run, state, task, error, closed runs, unfinished work that is kept.
    """
    if os.environ.get("STAR_WORK"):
        shutil.rmtree(exchange_folder(run_id), ignore_errors=True)
    closed = _close_runs(run_id, RUN_STATES.get(state, "FAILED"))
    summary = {
        "run": run_id,
        "state": state,
        "task": failed_task,
        "error": redacted(error or "")[:2000],
        "closed_runs": closed,
        "kept": _unfinished(),
    }
    summary["text"] = f"STAR pipeline {run_id}: {state}" + (f" in {failed_task}" if state != "SUCCEEDED" else "")
    print(json.dumps(summary, indent=1), flush=True)
    if url := os.environ.get("STAR_WEBHOOK"):
        _post(url, summary)
    return summary


def _close_runs(run_id: str, status: str) -> list[str]:
    """Ends what a killed pod left RUNNING; returns the names of the stages' runs it ended."""
    from star.home import spools
    from star.tracking.server import connect, experiment_id
    from star.tracking.spool import replay

    try:
        client = connect()
        if spools().is_dir():
            replay(spools())
        wanted = f"attributes.status = 'RUNNING' and tags.`kfp.pipeline_run_id` = '{run_id}'"
        runs = client.search_runs([experiment_id(client)], filter_string=wanted)
        for run in runs:
            client.set_terminated(run.info.run_id, status)
        return sorted(run.info.run_name for run in runs)
    except InputError as error:
        print(f"runs are not closed: {error}", flush=True)
        return []


def _unfinished() -> list[str]:
    """Folders of work that a new run of the same pipeline goes on from."""
    work = os.environ.get("STAR_WORK")
    return sorted(mark.parent.name for mark in Path(work).glob("*/fingerprint")) if work else []


def _post(url: str, summary: dict[str, object]) -> None:
    # An address of a webhook is a secret as a whole; only its host may be shown.
    host = urlsplit(url).hostname
    body = json.dumps(summary).encode()
    try:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS):
            print(f"told the webhook at {host}", flush=True)
    except (OSError, ValueError) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        print(f"the webhook at {host} was not told ({reason}): check STAR_WEBHOOK", flush=True)
