"""Runs a training on several nodes, as a TrainJob of Kubeflow Trainer v2 that the stage's task creates and waits for.

Worked example. The profile has `train_jobs: {distill: {nodes: 2}}`, `work_claim: star-work` and nodes of 8 GPUs. The task `distill` gets
this environment (star/pipelines/resources.py):

    STAR_TRAIN_JOB={"train_jobs": {"distill": {}}, "work_claim": "star-work", ...}
    STAR_IMAGE=registry.example.com/star-python:1
    STAR_WORK=/var/star/work
    KFP_RUN_ID=5a1c

The volume of `work_claim` is mounted in the task's pod and in the job's pods. There the task writes the inputs, and rank 0 the result:

    /var/star/work/jobs/5a1c/star-distill-0f3b21c4d5e6/topk/            verified copy of the input
                                                      /settings.json    sections of the configuration that the stage reads
                                                      /out/             result

The task creates this job (shortened; see job_manifest) and prints the log of its first pod until it is complete:

    metadata: {name: star-distill-0f3b21c4d5e6-0}
    spec:
      runtimeRef: {name: star-torch}
      trainer:
        image: registry.example.com/star-python:1
        numNodes: 2
        numProcPerNode: 8
        command: [python, -m, torch.distributed.run, ..., -m, star.cli, distill, --config=.../settings.json, --topk=.../topk, --out=.../out]

Kubeflow Trainer starts 2 pods and tells torchrun about the others in PET_ variables (PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, ...).
At the end the task copies `out` to its own output and deletes the job. `out` itself stays for a retry until the exit handler removes it.

What happens on failure:

- A process or a pod fails: the job fails and the task raises RuntimeError. The failed job stays for `kubectl describe`. KFP's retry
  creates a new job, ...-1, because the name of a deleted job is not free at once. It resumes from the last checkpoint in STAR_WORK.
- The task's pod is lost: the job trains on. KFP's retry waits for that job, or copies its result if it is complete.
- The task receives SIGTERM: it deletes the job. The pods save a checkpoint, from which a new run of the pipeline resumes.
- The cluster's API does not answer for MAX_FAILED_POLLS polls: the task fails, the job trains on, and KFP's retry waits for it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.cluster.torchrun import stage_command, torchrun_command, write_settings
from star.config.cluster import CERTIFICATES_PATH, Cluster, Node, TrainingStage
from star.config.experiment import Config
from star.errors import InputError
from star.folders.manifest import METRICS, open_input, read_manifest
from star.folders.owners import create_private
from star.folders.publish import copy_folder_atomically
from star.folders.working_paths import train_jobs_folder
from star.hashing import digest_of
from star.progress import print_line
from star.sigterm import sigterm_raises_system_exit
from star.stages import Metrics, stage_named

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient
    from kubeflow.trainer.types.types import Runtime

POLL_SECONDS = 10.0
MAX_FAILED_POLLS = 30  # consecutive polls without an answer before the task fails
DELETE_ATTEMPTS = 5
GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
NODE = "node"  # name of the pods' job and container in deploy/multinode/runtime.yaml
PATCH_MANAGER = "star-distill/launcher"  # owner of the runtime patch, as other controllers name theirs
# The rendezvous waits an hour because a node may have to be provisioned. Processes that receive SIGTERM get 90 s to save a checkpoint.
TORCHRUN_FLAGS = ("--rdzv-conf=timeout=3600", "--shutdown-timeout=90")
NO_PRIVILEGES = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# Variables of the task that its pods need too. Secrets are not among them: the manifest refers to them by name.
PASSED_VARIABLES = (
    "STAR_IMAGE", "STAR_WORK", "STAR_HOME", "STAR_SHARED_WITH", "STAR_CHECKPOINTS", "STAR_ACCELERATORS", "KFP_RUN_ID",
    "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID",
)  # fmt: skip


def run_train_job(
    stage: TrainingStage, config: Config, *, cluster: Cluster, inputs: dict[str, Path], out: Path
) -> Metrics:
    """Runs a training stage as a TrainJob and copies its result to `out`.

    Raises:
        RuntimeError: the job failed, or the cluster's API did not answer. The log has what the first pod printed.
        InputError: the training runtime does not exist, or the account may not use it.
        SystemExit: the task received SIGTERM and has deleted the job.
    """
    if not os.environ.get("STAR_WORK"):
        raise InputError("STAR_WORK is not set: a TrainJob needs the volume of `cluster.work_claim` there")
    run_id = os.environ.get("KFP_RUN_ID", "no-run")
    # The name depends on everything that the result depends on, so that a retry of the same task finds its job.
    digests = {key: read_manifest(folder).digest for key, folder in inputs.items()}
    name = f"star-{stage}-{digest_of([stage, config.slice(stage_named(stage).sections), digests, run_id])[:12]}"
    exchange = train_jobs_folder(run_id) / name
    result = exchange / "out"
    # Before anything there is read: whoever can guess the names could put a result there.
    for folder in (exchange.parent.parent, exchange.parent, exchange):
        create_private(folder)
    # The task's pod may have been lost after the job was complete. Its retry then only copies the result.
    if not _is_finished(result, stage):
        job = RetriedJob(name, runtime=cluster.train_jobs[stage].runtime)
        # Without a deletion the pods would train on after the run was cancelled, and hold their accelerators.
        with sigterm_raises_system_exit(ignore_repeats=True):
            try:
                copies = _copy_inputs(stage, inputs, exchange)
                settings = write_settings(stage, config, exchange)
                command = stage_command(stage, settings=settings, inputs=copies, out=result)
                job.create_or_resume(job_manifest(stage, cluster=cluster, command=command, environment=os.environ))
                job.wait_until_complete()
            except (SystemExit, KeyboardInterrupt):
                job.delete()
                raise
        job.delete()
        # Complete is what Kubernetes says about the pods. Whether the result is whole, only its manifest says.
        open_input(result, stage=stage)
    copy_folder_atomically(result, out)
    # Only the copied inputs go. The result stays for a retry until the exit handler removes it.
    for key in inputs:
        shutil.rmtree(exchange / key, ignore_errors=True)
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def job_manifest(
    stage: TrainingStage, *, cluster: Cluster, command: list[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    """The TrainJob's manifest, without its name: pods as the stage's node describes them, with the task's variables and secrets.

    Args:
        stage: Name of the stage.
        cluster: The section `cluster` of the configuration.
        command: What torchrun starts in every process, from star.cluster.torchrun.stage_command.
        environment: The task's environment. The variables in PASSED_VARIABLES are passed to the pods.
    """
    node, job = cluster.node_of(stage), cluster.train_jobs[stage]
    accelerators = {node.accelerator: str(node.accelerators)} if node.accelerator else {}
    resources = {
        "requests": {**node.requests, **accelerators},
        "limits": {"cpu": node.cpu, "memory": node.memory, **accelerators},
    }
    passed = {key: environment[key] for key in PASSED_VARIABLES if key in environment}
    plain = [{"name": key, "value": value} for key, value in {**cluster.variables, **passed}.items()]
    secret = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}
        for secret, variables in cluster.secrets_of(stage).items()
        for variable, key in variables.items()
    ]
    pod = {
        # Istio's sidecar breaks torchrun's rendezvous, so the pods must have none (kubeflow/trainer#2794).
        "metadata": {"labels": {"star/task": stage, "sidecar.istio.io/inject": "false"}},
        "spec": _pod_spec(node, cluster, work_folder=environment["STAR_WORK"]),
    }
    # The Trainer has no field of its own for volumes, node selectors and tolerations, so they patch the runtime's pods.
    patched_job = {"name": NODE, "template": {"spec": {"template": pod}}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        # The queue is that of the whole job: its pods start together.
        "metadata": {"labels": {"star/task": stage, **cluster.queue_labels}},
        "spec": {
            "runtimeRef": {"name": job.runtime},
            "trainer": {
                "image": environment["STAR_IMAGE"],
                "command": [*torchrun_command(*TORCHRUN_FLAGS), *command],
                "env": [*plain, *secret],
                "numNodes": job.nodes,
                "numProcPerNode": node.processes,
                "resourcesPerNode": resources,
            },
            "runtimePatches": [
                {
                    "manager": PATCH_MANAGER,
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patched_job]}}},
                }
            ],
        },
    }


def _pod_spec(node: Node, cluster: Cluster, *, work_folder: str) -> dict[str, Any]:
    # The volume is mounted at the same path as in the task (STAR_WORK is a folder on it), so that paths are valid in both.
    volumes: list[dict[str, Any]] = [{"name": "work", "persistentVolumeClaim": {"claimName": cluster.work_claim}}]
    mounts: list[dict[str, Any]] = [{"name": "work", "mountPath": str(Path(work_folder).parent)}]
    if cluster.certificates:
        volumes.append({"name": "certificates", "configMap": {"name": cluster.certificates, "optional": True}})
        mounts.append({"name": "certificates", "mountPath": CERTIFICATES_PATH, "readOnly": True})
    # A container has 64 MB of /dev/shm, which data loaders can fill; the pod is then killed with exit code 137.
    if node.shm:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": node.shm}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - a mount of the pod, no temporary file
    pod: dict[str, Any] = {
        # As the pod security level `restricted` wants it, also in a runtime that is not ours.
        "securityContext": {
            "runAsUser": cluster.run_as_user,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
        "containers": [{"name": NODE, "volumeMounts": mounts, "securityContext": NO_PRIVILEGES}],
    }
    if node.node_selector:
        pod["nodeSelector"] = node.node_selector
    if node.tolerations:
        pod["tolerations"] = [taint.model_dump(exclude_none=True) for taint in node.tolerations]
    if cluster.service_account:
        pod["serviceAccountName"] = cluster.service_account
    return pod


class RetriedJob:
    """The TrainJobs of one training in this namespace, one per attempt: NAME-0, and NAME-1 after NAME-0 failed.

    Attributes:
        attempt: Number of the job that is waited for; None before create_or_resume has chosen it.
    """

    def __init__(self, name: str, *, runtime: str) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        self.client = trainer_client()
        self.runtime = find_runtime(self.client, runtime)
        backend = self.client.backend
        self.api = backend.custom_api
        self.path = (GROUP, VERSION, backend.namespace, "trainjobs")
        self.api_error, self.request_errors = ApiException, (ApiException, HTTPError)
        self.name = name
        self.attempt: int | None = None
        self.lines_printed = 0

    def create_or_resume(self, manifest: dict[str, Any]) -> None:
        """Creates the job of this attempt, or goes on with the job of an earlier attempt if that is still running."""
        # A complete job is passed over like a failed one: its result was looked for before, and is missing or not valid.
        ended = ("Failed", "Complete")
        self.attempt, state = next(
            (attempt, state) for attempt in itertools.count() if (state := self._state(attempt)) not in ended
        )
        name = self._name_of(self.attempt)
        if state:
            print_line(f"going on with TrainJob {name}")
            return
        manifest["metadata"]["name"] = name
        # The name may be that of a ClusterTrainingRuntime, which the reference must say.
        manifest["spec"]["runtimeRef"]["kind"] = self.runtime.kind.value
        self.api.create_namespaced_custom_object(*self.path, manifest)
        print_line(f"started TrainJob {name}")

    def wait_until_complete(self) -> None:
        """Prints the first pod's log until the job is complete.

        Raises:
            RuntimeError: the job failed or was deleted, or the cluster's API did not answer MAX_FAILED_POLLS times.
        """
        assert self.attempt is not None, "create_or_resume comes first"  # noqa: S101 - a mistake of the caller
        name = self._name_of(self.attempt)
        failed_polls = 0
        while True:
            state: str | None
            try:
                state, failed_polls = self._state(self.attempt), 0
            except self.request_errors as error:
                # The job trains on without this task, so one unanswered poll is no reason to fail.
                state, failed_polls = "unknown", failed_polls + 1
                if failed_polls == MAX_FAILED_POLLS:
                    raise RuntimeError(f"the state of TrainJob {name} could not be read: {error}") from error
            with suppress(Exception):  # a log that cannot be read must not end the training
                self._print_new_log_lines(name)
            if state == "Complete":
                return
            if state in ("Failed", None):
                ended = "failed" if state else "was deleted"
                raise RuntimeError(f"TrainJob {name} {ended}: kubectl describe trainjob {name}")
            time.sleep(POLL_SECONDS)

    def delete(self) -> None:
        """Deletes the jobs of all attempts, the running one first."""
        # SIGTERM may arrive before the attempt is known: then every job from 0 upwards is deleted, until there is none.
        attempts = itertools.count() if self.attempt is None else range(self.attempt, -1, -1)
        for attempt in attempts:
            if not self._delete_attempt(attempt) and self.attempt is None:
                return

    def _delete_attempt(self, attempt: int) -> bool:
        """Returns whether a job was deleted. A job that cannot be deleted is a line in the log: the training itself is not affected."""
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_incrementing

        def is_missing(error: BaseException) -> bool:
            return getattr(error, "status", None) == 404

        name = self._name_of(attempt)
        retrying = Retrying(
            # A job that is missing is as good as deleted, so 404 is not retried.
            retry=retry_if_exception(lambda error: isinstance(error, self.request_errors) and not is_missing(error)),
            stop=stop_after_attempt(DELETE_ATTEMPTS),
            wait=wait_incrementing(start=0.0, increment=0.2),
            reraise=True,
        )
        try:
            retrying(self.api.delete_namespaced_custom_object, *self.path, name)
            return True
        except self.request_errors as error:
            if not is_missing(error):
                print_line(f"TrainJob {name} could not be deleted ({error}): kubectl delete trainjob {name}")
            return False

    def _name_of(self, attempt: int) -> str:
        return f"{self.name}-{attempt}"

    def _state(self, attempt: int) -> str | None:
        """Complete, Failed, Running (also while its pods wait for a node), or None if there is no such job."""
        try:
            job = self.api.get_namespaced_custom_object(*self.path, self._name_of(attempt))
        except self.api_error as error:
            if error.status == 404:
                return None
            raise
        conditions = job.get("status", {}).get("conditions", [])
        true = {condition["type"] for condition in conditions if condition["status"] == "True"}
        return next((end for end in ("Complete", "Failed") if end in true), "Running")

    def _print_new_log_lines(self, name: str) -> None:
        lines = list(self.client.get_job_logs(name))
        if len(lines) < self.lines_printed:  # the pod was restarted, and its log with it
            self.lines_printed = 0
        for line in lines[self.lines_printed :]:
            print_line(line)
        self.lines_printed = len(lines)


def trainer_client() -> TrainerClient:
    """Connects Kubeflow Trainer's client to the cluster.

    Raises:
        InputError: the package kubeflow is not installed, or there is no cluster.
    """
    try:
        from kubeflow.trainer import TrainerClient
    except ImportError:
        raise InputError(
            "`cluster.train_jobs` needs the package kubeflow: pip install 'star-distill[kubernetes]'"
        ) from None
    from kubernetes.config import ConfigException

    try:
        return TrainerClient()
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


def _copy_inputs(stage: TrainingStage, inputs: dict[str, Path], exchange: Path) -> dict[str, Path]:
    """Verifies the inputs and copies them to where the pods read them. Copies of an earlier attempt are kept."""
    copies = {key: exchange / key for key in inputs}
    for key, folder in inputs.items():
        # A copy is renamed to its place when it is complete, so one that exists is whole even after a kill.
        if not copies[key].is_dir():
            open_input(folder, stage=stage_named(stage).inputs[key])
            copy_folder_atomically(folder, copies[key])
    return copies


def _is_finished(folder: Path, stage: TrainingStage) -> bool:
    try:
        open_input(folder, stage=stage)
    except InputError:
        return False
    return True
