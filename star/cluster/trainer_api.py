"""Creates, reads and deletes TrainJobs of Kubeflow Trainer, and reads their pods, through the cluster's API.

What the controllers do with a TrainJob (Trainer 2.3, JobSet 0.12):

- The Trainer makes a JobSet of the same name, that a Job NAME-node-0, and that one pod per node.
- A job that runs has no condition. `Suspended` is set while Kueue holds a job back.
- When a pod fails, the Job deletes the pods that still run: SIGTERM, then SIGKILL after the grace period. Then come the conditions:
  `Failed` with the reason ReachedMaxRestarts, or `Complete` with AllJobsCompleted after a success.
- Nobody deletes a job that has ended, and a failed one trains once more when its JobSet is deleted. So the exit handler deletes all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from star.errors import InputError, UnavailableError
from star.http_client import within
from star.http_exchange import NoAnswerError
from star.progress import print_line

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient
    from kubeflow.trainer.types.types import Runtime
    from kubernetes.client import V1Pod
    from tenacity import Retrying

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
NODE = "node"  # name of the pods' job and container in deploy/multinode/runtime.yaml
RUN_LABEL = "star/run"  # label of a TrainJob: the pipeline run that it belongs to
JOBSET_LABEL, RANK_LABEL = "jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-completion-index"
COMPLETE, FAILED, SUSPENDED, RUNNING = "Complete", "Failed", "Suspended", "Running"
ENDED = (COMPLETE, FAILED)
ATTEMPTS, PAUSE_SECONDS, TIMEOUT_SECONDS = 5, 1.0, 60.0  # of a request that creates or deletes; the pauses grow


@dataclass(frozen=True)
class State:
    """How a TrainJob is: COMPLETE, FAILED, SUSPENDED or RUNNING (also while its pods wait for a node), and why, if a condition says so."""

    kind: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Pod:
    """One node of a TrainJob.

    Attributes:
        rank: number of the node, from 0.
        started: the container runs, or ran.
        exit_code: of the container that ended, else None.
        reason: why the pod failed, or why it waits: OOMKilled, Evicted, Unschedulable, ImagePullBackOff, ...; empty if it runs.
        deleted: it has received SIGTERM, because it was deleted.
        memory: the limit of its memory.
    """

    name: str
    rank: int
    started: bool
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    finished: datetime | None = None
    deleted: bool = False
    memory: str = ""

    @property
    def has_failed(self) -> bool:
        """Whether the pod ended, and not well."""
        return self.exit_code not in (None, 0) or self.reason in ("Evicted", "NodeLost", "Preempting", "Terminated")


class TrainJobs:
    """The TrainJobs of the namespace that this process runs in, or that KUBECONFIG names."""

    def __init__(self, client: TrainerClient) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        self.custom_api, self.core_api = client.backend.custom_api, client.backend.core_api
        self.namespace: str = client.backend.namespace
        self.errors = (ApiException, HTTPError)  # of a request

    def create(self, manifest: dict[str, Any]) -> None:
        """Creates a TrainJob.

        Raises:
            InputError: the cluster refuses it; the message says why.
            UnavailableError: the API does not answer.
        """
        create = self.custom_api.create_namespaced_custom_object
        try:
            self._retrying()(create, *self._path, manifest, _request_timeout=TIMEOUT_SECONDS)
        except self.errors as error:
            status = getattr(error, "status", None) or 500
            if status == 409:  # the answer to an earlier request was lost
                return
            kind = InputError if status < 500 else UnavailableError
            raise kind(f"TrainJob {manifest['metadata']['name']} could not be created: {reason_of(error)}") from error

    def state(self, name: str) -> State | None:
        """How a TrainJob is; None if there is none of that name."""
        try:
            job = self.custom_api.get_namespaced_custom_object(*self._path, name, _request_timeout=TIMEOUT_SECONDS)
        except self.errors as error:
            if _is_missing(error):
                return None
            raise
        conditions = job.get("status", {}).get("conditions", [])
        true = {condition["type"]: condition for condition in conditions if condition["status"] == "True"}
        for kind in (*ENDED, SUSPENDED):
            if kind in true:
                return State(kind, true[kind].get("reason", ""), true[kind].get("message", ""))
        return State(RUNNING)

    def names_of_run(self, run_id: str) -> list[str]:
        """The names of all TrainJobs of a pipeline run."""
        found = self.custom_api.list_namespaced_custom_object(
            *self._path, label_selector=f"{RUN_LABEL}={run_id}", _request_timeout=TIMEOUT_SECONDS
        )
        return sorted(job["metadata"]["name"] for job in found["items"])

    def delete(self, name: str) -> bool:
        """Returns whether a job was deleted. A job that cannot be deleted is a line in the log: the training itself is not affected."""
        delete = self.custom_api.delete_namespaced_custom_object
        try:
            self._retrying()(delete, *self._path, name, _request_timeout=TIMEOUT_SECONDS)
            return True
        except self.errors as error:
            if not _is_missing(error):
                print_line(f"TrainJob {name} could not be deleted ({error}): kubectl delete trainjob {name}")
            return False

    def pods(self, name: str) -> list[Pod]:
        """The pods of a TrainJob that are there, by their rank."""
        found = self.core_api.list_namespaced_pod(
            self.namespace, label_selector=f"{JOBSET_LABEL}={name}", _request_timeout=TIMEOUT_SECONDS
        )
        pods = [_read_pod(pod) for pod in found.items if RANK_LABEL in (pod.metadata.labels or {})]
        return sorted(pods, key=lambda pod: pod.rank)

    def log(self, pod: str, *, last: int | None = None) -> list[str]:
        """The lines that a pod printed, or the last ones."""
        text = self.core_api.read_namespaced_pod_log(
            name=pod, namespace=self.namespace, container=NODE, tail_lines=last, _request_timeout=TIMEOUT_SECONDS
        )
        return str(text).splitlines()

    def warnings(self, name: str) -> list[str]:
        """What the controllers warn of about a TrainJob, its Job and its pods, each once, such as `FailedCreate: pods ... is forbidden`."""
        found = self.core_api.list_namespaced_event(
            self.namespace, field_selector="type=Warning", _request_timeout=TIMEOUT_SECONDS
        )
        about = [
            event
            for event in found.items
            if event.involved_object.name == name or (event.involved_object.name or "").startswith(f"{name}-")
        ]
        return list(dict.fromkeys(f"{event.reason}: {event.message}" for event in about))

    def _retrying(self) -> Retrying:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_incrementing

        def may_pass(error: BaseException) -> bool:
            status = getattr(error, "status", None)
            return isinstance(error, self.errors) and (not status or status >= 500)

        return Retrying(
            retry=retry_if_exception(may_pass),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_incrementing(start=0.0, increment=PAUSE_SECONDS),
            reraise=True,
        )

    @property
    def _path(self) -> tuple[str, str, str, str]:
        return (GROUP, VERSION, self.namespace, "trainjobs")


def delete_jobs_of_run(run_id: str) -> list[str]:
    """Deletes all TrainJobs of a pipeline run, failed ones too, and returns their names. A cluster that refuses is a line in the log."""
    try:
        jobs = TrainJobs(trainer_client())
        names = jobs.names_of_run(run_id)
    except Exception as error:  # the account lacks the right, the API does not answer: the exit handler goes on
        cure = f"kubectl delete trainjobs -l {RUN_LABEL}={run_id}"
        print_line(f"the TrainJobs of the run could not be listed ({reason_of(error)}): {cure}")
        return []
    return [name for name in names if jobs.delete(name)]


def trainer_client() -> TrainerClient:
    """Connects Kubeflow Trainer's client to the cluster.

    Raises:
        InputError: the package kubeflow is not installed, or there is no cluster.
        UnavailableError: the cluster's API does not answer.
    """
    try:
        from kubeflow.trainer import TrainerClient
    except ImportError:
        raise InputError(
            "`cluster.train_jobs` needs the package kubeflow: pip install 'star-distill[kubernetes]'"
        ) from None
    from kubernetes.config import ConfigException

    try:
        # It asks for the Trainer's version, without a deadline of its own.
        return within(TIMEOUT_SECONDS, TrainerClient)
    except NoAnswerError as error:
        raise UnavailableError(f"the cluster's API cannot be used: {error}") from error
    except ConfigException as error:
        raise InputError(
            f"no cluster to run a TrainJob in ({error}): set KUBECONFIG, or run this in the cluster"
        ) from None


def find_runtime(client: TrainerClient, name: str) -> Runtime:
    """Reads a training runtime of the cluster (deploy/multinode/runtime.yaml is one).

    Raises:
        InputError: the runtime does not exist, or the account may not read it.
    """
    try:
        return client.get_runtime(name)
    except (RuntimeError, TimeoutError) as error:
        # The Trainer's client wraps the API's error, which has the status.
        status = getattr(error.__cause__, "status", None)
        reasons = {403: "the account has no right to read it", 404: "it does not exist"}
        reason = reasons[status] if status in reasons else str(error)
        raise InputError(
            f"training runtime {name}: {reason}; install Kubeflow Trainer 2.2 or newer, and apply deploy/multinode"
        ) from error


def _read_pod(pod: V1Pod) -> Pod:
    status = pod.status
    container = next((entry for entry in status.container_statuses or [] if entry.name == NODE), None)
    state = container.state if container else None
    ended, waiting = (state.terminated, state.waiting) if state else (None, None)
    unscheduled = next(
        (entry for entry in status.conditions or [] if entry.type == "PodScheduled" and entry.status == "False"), None
    )
    # The pod's own reason comes first: the node was lost, or had no room for it any more.
    cause = next((entry for entry in (ended, waiting, unscheduled) if entry), None)
    limits = pod.spec.containers[0].resources.limits if pod.spec.containers[0].resources else None
    return Pod(
        name=pod.metadata.name,
        rank=int(pod.metadata.labels[RANK_LABEL]),
        started=bool(ended or (state and state.running)) or status.phase in ("Running", "Succeeded", "Failed"),
        exit_code=ended.exit_code if ended else None,
        reason=status.reason or (cause.reason if cause else None) or "",
        message=status.message or (cause.message if cause else None) or "",
        finished=ended.finished_at if ended else None,
        deleted=pod.metadata.deletion_timestamp is not None,
        memory=(limits or {}).get("memory", ""),
    )


def _is_missing(error: BaseException) -> bool:
    return getattr(error, "status", None) == 404


def reason_of(error: BaseException) -> str:
    """The error of a request in one line: the API's own message, or the status."""
    if not (status := getattr(error, "status", None)):
        return str(error).partition("\n")[0]
    try:
        message = json.loads(getattr(error, "body", None) or "")["message"]
    except (ValueError, TypeError, KeyError):
        message = getattr(error, "reason", None)
    return f"HTTP {status}: {message}" if message else f"HTTP {status}"
