"""A training on several nodes: a TrainJob of Kubeflow Trainer v2, started and waited for by the stage's task.

The task and the job's pods meet on the volume of `cluster.work_claim`: there the task puts the inputs, the pods train (`star <stage>` under
torchrun, told by the Trainer who they are) and the first of them writes the result, which the task takes away. A task that is tried again
goes on with the job that is still running; one that is told to end ends its job.
"""

import json
import os
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

from star.cluster import Cluster, Node
from star.config import Config
from star.errors import InputError
from star.launch import command_of, on_sigterm_exit, torchrun, write_settings
from star.progress import say
from star.stages import Metrics, stage_named
from star.storage import METRICS, copy_whole, digest_of, open_input

POLL_SECONDS = 10.0
PATIENCE = 30  # looks at the job that may fail one after another before the task gives up, and is tried again
API, KIND, NODE = "trainer.kubeflow.org/v1alpha1", "TrainJob", "node"
MANAGER = "star-distill/launcher"  # of our runtime patch
PASSED_ON = ("STAR_IMAGE", "STAR_WORK", "STAR_HOME", "STAR_CHECKPOINTS", "KFP_RUN_ID")


def run_train_job(stage: str, config: Config, *, cluster: Cluster, inputs: dict[str, Path], out: Path) -> Metrics:
    """Runs a stage that trains as a TrainJob and brings its folder to `out`.

    Raises:
        RuntimeError: the job failed, or the cluster cannot be asked; the last lines of its first pod are in the log.
        InputError: there is no such runtime, or no right to use it.
        SystemExit: the task was told to end; the job is deleted.
    """
    work = os.environ.get("STAR_WORK")
    if not work:
        raise InputError("STAR_WORK is not set: a TrainJob needs the volume of `cluster.work_claim` there")
    manifests = {key: open_input(folder, stage=stage_named(stage).inputs[key]) for key, folder in inputs.items()}
    content = [
        stage,
        config.slice(stage_named(stage).sections),
        {key: found.digest for key, found in manifests.items()},
    ]
    name = f"star-{stage}-{digest_of([content, os.environ.get('KFP_RUN_ID')])[:12]}"
    exchange = Path(work) / "jobs" / name
    exchange.mkdir(parents=True, exist_ok=True)
    shared = {key: exchange / key for key in inputs}
    for key, folder in inputs.items():
        if not shared[key].is_dir():
            copy_whole(folder, shared[key])
    command = command_of(stage, settings=write_settings(stage, config, exchange), inputs=shared, out=exchange / "out")
    manifest = job_manifest(name, stage, cluster=cluster, command=command, environment=os.environ)
    job = Job(manifest)
    with on_sigterm_exit():
        try:
            job.start(result=exchange / "out", stage=stage)
            job.wait()
        except (SystemExit, KeyboardInterrupt):
            job.delete()
            raise
    open_input(exchange / "out", stage=stage)
    copy_whole(exchange / "out", out)
    job.delete()
    shutil.rmtree(exchange)
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def job_manifest(
    name: str, stage: str, *, cluster: Cluster, command: list[str], environment: dict[str, str]
) -> dict[str, Any]:
    """The TrainJob: pods as the stage's node describes them, with what KFP gives a task of its own.

    Args:
        command: of every process, as `star.launch.command_of` gives it.
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
        "apiVersion": API,
        "kind": KIND,
        "metadata": {"name": name, "labels": {"star/task": stage}},
        "spec": {
            "runtimeRef": {"name": job.runtime},
            "trainer": {
                "image": environment["STAR_IMAGE"],
                "command": [*torchrun(), *command],
                "env": [*plain, *secret],
                "numNodes": job.nodes,
                "numProcPerNode": cluster.processes_of(stage) // job.nodes,
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
    """One TrainJob of this namespace, by its name."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.client = trainer_client()
        self.name = manifest["metadata"]["name"]
        runtime = find_runtime(self.client, manifest["spec"]["runtimeRef"]["name"])
        manifest["spec"]["runtimeRef"]["kind"] = runtime.kind.value
        self.manifest, self.shown = manifest, 0

    def start(self, *, result: Path, stage: str) -> None:
        """Creates the job, unless the one of an earlier try is at work or has done it; a failed one makes room."""
        found = self._status()
        if found == "Failed" or (found == "Complete" and not _is_whole(result, stage)):
            self.delete()
            found = None
        if found:
            say(f"going on with TrainJob {self.name} ({found})")
            return
        backend = self.client.backend
        backend.custom_api.create_namespaced_custom_object(
            *API.split("/"), backend.namespace, "trainjobs", self.manifest
        )
        say(f"started TrainJob {self.name}")

    def wait(self) -> None:
        """Prints what the first pod prints until the job is complete."""
        failures = 0
        while True:
            try:
                status = self._status()
                self._show_log()
                failures = 0
            except (RuntimeError, TimeoutError):
                failures += 1
                if failures == PATIENCE:
                    raise
                status = "unknown"
            if status == "Complete":
                return
            if status in ("Failed", None):
                what = "failed" if status else "is gone"
                raise RuntimeError(f"TrainJob {self.name} {what}: kubectl describe trainjob {self.name}")
            time.sleep(POLL_SECONDS)

    def delete(self) -> None:
        """Deletes the job and waits until it is gone."""
        while self._status() is not None:
            try:
                self.client.delete_job(self.name)
            except RuntimeError as error:
                if not _is_absent(error):
                    raise
            time.sleep(min(1.0, POLL_SECONDS))

    def _status(self) -> str | None:
        try:
            return self.client.get_job(self.name).status
        except RuntimeError as error:
            if not _is_absent(error):
                raise
            return None

    def _show_log(self) -> None:
        for line in islice(self.client.get_job_logs(self.name), self.shown, None):
            self.shown += 1
            say(line)


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
            f"training runtime {name}: {reason}; install Kubeflow Trainer 2.2 or newer with its runtimes, and apply deploy/base"
        ) from error


def _is_absent(error: RuntimeError) -> bool:
    return getattr(error.__cause__, "status", None) == 404


def _is_whole(folder: Path, stage: str) -> bool:
    try:
        open_input(folder, stage=stage)
    except InputError:
        return False
    return True
