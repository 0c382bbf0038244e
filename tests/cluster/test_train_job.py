"""A training as a TrainJob, against a fake Kubernetes API whose pods are real torchrun processes configured by PET_ variables."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob

from star.cluster.train_job import job_manifest
from star.config.cluster import Cluster
from star.config.experiment import Config
from star.folders.manifest import open_input
from star.stages import stage_named
from tests.json_handler import JsonHandler

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{TRAINER}/namespaces/team/trainjobs"
RUNTIME = next(
    document
    for document in yaml.safe_load_all(
        (Path(__file__).parents[2] / "deploy" / "multinode" / "runtime.yaml").read_text()
    )
    if document["kind"] == "TrainingRuntime"
)
# What KFP's executor does with the component of a training, in a process that can receive SIGTERM.
CALL = """
import json, os, sys
from pathlib import Path
from star.cluster import train_job
from star.config.cluster import Cluster
from star.config.experiment import Config
train_job.POLL_SECONDS = 0.2
stage, config, out, inputs = sys.argv[1], Config.from_json(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
cluster, inputs = Cluster.model_validate_json(os.environ["STAR_TRAIN_JOB"]), {key: Path(path) for key, path in inputs.items()}
print(json.dumps(train_job.run_train_job(stage, config, cluster=cluster, inputs=inputs, out=out)))
"""


class Kubernetes(ThreadingHTTPServer):
    """TrainJobs by name and their pods (processes of this machine), the faults to answer with, and the requests received."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.jobs: dict[str, dict] = {}
        self.pods: dict[str, list[subprocess.Popen]] = {}
        self.runtimes: dict[str, dict | int] = {"star-torch": RUNTIME}
        self.secrets = {("star-s3", "access-key"): "the-key"}
        self.faults: list[int] = []  # statuses of the next answers about a job
        self.unreadable_logs = 0  # how many of the next requests for a log fail
        self.requests: list[str] = []

    def kubeconfig(self) -> Path:
        file = self.folder / "kubeconfig"
        cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}
        context = {"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}
        content = {
            "clusters": [cluster],
            "contexts": [context],
            "current-context": "here",
            "users": [{"name": "me", "user": {}}],
        }
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **content}))
        return file

    def create(self, job: dict) -> None:
        """What the Trainer's controller does: starts one pod per node, with PET_ variables that name the others."""
        assert TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job, "a key that the API does not know"
        name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
        job["metadata"] |= {"namespace": "team", "creationTimestamp": "2026-01-01T00:00:00Z"}
        given = {
            entry["name"]: entry.get("value") or self.secrets[tuple(entry["valueFrom"]["secretKeyRef"].values())[:2]]
            for entry in trainer["env"]
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pods = []
        for rank in range(trainer["numNodes"]):
            rendezvous = {
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
            inherited = {key: os.environ[key] for key in ("PATH", "HF_HUB_OFFLINE")} | {"OMP_NUM_THREADS": "1"}
            with (self.folder / f"{name}-{rank}.log").open("w") as log:
                process = subprocess.Popen(
                    trainer["command"],
                    env=inherited | given | rendezvous,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            pods.append(process)
        self.pods[name], self.jobs[name] = pods, job

    def with_conditions(self, name: str) -> dict:
        """The job, with the conditions that follow from its pods."""
        ended = [pod.poll() for pod in self.pods[name]]
        failed = any(ended)
        if failed:
            self.end(name)
        if failed or None not in ended:
            kind = "Failed" if failed else "Complete"
            condition = {"type": kind, "status": "True", "reason": kind, "lastTransitionTime": "2026-01-01T00:00:00Z"}
            return {**self.jobs[name], "status": {"conditions": [{**condition, "message": ""}]}}
        return self.jobs[name]

    def pod(self, name: str, rank: int) -> dict:
        phases = {None: "Running", 0: "Succeeded"}
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(rank),
        }
        return {
            "metadata": {"name": f"{name}-{rank}", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "node", "image": "star"}]},
            "status": {"phase": phases.get(self.pods[name][rank].poll(), "Failed")},
        }

    def delete(self, name: str) -> None:
        self.end(name)
        del self.jobs[name], self.pods[name]

    def end(self, name: str) -> None:
        """Sends the pods SIGTERM, and later SIGKILL to all their processes."""
        for pod in self.pods[name]:
            if pod.poll() is None:
                pod.terminate()
        for pod in self.pods[name]:
            with suppress(subprocess.TimeoutExpired):
                pod.wait(timeout=30)
            with suppress(ProcessLookupError):
                os.killpg(pod.pid, signal.SIGKILL)
            pod.wait()


class Handler(JsonHandler):
    server: Kubernetes

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.create(job)
        self.answer(201, job)

    def do_DELETE(self) -> None:
        self.server.requests.append(f"DELETE {self.path}")
        name = self.path.rpartition("/")[2]
        if name not in self.server.jobs:
            return self.answer(404, {"kind": "Status", "code": 404})
        self.server.delete(name)
        return self.answer(200, {"kind": "Status", "status": "Success"})

    def do_GET(self) -> None:
        cluster, url = self.server, urlsplit(self.path)
        folder, _, last = url.path.rpartition("/")
        if folder == JOBS:
            if cluster.faults:
                return self.answer(cluster.faults.pop(0), {})
            return self.answer(200, cluster.with_conditions(last)) if last in cluster.jobs else self.answer(404, {})
        if folder == f"{TRAINER}/namespaces/team/trainingruntimes" and last in cluster.runtimes:
            runtime = cluster.runtimes[last]
            return self.answer(runtime, {}) if isinstance(runtime, int) else self.answer(200, runtime)
        if url.path == "/api/v1/namespaces/team/pods":
            [selector] = parse_qs(url.query)["labelSelector"]
            name = selector.split(",")[0].partition("=")[2]
            pods = [cluster.pod(name, rank) for rank in range(len(cluster.pods[name]))]
            return self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
        if last == "log" and cluster.unreadable_logs:
            cluster.unreadable_logs -= 1
            return self.answer(500, {"kind": "Status", "code": 500})
        if last == "log":
            return self.answer(200, (cluster.folder / f"{folder.rpartition('/')[2]}.log").read_text())
        return self.answer(404, {"kind": "Status", "code": 404})


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Kubernetes]:
    server = Kubernetes(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    for name in list(server.jobs):
        server.delete(name)
    server.shutdown()
    server.server_close()


CLUSTER = Cluster.model_validate(
    {
        "train_jobs": {"distill": {"nodes": 2}},
        "work_claim": "star-work",
        "secrets": {"star-s3": {"AWS_ACCESS_KEY_ID": "access-key"}},
        "environment": {"TELLTALE": "from the profile"},
    }
)


def task(kubernetes: Kubernetes, config: Config, finished: dict[str, Path], out: Path) -> subprocess.Popen:
    """Starts the KFP task of distill as a process."""
    inputs = {key: str(finished[source]) for key, source in stage_named("distill").inputs.items()}
    settings = config.slice(stage_named("distill").sections)
    environment = {
        "STAR_TRAIN_JOB": CLUSTER.model_dump_json(exclude_defaults=True),
        "STAR_IMAGE": "registry.example.com/star-python:1",
        "STAR_WORK": str(kubernetes.folder / "volume" / "work"),
        "STAR_HOME": str(kubernetes.folder / "volume" / "home"),
        "KUBECONFIG": str(kubernetes.kubeconfig()),
        "KFP_RUN_ID": "r-1",
    }
    command = [sys.executable, "-c", CALL, "distill", settings, str(out), json.dumps(inputs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment, **pipes)


def work_folder_has(kubernetes: Kubernetes, pattern: str) -> bool:
    return any((kubernetes.folder / "volume" / "work").glob(f"distill-*/state/{pattern}"))


def newest_checkpoint(kubernetes: Kubernetes) -> int:
    marks = (kubernetes.folder / "volume" / "work").glob("distill-*/state/ckd/checkpoint-*/complete")
    return max((int(mark.parent.name.split("-")[1]) for mark in marks), default=0)


def wait_until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_two_nodes_write_the_result_of_two_processes(
    kubernetes: Kubernetes, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    kubernetes.faults = [404, 503]
    kubernetes.unreadable_logs = 2
    out = tmp_path / "out"
    process = task(kubernetes, micro, finished, out)
    printed, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-3000:] + "".join(file.read_text()[-2000:] for file in tmp_path.glob("*.log"))
    assert json.loads(printed)["ckd_loss"] > 0
    # The same as two processes of one machine write; nothing is left in the cluster.
    alone = tmp_path / "alone"
    inputs = [f"--{key}={finished[source]}" for key, source in stage_named("distill").inputs.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "star.cli", "distill", "--config", str(Path(__file__).parents[1] / "micro.yaml")]
    subprocess.run([*command, *inputs, f"--out={alone}"], check=True, capture_output=True, timeout=300)
    assert open_input(out, stage="distill").digest == open_input(alone, stage="distill").digest
    assert kubernetes.jobs == {}
    assert log.count("distil the student (CKD): 6/6") == 1
    # The result is kept for a retry until the exit handler runs; the copies of the inputs are not.
    [exchange] = (tmp_path / "volume" / "work" / "jobs" / "r-1").iterdir()
    assert {path.name for path in exchange.iterdir()} == {"settings.json", "out"}
    again = task(kubernetes, micro, finished, tmp_path / "again")
    assert again.wait(timeout=120) == 0, again.stderr.read()[-3000:]
    assert open_input(tmp_path / "again", stage="distill").digest == open_input(out, stage="distill").digest
    assert sum(request.startswith("POST") for request in kubernetes.requests) == 1


@pytest.mark.slow
def test_a_task_that_dies_leaves_its_job_to_the_next_attempt(
    kubernetes: Kubernetes, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    # Long enough for the second attempt to find the job still running, however slowly that attempt starts.
    distill = micro.distill.model_copy(update={"steps": 240, "save_steps": 60})
    longer = micro.model_copy(update={"distill": distill})
    lost = task(kubernetes, longer, finished, tmp_path / "out")
    wait_until(lambda: work_folder_has(kubernetes, "*"), lost)
    lost.kill()
    lost.wait()
    again = task(kubernetes, longer, finished, tmp_path / "out")
    _, log = again.communicate(timeout=300)
    assert again.returncode == 0, log[-3000:]
    assert "going on with TrainJob star-distill-" in log
    assert sum(request.startswith("POST") for request in kubernetes.requests) == 1


@pytest.mark.slow
def test_sigterm_deletes_the_job_and_a_failed_job_is_replaced_by_a_new_one(
    kubernetes: Kubernetes, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    distill = micro.distill.model_copy(update={"steps": 400, "save_steps": 2})
    config = micro.model_copy(update={"distill": distill})
    interrupted = task(kubernetes, config, finished, tmp_path / "out")
    wait_until(lambda: work_folder_has(kubernetes, "ckd/checkpoint-2/complete"), interrupted)
    interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(timeout=60) == 143 and kubernetes.jobs == {}

    left = newest_checkpoint(kubernetes)
    failing = task(kubernetes, config, finished, tmp_path / "out")
    wait_until(lambda: kubernetes.jobs and newest_checkpoint(kubernetes) > left, failing)
    [[_, second]] = kubernetes.pods.values()
    os.killpg(second.pid, signal.SIGKILL)
    _, log = failing.communicate(timeout=120)
    assert failing.returncode == 1 and "-0 failed: kubectl describe trainjob star-distill-" in log
    # The failed job stays for inspection. The next attempt is a new job and resumes from the last checkpoint.
    assert len(kubernetes.jobs) == 1
    last = task(kubernetes, config, finished, tmp_path / "out")
    _, log = last.communicate(timeout=300)
    assert last.returncode == 0, log[-3000:]
    assert "started TrainJob star-distill-" in log and kubernetes.jobs == {}
    assert open_input(tmp_path / "out", stage="distill")


@pytest.mark.parametrize(
    ("runtime", "reason"), [(404, "it does not exist"), (403, "the account has no right to read it")]
)
def test_a_missing_or_forbidden_training_runtime_is_an_input_error(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, runtime: int, reason: str
) -> None:
    from star.cluster.train_job import find_runtime, trainer_client
    from star.errors import InputError

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
    # In the queue is the job. Its pods have no such label, or each would wait on its own.
    queue = {"kueue.x-k8s.io/queue-name": "team-a", "kueue.x-k8s.io/priority-class": "nightly"}
    assert manifest["metadata"] == {"labels": {"star/task": "distill", **queue}}
    trainer = manifest["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (4, 8, "star:1")
    resources = {"cpu": "16", "memory": "256Gi", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"] == {"requests": resources, "limits": resources}
    assert {entry["name"]: entry.get("value") or entry["valueFrom"] for entry in trainer["env"]} == {
        "SSL_CERT_FILE": "/etc/star/certificates/ca.pem",
        "REQUESTS_CA_BUNDLE": "/etc/star/certificates/ca.pem",
        "AWS_CA_BUNDLE": "/etc/star/certificates/ca.pem",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "STAR_IMAGE": "star:1",
        "STAR_WORK": "/var/star/work",
        "KFP_RUN_ID": "r-1",
        "AWS_ACCESS_KEY_ID": {"secretKeyRef": {"name": "star-s3", "key": "access-key", "optional": True}},
    }
    [patch] = manifest["spec"]["runtimePatches"]
    [job] = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"] == {
        "metadata": {"labels": {"star/task": "distill", "sidecar.istio.io/inject": "false"}},
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
    assert TrainerV1alpha1TrainJob.from_dict(manifest).to_dict() == manifest


def test_the_deployed_runtime_is_valid_for_the_trainer() -> None:
    assert TrainerV1alpha1TrainingRuntime.from_dict(RUNTIME).to_dict() == RUNTIME
    assert RUNTIME["metadata"]["name"] == Cluster.model_validate(CLUSTER.model_dump()).train_jobs["distill"].runtime
