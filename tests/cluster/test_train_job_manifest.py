"""The manifest of a TrainJob, and the training runtime of deploy/multinode that it refers to."""

import json

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob

from star.cluster.train_job_manifest import job_manifest
from star.cluster.trainer_api import find_runtime, trainer_client
from star.config.cluster import Cluster, TrainJob
from star.errors import InputError
from tests.cluster.trainer_server import RUNTIME, Kubernetes


@pytest.mark.parametrize(
    ("runtime", "reason"), [(404, "it does not exist"), (403, "the account has no right to read it")]
)
def test_a_missing_or_forbidden_training_runtime_is_an_input_error(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, runtime: int, reason: str
) -> None:
    # The client reads KUBECONFIG once, when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubernetes.kubeconfig()))
    kubernetes.runtimes = {"star-torch": runtime}
    with pytest.raises(InputError, match=f"training runtime star-torch: {reason}; install Kubeflow Trainer"):
        find_runtime(trainer_client(), "star-torch")


FOUR_NODES = {
    "nodes": {
        "h100": {
            "cpu": "16",
            "memory": "256Gi",
            "accelerator": "nvidia.com/gpu",
            "accelerators": 8,
            "shm": "32Gi",
            "node_selector": {"gpu": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
        }
    },
    "placement": {"distill": "h100"},
    "train_jobs": {"distill": {"nodes": 4, "runtime": "torch-h100"}},
    "work_claim": "star-work",
    "service_account": "star",
    "environment": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"},
    "certificates": "company-ca",
    "secrets": {"star-s3": {"AWS_ACCESS_KEY_ID": "access-key"}, "star-webhook": {"STAR_WEBHOOK": "url"}},
    "checkpoints": "s3://star/checkpoints",  # for which a training uses the keys; the webhook it does not use
}


def test_the_pods_follow_the_node_of_the_stage() -> None:
    cluster = Cluster.model_validate(FOUR_NODES | {"queue": "team-a", "priority_class": "nightly"})
    task = {"STAR_IMAGE": "star:1", "STAR_WORK": "/var/star/work", "KFP_RUN_ID": "r-1", "AWS_ACCESS_KEY_ID": "hidden"}
    manifest = job_manifest("distill", cluster=cluster, command=["-m", "star.cli"], environment=task)
    assert "hidden" not in json.dumps(manifest)
    trainer = manifest["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (4, 8, "star:1")
    resources = {"cpu": "16", "memory": "256Gi", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"] == {"requests": resources, "limits": resources}
    assert {entry["name"]: entry.get("value") or entry["valueFrom"] for entry in trainer["env"]} == {
        "SSL_CERT_FILE": "/etc/star/certificates/ca.pem",
        "REQUESTS_CA_BUNDLE": "/etc/star/certificates/ca.pem",
        "AWS_CA_BUNDLE": "/etc/star/certificates/ca.pem",
        "GIT_PYTHON_REFRESH": "quiet",
        "OMP_NUM_THREADS": "2",  # 16 cores for 8 processes
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "STAR_IMAGE": "star:1",
        "STAR_WORK": "/var/star/work",
        "KFP_RUN_ID": "r-1",
        "AWS_ACCESS_KEY_ID": {"secretKeyRef": {"name": "star-s3", "key": "access-key", "optional": True}},
    }
    [patch] = manifest["spec"]["runtimePatches"]
    [job] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"] == {
        "metadata": {
            "labels": {"star/task": "distill", "sidecar.istio.io/inject": "false"},
            "annotations": {"sidecar.istio.io/inject": "false"},
        },
        "spec": {
            "securityContext": {
                "runAsUser": 10001,
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "serviceAccountName": "star",
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "volumes": [
                {"name": "work", "persistentVolumeClaim": {"claimName": "star-work"}},
                {"name": "certificates", "configMap": {"name": "company-ca", "optional": True}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}},
            ],
            "containers": [
                {
                    "name": "node",
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [
                        {"name": "work", "mountPath": "/var/star"},
                        {"name": "certificates", "mountPath": "/etc/star/certificates", "readOnly": True},
                        {"name": "shm", "mountPath": "/dev/shm"},
                    ],
                }
            ],
        },
    }
    assert manifest["spec"]["runtimeRef"] == {"name": "torch-h100"}
    # In the queue is the job. Its pods have no such label, or each would wait on its own. The exit handler finds the job by its run.
    assert manifest["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "team-a",
        "kueue.x-k8s.io/priority-class": "nightly",
        "star/run": "r-1",
        "star/task": "distill",
        "sidecar.istio.io/inject": "false",
    }
    assert TrainerV1alpha1TrainJob.from_dict(manifest).to_dict() == manifest


@pytest.mark.parametrize(
    ("cpu", "accelerators", "threads"), [("500m", 1, "1"), ("2", 1, "2"), ("16", 8, "2"), ("4", 8, "1")]
)
def test_the_processes_of_a_pod_share_its_cores(cpu: str, accelerators: int, threads: str) -> None:
    node = {"cpu": cpu, "accelerator": "nvidia.com/gpu", "accelerators": accelerators}
    profile = FOUR_NODES | {"nodes": {"h100": node}}
    given = {"STAR_IMAGE": "star:1", "STAR_WORK": "/var/star/work"}
    for environment, expected in (({}, threads), ({"OMP_NUM_THREADS": "7"}, "7")):
        cluster = Cluster.model_validate(profile | {"environment": environment})
        trainer = job_manifest("distill", cluster=cluster, command=[], environment=given)["spec"]["trainer"]
        assert {"name": "OMP_NUM_THREADS", "value": expected} in trainer["env"]


def test_the_deployed_runtime_is_valid_for_the_trainer_and_for_the_level_restricted() -> None:
    assert TrainerV1alpha1TrainingRuntime.from_dict(RUNTIME).to_dict() == RUNTIME
    assert RUNTIME["metadata"]["name"] == TrainJob().runtime
    pod = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert (
        pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        and pod["securityContext"]["runAsNonRoot"]
    )
    [container] = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    # Otherwise torchrun is process 1, for which the kernel ignores SIGTERM until torchrun has a handler, after the rendezvous.
    assert pod["shareProcessNamespace"] is True
