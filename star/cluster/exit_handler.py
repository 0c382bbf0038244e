"""Exit handler of a pipeline on a cluster: closes MLflow runs, deletes its TrainJobs with their files, notifies the webhook.

The task `finish` (components/finish.py) calls it after the last task, whether the pipeline succeeded, failed or was cancelled.

Nothing here may hide how the pipeline itself ended. A tracking server or a webhook that does not answer is a line in the log, and the
task still succeeds.
"""

import json
import os
import shutil

from star.cluster.accelerator_costs import in_words, log_accelerator_costs
from star.cluster.launch import TRAIN_JOB_VARIABLE
from star.cluster.pipeline_end import CANCELED, ENDED, FAILED, SUCCEEDED, find_end
from star.cluster.trainer_api import delete_jobs_of_run
from star.cluster.webhook import notify_webhook
from star.errors import InputError
from star.folders.working_paths import train_jobs_folder, work_root
from star.redaction import redacted, redacted_values
from star.terminal import guard_terminal

# State of the pipeline -> status of the MLflow runs that it left open. If nobody knows how it ended, they were killed at least.
MLFLOW_STATUS = {SUCCEEDED: "FINISHED", FAILED: "FAILED", CANCELED: "KILLED", ENDED: "KILLED"}
MAX_ERROR_CHARACTERS = 2000


def close_pipeline(run_id: str, *, state: str, error: str | None) -> dict[str, object]:
    """Closes the pipeline's MLflow runs, deletes its TrainJobs and the files shared with them, and notifies the webhook.

    Args:
        run_id: ID of the pipeline run in KFP. Its MLflow runs are tagged with it.
        state: State that KFP gives, which may be wrong: others are asked first (pipeline_end.py).
        error: Message of the failure that KFP gives, if there is one. Secrets are removed from it.

    Returns:
        The summary that is printed and sent to the webhook: run, state, the task that failed and why, the champion, the MLflow runs that
        were closed, the unfinished work that is kept for a retry, how long each stage held accelerators and what that costs, and all of
        it as one line of text.
    """
    guard_terminal()
    # First, because a task that is stopped has no time to do it, and a job that trains on holds accelerators.
    if os.environ.get(TRAIN_JOB_VARIABLE):
        for name in delete_jobs_of_run(run_id):
            print(f"deleted TrainJob {name}", flush=True)
    if work_root():
        # The result of a TrainJob is kept there for a retry of its task. After the end of the pipeline there is none.
        shutil.rmtree(train_jobs_folder(run_id), ignore_errors=True)
    _send_waiting_events()  # before MLflow is asked for states, or given any
    end = find_end(run_id, given=state, error=error or "")
    costs = log_accelerator_costs(run_id)  # before runs are closed, whose end nobody knows
    closed = _close_mlflow_runs(run_id, MLFLOW_STATUS[end.state])
    summary: dict[str, object] = {
        "run": run_id,
        "state": end.state,
        "task": ", ".join(end.tasks),
        "error": redacted(end.reason)[:MAX_ERROR_CHARACTERS],
        "outcome": end.outcome,
        "closed_runs": closed,
        "kept": _unfinished_folders(),
        **({"accelerators": costs} if costs else {}),
    }
    summary["text"] = f"STAR pipeline {run_id}: {end.words}{in_words(costs)}"
    summary = redacted_values(summary)
    print(json.dumps(summary, indent=1), flush=True)
    if url := os.environ.get("STAR_WEBHOOK"):
        notify_webhook(url, summary)
    return summary


def _send_waiting_events() -> None:
    """Sends MLflow what the stages could not send: the server must have it before runs are closed."""
    from star.home import spools_folder
    from star.tracking.sender import replay

    if spools_folder().is_dir():
        replay(spools_folder())


def _close_mlflow_runs(run_id: str, status: str) -> list[str]:
    """Ends the MLflow runs that killed pods left RUNNING and returns their names, sorted."""
    from mlflow.exceptions import MlflowException

    from star.tracking.reason import reason_of
    from star.tracking.searches import read_pages
    from star.tracking.server import connect, experiment_id

    closed: list[str] = []
    try:
        client = connect()
        still_running = f"attributes.status = 'RUNNING' and tags.`kfp.pipeline_run_id` = '{run_id}'"
        runs = list(read_pages(client.search_runs, [experiment_id(client)], filter_string=still_running))
        for run in runs:
            try:
                client.set_terminated(run.info.run_id, status)
                closed.append(run.info.run_name or run.info.run_id)
            except MlflowException as error:  # whoever tags a run of theirs with this pipeline must not keep ours open
                print(f"MLflow run {run.info.run_id} could not be closed: {reason_of(error)}", flush=True)
    # The webhook is still to be told, so nothing that MLflow answers may end this.
    except (InputError, MlflowException) as error:
        print(f"MLflow runs could not be closed: {reason_of(error)}", flush=True)
    return sorted(closed)


def _unfinished_folders() -> list[str]:
    """Names of the work folders from which a new run of the same pipeline resumes."""
    work = work_root()
    # A work folder has its file `fingerprint` until its stage is done.
    return sorted(mark.parent.name for mark in work.glob("*/fingerprint")) if work else []
