"""Finds out how a pipeline ended, for the exit handler, whose own information may be wrong.

KFP tells the exit handler the state of the tasks before it. Servers up to 2.17.0 say RUNNING there although all tasks have
ended, if the pipeline has a loop (kubeflow/pipelines#13321, #11979). Then these are asked, in this order:

1. KFP's API for the state of the group of tasks that the exit handler belongs to. Its address is KFP_HOST, else that of
   the namespace `kubeflow`. A server for several users wants a token, in the file that KF_PIPELINES_SA_TOKEN_PATH names.
   It goes over http to services of the cluster, as KFP's own client sends it, because servers within clusters have no https.
2. MLflow: `register` is the last task and always runs, so where its run is finished the pipeline succeeded.

If neither knows, the state is ENDED, which claims nothing.
"""

import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from star.errors import InputError
from star.http_client import origin, send
from star.http_exchange import BadStatusError, NoAnswerError
from star.redaction import redacted

SUCCEEDED, FAILED, CANCELLED, ENDED = "SUCCEEDED", "FAILED", "CANCELLED", "ENDED"
# Other words that servers use for them.
SYNONYMS = {"COMPLETE": SUCCEEDED, "CACHED": SUCCEEDED, "SKIPPED": SUCCEEDED, "CANCELED": CANCELLED}
LAST_STAGE = "register"
HOST = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
SHORT_NAME = "ml-pipeline.kubeflow"  # of the same service
GROUP = re.compile(r"exit-handler-\d+")  # KFP's name of the tasks under the exit handler
# The server hears of a state some seconds after it has changed.
ATTEMPTS, PAUSE_SECONDS, TIMEOUT_SECONDS = 6, 5.0, 10.0
MAX_BYTES = 64 * 2**20  # of KFP's description of a run with all its tasks


def final_state(run_id: str, given: str) -> str:
    """SUCCEEDED, FAILED, CANCELLED or ENDED.

    Args:
        run_id: ID of the pipeline run in KFP. Its MLflow runs are tagged with it.
        given: State that KFP told the exit handler.
    """
    return _final(given) or _ask_kfp(run_id) or _ask_mlflow(run_id) or ENDED


def _final(state: str | None) -> str | None:
    """The state under our name for it, or None if it is none that a run ends with."""
    word = (state or "").upper()  # some servers write Succeeded
    word = SYNONYMS.get(word, word)
    return word if word in (SUCCEEDED, FAILED, CANCELLED) else None


def _ask_kfp(run_id: str) -> str | None:
    """The state by KFP's API, or None if there is no server, it does not answer, or it does not know either."""
    host = os.environ.get("KFP_HOST") or (HOST if "KUBERNETES_SERVICE_HOST" in os.environ else None)
    if host is None:
        return None
    token = None
    if (file := os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")) and Path(file).is_file():
        token = Path(file).read_text().strip()
    url = f"{host.rstrip('/')}/apis/v2beta1/runs/{run_id}"
    within_cluster = _is_within_cluster(host)
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            answer = send(
                "GET",
                url,
                name="KFP_HOST",
                seconds=TIMEOUT_SECONDS,
                token=token,
                max_bytes=MAX_BYTES,
                plain_http=within_cluster,
            )
            state = _state_in(answer.checked().document())
        except (InputError, NoAnswerError, BadStatusError, AttributeError, TypeError) as error:
            print(f"KFP could not be asked how the pipeline ended: {redacted(str(error))}", flush=True)
            return None
        if state:
            return state
    return None


def _is_within_cluster(host: str) -> bool:
    """Whether an address can only be a service of the cluster that this process runs in, which has given it its token for KFP."""
    name = (urlsplit(origin(host)).hostname or "").removesuffix(".cluster.local")
    return "KUBERNETES_SERVICE_HOST" in os.environ and (name.endswith(".svc") or name == SHORT_NAME)


def _state_in(run: dict[str, Any]) -> str | None:
    """The state of the tasks under the exit handler in KFP's description of a run; the run itself is still running."""
    # A cancelled run passes through CANCELING, and its tasks end as FAILED.
    if any(entry.get("state") == "CANCELING" for entry in run.get("state_history") or []):
        return CANCELLED
    details = (run.get("run_details") or {}).get("task_details") or []
    # A retried group has entries `exit-handler-1(0)`, ... beside its own, which has the last word.
    own = (task for task in details if GROUP.fullmatch(task.get("display_name") or ""))
    return next((state for task in own if (state := _final(task.get("state")))), None)


def _ask_mlflow(run_id: str) -> str | None:
    """The state by the MLflow runs of the pipeline's stages, or None if MLflow does not answer or they do not tell."""
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
        return None
    stages = [(run.data.tags.get("star.stage"), run.info.status) for run in runs]
    if (LAST_STAGE, "FINISHED") in stages:
        return SUCCEEDED
    return FAILED if any(stage and status == "FAILED" for stage, status in stages) else None
