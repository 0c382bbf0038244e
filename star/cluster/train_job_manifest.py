"""Writes the manifest of a TrainJob: pods as the stage's node describes them, with the task's variables and secrets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star.cluster.failure import FOLDER_VARIABLE
from star.cluster.torchrun import torchrun_command
from star.cluster.trainer_api import GROUP, NODE, RUN_LABEL, VERSION
from star.config.cluster import CERTIFICATES_PATH, Cluster, Node, TrainingStage
from star.config.training import HALF_MICRO_BATCH

PATCH_MANAGER = "star-distill/launcher"  # owner of the runtime patch, as other controllers name theirs
# The rendezvous waits an hour because a node may have to be provisioned. Processes that receive SIGTERM get 90 s to save a checkpoint.
TORCHRUN_FLAGS = ("--rdzv-conf=timeout=3600", "--shutdown-timeout=90")
NO_PRIVILEGES = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
# Istio's sidecar breaks torchrun's rendezvous, so the pods must have none (kubeflow/trainer#2794). Its older versions read the annotation.
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
# Variables of the task that its pods need too. Secrets are not among them: the manifest refers to them by name.
PASSED_VARIABLES = (
    "STAR_IMAGE", "STAR_WORK", "STAR_HOME", "STAR_SHARED_WITH", "STAR_CHECKPOINTS", "STAR_ACCELERATORS", "KFP_RUN_ID",
    FOLDER_VARIABLE, HALF_MICRO_BATCH,
    "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID",
)  # fmt: skip


def job_manifest(
    stage: TrainingStage, *, cluster: Cluster, command: list[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    """The TrainJob's manifest, without its name.

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
    # The image has no git, of which MLflow warns in each process. torchrun gives each of several processes one thread otherwise.
    common = {"GIT_PYTHON_REFRESH": "quiet", "OMP_NUM_THREADS": str(_threads_per_process(node))}
    plain = [{"name": key, "value": value} for key, value in {**common, **cluster.variables, **passed}.items()]
    secret = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}}}
        for secret, variables in cluster.secrets_of(stage).items()
        for variable, key in variables.items()
    ]
    labels = {"star/task": stage, **NO_SIDECAR}
    pod = {
        "metadata": {"labels": labels, "annotations": dict(NO_SIDECAR)},
        "spec": _pod_spec(node, cluster, work_folder=environment["STAR_WORK"]),
    }
    # The Trainer has no field of its own for volumes, node selectors and tolerations, so they patch the runtime's pods.
    patched_job = {"name": NODE, "template": {"spec": {"template": pod}}}
    # The queue is that of the whole job: its pods start together. The exit handler finds the jobs of its run by the label.
    of_run = {RUN_LABEL: environment["KFP_RUN_ID"]} if "KFP_RUN_ID" in environment else {}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"labels": {**labels, **cluster.queue_labels, **of_run}},
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


def _threads_per_process(node: Node) -> int:
    cores = float(node.cpu[:-1]) / 1000 if node.cpu.endswith("m") else float(node.cpu)
    return max(1, int(cores) // node.processes)


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
