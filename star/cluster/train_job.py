"""A training on several nodes: a TrainJob of Kubeflow Trainer v2, started and waited for by the stage's task.

The task and the job's pods meet on the volume of `cluster.work_claim`: there the task puts the inputs, the pods train (`star <stage>` under
torchrun, told by the Trainer who they are) and the first of them writes the result, of which the task takes a copy. A task that is tried
again goes on with the job that is still running, or with its result; one that is told to end ends its job. The pipeline's closing task
removes what is left on the volume.
"""

import itertools
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from star.cluster.torchrun import command_of, on_sigterm_exit, torchrun, write_settings
from star.config.cluster import Cluster, Node
from star.config.experiment import Config
from star.errors import InputError
from star.folders.manifest import METRICS, open_input, read_manifest
from star.folders.workspace import copy_whole, exchange_folder
from star.hashing import digest_of
from star.progress import say
from star.stages import Metrics, stage_named

POLL_SECONDS = 10.0
PATIENCE = 30  # looks at the job that may fail one after another before the task gives up, and is tried again
GROUP, VERSION, NODE = "trainer.kubeflow.org", "v1alpha1", "node"
MANAGER = "star-distill/launcher"  # of our runtime patch
# A node may have to be made first; and processes that are told to end save a checkpoint.
TORCHRUN = ("--rdzv-conf=timeout=3600", "--shutdown-timeout=90")
PASSED_ON = (
    "STAR_IMAGE", "STAR_WORK", "STAR_HOME", "STAR_CHECKPOINTS", "KFP_RUN_ID",
    "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID",
)  # fmt: skip


def run_train_job(stage: str, config: Config, *, cluster: Cluster, inputs: dict[str, Path], out: Path) -> Metrics:
    """Runs a stage that trains as a TrainJob and brings its folder to `out`.

    Raises:
        RuntimeError: the job failed, or the cluster cannot be asked; what its first pod printed is in the log.
        InputError: there is no such runtime, or no right to use it.
        SystemExit: the task was told to end; the job is deleted.
    """
    if not os.environ.get("STAR_WORK"):
        raise InputError("STAR_WORK is not set: a TrainJob needs the volume of `cluster.work_claim` there")
    run_id = os.environ.get("KFP_RUN_ID", "no-run")
    digests = {key: read_manifest(folder).digest for key, folder in inputs.items()}
    name = f"star-{stage}-{digest_of([stage, config.slice(stage_named(stage).sections), digests, run_id])[:12]}"
    exchange = exchange_folder(run_id) / name
    result = exchange / "out"
    if not _is_whole(result, stage):
        job = Job(name, runtime=cluster.train_jobs[stage].runtime)
        with on_sigterm_exit():
            try:
                shared = _bring(stage, inputs, exchange)
                command = command_of(stage, settings=write_settings(stage, config, exchange), inputs=shared, out=result)
                job.start(job_manifest(stage, cluster=cluster, command=command, environment=os.environ))
                job.wait()
            except (SystemExit, KeyboardInterrupt):
                job.delete()
                raise
        job.delete()
        open_input(result, stage=stage)
    copy_whole(result, out)
    for key in inputs:
        shutil.rmtree(exchange / key, ignore_errors=True)
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def job_manifest(stage: str, *, cluster: Cluster, command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The TrainJob: pods as the stage's node describes them, with what KFP gives a task of its own.

    Args:
        command: of every process, as `star.cluster.launch.command_of` gives it.
        environment: of the task; what the pods must share of it is passed on.
    """
    node, job = cluster.node_of(stage), cluster.train_jobs[stage]
    resources = {"cpu": node.cpu, "memory": node.memory}
    if node.accelerator:
        resources[node.accelerator] = str(node.accelerators)
    passed_on = {key: environment[key] for key in PASSED_ON if key in environment}
    plain = [{"name": key, "value": value} for key, value in {**cluster.environment, **passed_on}.items()]
    secret = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for secret, variables in cluster.secrets.items()
        for variable, key in variables.items()
    ]
    pod = {"metadata": {"labels": {"star/task": stage}}, "spec": _pod(node, cluster, volume=environment["STAR_WORK"])}
    patched = {"name": NODE, "template": {"spec": {"template": pod}}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"labels": {"star/task": stage}},
        "spec": {
            "runtimeRef": {"name": job.runtime},
            "trainer": {
                "image": environment["STAR_IMAGE"],
                "command": [*torchrun(*TORCHRUN), *command],
                "env": [*plain, *secret],
                "numNodes": job.nodes,
                "numProcPerNode": node.processes,
                "resourcesPerNode": {"requests": resources, "limits": resources},
            },
            "runtimePatches": [
                {
                    "manager": MANAGER,
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patched]}}},
                }
            ],
        },
    }


def _pod(node: Node, cluster: Cluster, *, volume: str) -> dict[str, Any]:
    volumes = [{"name": "work", "persistentVolumeClaim": {"claimName": cluster.work_claim}}]
    mounts = [{"name": "work", "mountPath": str(Path(volume).parent)}]
    if node.shm:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": node.shm}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    pod: dict[str, Any] = {
        "securityContext": {"runAsUser": cluster.run_as_user, "runAsNonRoot": True},
        "volumes": volumes,
        "containers": [{"name": NODE, "volumeMounts": mounts}],
    }
    if node.node_selector:
        pod["nodeSelector"] = node.node_selector
    if node.tolerations:
        pod["tolerations"] = [taint.model_dump(exclude_none=True) for taint in node.tolerations]
    if cluster.service_account:
        pod["serviceAccountName"] = cluster.service_account
    return pod


class Job:
    """The TrainJob of one training in this namespace. It is called NAME-0, and after one that failed NAME-1: names are not free at once."""

    def __init__(self, name: str, *, runtime: str) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        self.client = trainer_client()
        self.runtime = find_runtime(self.client, runtime)
        self.jobs = (GROUP, VERSION, self.client.backend.namespace, "trainjobs")
        self.api, self.faults, self.refused = self.client.backend.custom_api, (ApiException, HTTPError), ApiException
        self.name, self.number, self.shown = name, None, 0

    def start(self, manifest: dict[str, Any]) -> None:
        """Creates the job, unless the one of an earlier try is at work."""
        ended = ("Failed", "Complete")  # a complete one is not here for its result, which was looked for before
        self.number, state = next(
            (number, state) for number in itertools.count() if (state := self._state(number)) not in ended
        )
        if state:
            say(f"going on with TrainJob {self._called(self.number)}")
            return
        manifest["metadata"]["name"] = self._called(self.number)
        manifest["spec"]["runtimeRef"]["kind"] = self.runtime.kind.value
        self.api.create_namespaced_custom_object(*self.jobs, manifest)
        say(f"started TrainJob {self._called(self.number)}")

    def wait(self) -> None:
        """Prints what the first pod prints until the job is complete."""
        failures = 0
        while True:
            try:
                state, failures = self._state(self.number), 0
            except self.faults as error:
                state, failures = "unknown", failures + 1
                if failures == PATIENCE:
                    raise RuntimeError(f"TrainJob {self._called(self.number)} cannot be looked at: {error}") from error
            with suppress(Exception):  # a log that cannot be read decides nothing
                self._show_log()
            if state == "Complete":
                return
            if state in ("Failed", None):
                called = self._called(self.number)
                raise RuntimeError(
                    f"TrainJob {called} {'failed' if state else 'is gone'}: kubectl describe trainjob {called}"
                )
            time.sleep(POLL_SECONDS)

    def delete(self) -> None:
        """Deletes the jobs of all tries, the one at work first."""
        tries = itertools.count() if self.number is None else range(self.number, -1, -1)
        for number in tries:
            if not self._deleted(number) and self.number is None:
                return

    def _deleted(self, number: int) -> bool:
        """Whether there was one to delete. A job that cannot be deleted is told to the user, and is no reason to fail."""
        for attempt in range(5):
            try:
                self.api.delete_namespaced_custom_object(*self.jobs, self._called(number))
                return True
            except self.faults as error:
                if getattr(error, "status", None) == 404:
                    return False
                said = str(error)
                time.sleep(0.2 * attempt)
        say(f"TrainJob {self._called(number)} is not deleted ({said}): kubectl delete trainjob {self._called(number)}")
        return False

    def _called(self, number: int) -> str:
        return f"{self.name}-{number}"

    def _state(self, number: int) -> str | None:
        """Complete, Failed, Running (or waiting to run), or None where there is no such job."""
        try:
            found = self.api.get_namespaced_custom_object(*self.jobs, self._called(number))
        except self.refused as error:
            if error.status == 404:
                return None
            raise
        true = {entry["type"] for entry in found.get("status", {}).get("conditions", []) if entry["status"] == "True"}
        return next((end for end in ("Complete", "Failed") if end in true), "Running")

    def _show_log(self) -> None:
        lines = list(self.client.get_job_logs(self._called(self.number)))
        if len(lines) < self.shown:  # the pod began again, and its log with it
            self.shown = 0
        for line in lines[self.shown :]:
            say(line)
        self.shown = len(lines)


def trainer_client() -> Any:
    """Kubeflow Trainer's client.

    Raises:
        InputError: its package is not there, or no cluster is.
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


def find_runtime(client: Any, name: str) -> Any:
    """A training runtime of the cluster.

    Raises:
        InputError: it is not there, or may not be read.
    """
    try:
        return client.get_runtime(name)
    except (RuntimeError, TimeoutError) as error:
        status = getattr(error.__cause__, "status", None)
        reason = {403: "the account has no right to read it", 404: "there is none"}.get(status, str(error))
        raise InputError(
            f"training runtime {name}: {reason}; install Kubeflow Trainer 2.2 or newer, and apply deploy/multinode"
        ) from error


def _bring(stage: str, inputs: dict[str, Path], exchange: Path) -> dict[str, Path]:
    """Verified copies of the inputs where the pods find them; those of an earlier try are kept."""
    shared = {key: exchange / key for key in inputs}
    for key, folder in inputs.items():
        if not shared[key].is_dir():
            open_input(folder, stage=stage_named(stage).inputs[key])
            copy_whole(folder, shared[key])
    return shared


def _is_whole(folder: Path, stage: str) -> bool:
    try:
        open_input(folder, stage=stage)
    except InputError:
        return False
    return True
