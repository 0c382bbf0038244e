"""Finds out how a pipeline ended, for the exit handler: the champion, or the task that failed and why.

KFP tells the exit handler the state of the tasks before it, and gives them one name, `exit-handler-1`. Servers up to 2.17.0 say RUNNING
although all tasks have ended, if the pipeline has a loop (kubeflow/pipelines#13321, #11979). So these are asked, in this order:

1. KFP's API, for the tasks of this run and the log of one that failed.
2. MLflow: `register` is the last task and always runs, so where its run is finished the pipeline succeeded. It has noted there which
   version is champion.

If neither knows, the state is what KFP gave, or ENDED, which claims nothing.
"""

import re
import time
from dataclasses import dataclass
from typing import Any

from star.cluster.kfp_in_cluster import KfpInCluster
from star.cluster.pipeline_plan import planned_tasks
from star.cluster.run_tasks import RunStatus, Task, read_run
from star.cluster.task_log import failure_reason
from star.cluster.workflow_nodes import Workflow
from star.config.task_secrets import EXIT_HANDLER
from star.errors import InputError
from star.http_exchange import BadStatusError, NoAnswerError
from star.redaction import redacted

SUCCEEDED, FAILED, CANCELED, ENDED = "SUCCEEDED", "FAILED", "CANCELED", "ENDED"
# Other words that servers use for them.
SYNONYMS = {"COMPLETE": SUCCEEDED, "CACHED": SUCCEEDED, "SKIPPED": SUCCEEDED, "CANCELLED": CANCELED}
LAST_STAGE = "register"
OUTCOME_TAG = "star.outcome"  # of its MLflow run (star/registry/register.py)
GROUP = re.compile(r"exit-handler-\d+")  # KFP's name of the tasks under the exit handler
# The server hears of a state some seconds after it has changed.
ATTEMPTS, PAUSE_SECONDS = 6, 5.0
# What another server, or another form of an answer, can raise.
ERRORS = (InputError, NoAnswerError, BadStatusError, AttributeError, TypeError, KeyError, ValueError)


@dataclass(frozen=True)
class PipelineEnd:
    """How a pipeline ended.

    Attributes:
        state: SUCCEEDED, FAILED, CANCELED or ENDED.
        tasks: names of the tasks that failed, the first one first; of a pipeline that was cancelled, those that ran then.
        reason: why the first of them failed, in one line; where nobody knows the end, what KFP told.
        outcome: which version is champion, after a success.
    """

    state: str
    tasks: tuple[str, ...] = ()
    reason: str = ""
    outcome: str = ""

    @property
    def words(self) -> str:
        """In one line, such as `FAILED in rollout 2/4 and 1 more: train.jsonl, line 4: not a row`."""
        more = f" and {len(self.tasks) - 1} more" if len(self.tasks) > 1 else ""
        where = f" {'while' if self.state == CANCELED else 'in'} {self.tasks[0]}{more}" if self.tasks else ""
        ran = " ran" if where and self.state == CANCELED else ""
        because = self.reason or self.outcome
        return f"{self.state}{where}{ran}{f': {because}' if because else ''}"


def find_end(run_id: str, *, given: str, error: str = "") -> PipelineEnd:
    """How the pipeline ended whose exit handler asks.

    Args:
        run_id: ID of the pipeline run in KFP. Its MLflow runs are tagged with it.
        given: State that KFP told the exit handler.
        error: What KFP told about it.
    """
    end = _ask_kfp(run_id)
    if end is None or end.state in (SUCCEEDED, ENDED):
        known = end.state if end and end.state != ENDED else _final(given)
        end = _ask_mlflow(run_id, known=known)
    if end.state in (FAILED, ENDED) and not end.reason:
        end = PipelineEnd(end.state, end.tasks, error.partition("\n")[0])
    return end


def _final(state: str | None) -> str | None:
    """The state under our name for it, or None if it is none that a run ends with."""
    word = (state or "").upper()  # some servers write Succeeded
    word = SYNONYMS.get(word, word)
    return word if word in (SUCCEEDED, FAILED, CANCELED) else None


def _ask_kfp(run_id: str) -> PipelineEnd | None:
    """The end by KFP's API, ENDED if it does not say one, or None if there is no server or it does not answer."""
    kfp = KfpInCluster()
    if kfp.host is None:
        return None
    workflow, plan = Workflow(), None
    try:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_SECONDS)
            document = kfp.run(run_id)
            plan = planned_tasks(kfp.definition(document)) if plan is None else plan
            end = end_of(document, read_run(document, plan=plan, workflow=workflow))
            if end is None:
                continue
            failed, tasks = end
            names = tuple(task.name for task in tasks)
            return PipelineEnd(failed, names, _reason_of(kfp, run_id, tasks[0]) if failed == FAILED and tasks else "")
        return PipelineEnd(ENDED)
    except ERRORS as error:
        print(f"KFP could not be asked how the pipeline ended: {redacted(str(error))}", flush=True)
        return None


def end_of(document: dict[str, Any], status: RunStatus) -> tuple[str, list[Task]] | None:
    """State and tasks of PipelineEnd, by the answer of KFP's API; None while it does not know. The run itself is still running."""
    tasks = [task for task in status.tasks if task.name != EXIT_HANDLER]
    going = [task for task in tasks if task.state in ("RUNNING", "PENDING")]
    # A cancelled run passes through CANCELING, and its tasks end as FAILED.
    if any(entry.get("state") == "CANCELING" for entry in document.get("state_history") or []):
        return CANCELED, [task for task in tasks if task.state == "CANCELED"] or going
    if going or not tasks:
        return None
    failed = [task for task in tasks if task.state == "FAILED"]
    if failed:
        failed.sort(key=lambda task: (task.ended is None, task.ended))
        return FAILED, failed
    if all(task.state in ("SUCCEEDED", "CACHED") for task in tasks):
        return SUCCEEDED, []
    # What is no task's fault, such as a driver that failed. A retried group has entries `exit-handler-1(0)`, ... beside its own.
    details = document["run_details"]["task_details"]
    groups = [entry for entry in details if GROUP.fullmatch(entry.get("display_name") or "")]
    return next(((state, []) for group in groups if (state := _final(group.get("state")))), None)


def _reason_of(kfp: KfpInCluster, run_id: str, task: Task) -> str:
    """Why a task failed, in one line, by the log of its last pod."""
    if not task.pods:
        return "its pod never started"
    try:
        reason = failure_reason(kfp.log(run_id, task.pods[-1]))
    except ERRORS as error:
        return f"its log could not be read ({redacted(str(error))})"
    if reason and reason.is_error:
        return reason.headline
    limit = f" of {task.memory}" if task.memory else ""
    killed = f"its container may have been killed, as for more memory than its limit{limit} (OOMKilled)"
    return f"no error in its log: {killed}"


def _ask_mlflow(run_id: str, *, known: str | None) -> PipelineEnd:
    """The end by the MLflow runs of the pipeline's stages.

    Args:
        known: the state, if somebody knows it; MLflow then adds which version is champion, or which stage failed.
    """
    from mlflow.exceptions import MlflowException

    from star.tracking.reason import reason_of
    from star.tracking.searches import read_pages
    from star.tracking.server import connect, experiment_id

    try:
        client = connect()
        tagged = f"tags.`kfp.pipeline_run_id` = '{run_id}'"
        runs = list(read_pages(client.search_runs, [experiment_id(client)], filter_string=tagged))
    except (InputError, MlflowException) as error:
        print(f"MLflow could not be asked how the pipeline ended: {reason_of(error)}", flush=True)
        return PipelineEnd(known or ENDED)
    runs.sort(key=lambda run: run.info.start_time or 0)
    stages = [(run.data.tags.get("star.stage", ""), run) for run in runs]
    registered = [run for stage, run in stages if stage == LAST_STAGE and run.info.status == "FINISHED"]
    failed = dict.fromkeys(
        " ".join([stage, *([part] if (part := run.data.tags.get("star.part")) else [])])
        for stage, run in stages
        if stage and run.info.status == "FAILED"
    )
    state = known or (SUCCEEDED if registered else FAILED if failed else ENDED)
    if state == SUCCEEDED:
        return PipelineEnd(SUCCEEDED, outcome=registered[-1].data.tags.get(OUTCOME_TAG, "") if registered else "")
    # A stage that failed and was tried again may have succeeded then: the last one is the cause.
    return PipelineEnd(state, tuple(failed)[-1:] if state == FAILED else ())
