"""A Kubernetes API on loopback with the controllers of Kubeflow Trainer 2.3 and JobSet 0.12; pods are processes of this machine.

The controllers act before each answer, as they were seen to act on a real cluster:

- A TrainJob gets a JobSet, and the JobSet one pod per node. A TrainJob that runs has no condition.
- When a pod fails, the pods that still run are deleted: SIGTERM, and SIGKILL after the grace. A deleted pod is listed until it has ended.
- Then the TrainJob gets `Failed` (ReachedMaxRestarts), or after a success `Complete` (AllJobsCompleted). Nobody deletes it.
- A TrainJob without a JobSet gets one, also if it has failed: it trains once more.
"""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from tests.json_handler import JsonHandler

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{TRAINER}/namespaces/team/trainjobs"
CORE = "/api/v1/namespaces/team"
RUNTIME = next(
    document
    for document in yaml.safe_load_all(
        (Path(__file__).parents[2] / "deploy" / "multinode" / "runtime.yaml").read_text()
    )
    if document["kind"] == "TrainingRuntime"
)
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
NOW = "2026-01-01T00:00:00Z"
MESSAGES = {
    "Failed": ("ReachedMaxRestarts", "jobset failed due to reaching max number of restarts"),
    "Complete": ("AllJobsCompleted", "jobset completed successfully"),
    "Suspended": ("Suspended", "TrainJob is suspended"),
}


@dataclass
class Pod:
    """One node of a TrainJob. Without a process it waits."""

    name: str
    job: str
    rank: int
    process: subprocess.Popen | None
    log: Path
    waiting: dict = field(default_factory=dict)  # its status
    deleted: float | None = None  # when it received SIGTERM
    reason: str = ""  # in place of Error

    def exit_code(self) -> int | None:
        code = self.process.poll() if self.process else None
        return code if code is None or code >= 0 else 128 - code


@dataclass
class Job:
    """A TrainJob: what was created, and what its controllers know."""

    manifest: dict
    has_jobset: bool = False
    ended: str = ""  # Failed or Complete


class Kubernetes(ThreadingHTTPServer):
    """The API and its controllers.

    Attributes:
        command: Called with the job's name, the rank and the trainer's command; what the pod runs.
        waits: Called with the job's name and the rank; the status of a pod that does not start, or {}.
        refuses: Message with which the cluster refuses all pods.
        reasons: (job, rank) -> reason of the container that ended, such as OOMKilled.
        suspended: Whether Kueue holds all jobs back.
        faults: Statuses of the next answers about a job.
        forbidden: Resources that the account may not list.
        grace: Seconds between SIGTERM and SIGKILL.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.lock = threading.RLock()
        self.jobs: dict[str, Job] = {}
        self.pods: dict[str, Pod] = {}
        self.runtimes: dict[str, dict | int] = {"star-torch": RUNTIME}
        self.secrets = {("star-s3", "access-key"): "the-key"}
        self.command: Callable[[str, int, list[str]], list[str]] = lambda job, rank, command: command
        self.waits: Callable[[str, int], dict] = lambda job, rank: {}
        self.refuses = ""
        self.reasons: dict[tuple[str, int], str] = {}
        self.suspended = False
        self.faults: list[int] = []
        self.forbidden: set[str] = set()
        self.unreadable_logs = 0  # how many of the next requests for a log fail
        self.grace = 30.0
        self.requests: list[str] = []

    def kubeconfig(self) -> Path:
        """The file by which a client finds this API."""
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

    def created(self) -> list[str]:
        """The names of the jobs that were created, in that order."""
        return [request.rpartition("/")[2] for request in self.requests if request.startswith("POST ")]

    def create(self, manifest: dict) -> None:
        assert TrainerV1alpha1TrainJob.from_dict(manifest).to_dict() == manifest, "a key that the API does not know"
        assert all(LABEL.fullmatch(value) for value in manifest["metadata"]["labels"].values())
        manifest["metadata"] |= {"namespace": "team", "creationTimestamp": NOW}
        self.jobs[manifest["metadata"]["name"]] = Job(manifest)
        self.reconcile()

    def delete(self, name: str) -> None:
        """Deletes a TrainJob with all that belongs to it."""
        del self.jobs[name]
        self.stop(name)

    def delete_jobset(self, name: str) -> None:
        """As `kubectl delete jobset NAME` does."""
        self.stop(name)
        self.jobs[name].has_jobset = False

    def stop(self, name: str) -> None:
        """Deletes the pods of a job: SIGTERM to those that run. Those that have ended are gone at once."""
        for pod in [pod for pod in self.pods.values() if pod.job == name]:
            if pod.exit_code() is None and pod.process:
                self._terminate(pod)
            else:
                del self.pods[pod.name]

    def reconcile(self) -> None:
        """What the controllers do next."""
        with self.lock:
            for pod in list(self.pods.values()):
                if pod.deleted is None:
                    continue
                if pod.exit_code() is None and time.monotonic() > pod.deleted + self.grace:
                    self._kill(pod)
                if pod.exit_code() is not None:
                    self._kill(pod)  # whatever it left behind
                    del self.pods[pod.name]
            for name, job in self.jobs.items():
                self._reconcile_job(name, job)

    def _reconcile_job(self, name: str, job: Job) -> None:
        if not job.has_jobset and not self.suspended:
            job.has_jobset = True
            self._start_pods(name, job.manifest["spec"]["trainer"])
        if job.ended or self.suspended:
            return
        pods = [pod for pod in self.pods.values() if pod.job == name]
        if any(pod.exit_code() and pod.deleted is None for pod in pods):
            running = [pod for pod in pods if pod.exit_code() is None]
            for pod in running:
                self._terminate(pod)
            job.ended = "" if running else "Failed"
        elif pods and all(pod.exit_code() == 0 for pod in pods):
            job.ended = "Complete"

    def _start_pods(self, name: str, trainer: dict) -> None:
        if self.refuses:
            return
        given = {
            entry["name"]: entry.get("value") or self.secrets[tuple(entry["valueFrom"]["secretKeyRef"].values())[:2]]
            for entry in trainer["env"]
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        inherited = {key: os.environ[key] for key in ("PATH", "HF_HUB_OFFLINE", "PYTHONPATH") if key in os.environ}
        for rank in range(trainer["numNodes"]):
            rendezvous = {
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
            pod_name = f"{name}-node-0-{rank}-x{len(self.requests)}"
            log = self.folder / f"{pod_name}.log"
            process = None
            if not (waiting := self.waits(name, rank)):
                with log.open("w") as file:
                    process = subprocess.Popen(
                        self.command(name, rank, trainer["command"]),
                        env=inherited | given | rendezvous,
                        stdout=file,
                        stderr=file,
                        start_new_session=True,
                    )
            reason = self.reasons.get((name, rank), "")
            self.pods[pod_name] = Pod(pod_name, name, rank, process, log, waiting, reason=reason)

    def _terminate(self, pod: Pod) -> None:
        if pod.deleted is None:
            pod.deleted = time.monotonic()
            if pod.process:
                pod.process.terminate()
            else:
                del self.pods[pod.name]

    def _kill(self, pod: Pod) -> None:
        if pod.process:
            with suppress(ProcessLookupError):
                os.killpg(pod.process.pid, signal.SIGKILL)
            pod.process.wait()

    def close(self) -> None:
        """Ends the server and all pods."""
        self.shutdown()
        self.server_close()
        for pod in self.pods.values():
            self._kill(pod)

    def trainjob(self, name: str) -> dict:
        """A TrainJob as the API shows it."""
        job = self.jobs[name]
        kind = job.ended or ("Suspended" if self.suspended else "")
        if not kind:
            return job.manifest
        reason, message = MESSAGES[kind]
        condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": NOW}
        return {**job.manifest, "status": {"conditions": [condition]}}

    def pod(self, pod: Pod) -> dict:
        """A pod as the API shows it."""
        code = pod.exit_code()
        phases = {None: "Running" if pod.process else "Pending", 0: "Succeeded"}
        state = {"running": {"startedAt": NOW}}
        if code is not None:
            reason = pod.reason or ("Error" if code else "Completed")
            state = {"terminated": {"exitCode": code, "reason": reason, "startedAt": NOW, "finishedAt": NOW}}
        container = {"name": "node", "image": "star", "imageID": "", "ready": code is None, "restartCount": 0}
        status: dict = {"phase": phases.get(code, "Failed"), "containerStatuses": [{**container, "state": state}]}
        metadata: dict = {
            "name": pod.name,
            "labels": {
                "jobset.sigs.k8s.io/jobset-name": pod.job,
                "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": str(pod.rank),
            },
            "creationTimestamp": NOW,
        }
        if pod.deleted is not None:
            metadata["deletionTimestamp"] = NOW
        limits = (
            self.jobs[pod.job].manifest["spec"]["trainer"]["resourcesPerNode"]["limits"] if pod.job in self.jobs else {}
        )
        spec = {"containers": [{"name": "node", "image": "star", "resources": {"limits": limits}}]}
        return {"metadata": metadata, "spec": spec, "status": pod.waiting or status}

    def events(self) -> list[dict]:
        """The warnings of the namespace, with one about another job."""
        found = [("another-0-node-0", "FailedCreate", "of another job")]
        if self.refuses:
            found += [(f"{name}-node-0", "FailedCreate", self.refuses) for name in self.jobs]
        return [
            {
                "metadata": {"name": f"event-{number}", "namespace": "team"},
                "involvedObject": {"kind": "Job", "name": name},
                "reason": reason,
                "message": message,
                "type": "Warning",
            }
            for number, (name, reason, message) in enumerate(found)
        ]


class Handler(JsonHandler):
    server: Kubernetes

    def do_POST(self) -> None:
        manifest = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = manifest["metadata"]["name"]
        with self.server.lock:
            self.server.requests.append(f"POST {self.path}/{name}")
            if name in self.server.jobs:
                return self.refuse(409)
            self.server.create(manifest)
            return self.answer(201, manifest)

    def do_DELETE(self) -> None:
        name = self.path.rpartition("/")[2]
        with self.server.lock:
            self.server.requests.append(f"DELETE {self.path}")
            if name not in self.server.jobs:
                return self.refuse(404)
            self.server.delete(name)
            return self.answer(200, {"kind": "Status", "status": "Success"})

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.requests.append(f"GET {self.path}")
            self.server.reconcile()
            self.get(self.server, urlsplit(self.path).path, parse_qs(urlsplit(self.path).query))

    def get(self, cluster: Kubernetes, path: str, query: dict[str, list[str]]) -> None:
        folder, _, last = path.rpartition("/")
        if last in cluster.forbidden:
            return self.refuse(403)
        if path == JOBS:
            [selector] = query["labelSelector"]
            key, _, value = selector.partition("=")
            names = [name for name, job in cluster.jobs.items() if job.manifest["metadata"]["labels"].get(key) == value]
            return self.answer(200, {"items": [cluster.trainjob(name) for name in names]})
        if folder == JOBS:
            if cluster.faults:
                return self.refuse(cluster.faults.pop(0))
            return self.answer(200, cluster.trainjob(last)) if last in cluster.jobs else self.refuse(404)
        if folder == f"{TRAINER}/namespaces/team/trainingruntimes" and last in cluster.runtimes:
            runtime = cluster.runtimes[last]
            return self.refuse(runtime) if isinstance(runtime, int) else self.answer(200, runtime)
        if path == f"{CORE}/pods":
            [selector] = query["labelSelector"]
            name = selector.partition("=")[2]
            pods = [cluster.pod(pod) for pod in cluster.pods.values() if pod.job == name]
            return self.answer(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
        if path == f"{CORE}/events":
            assert query["fieldSelector"] == ["type=Warning"]
            return self.answer(
                200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": cluster.events()}
            )
        if last == "log" and cluster.unreadable_logs:
            cluster.unreadable_logs -= 1
            return self.refuse(500)
        if last == "log" and (pod := cluster.pods.get(folder.rpartition("/")[2])):
            lines = pod.log.read_text().splitlines(keepends=True) if pod.process else []
            return self.answer(200, "".join(lines[-int(query.get("tailLines", ["1000000"])[0]) :]))
        return self.refuse(404)

    def refuse(self, status: int) -> None:
        message = f"{self.path} was answered with {status}"
        self.answer(status, {"kind": "Status", "code": status, "message": message})
