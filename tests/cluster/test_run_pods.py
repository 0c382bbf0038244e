"""What is wrong with a run's pods, asked of a Kubernetes API on loopback through a kubeconfig."""

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from star.cluster.run_pods import PodFinding, RunPods, has_cluster
from tests.json_handler import JsonHandler


class Kubernetes(ThreadingHTTPServer):
    """Pods and events of one namespace."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pods: list[dict] = []
        self.events: dict[str, list[dict]] = {}  # by pod
        self.status = 200


class _Handler(JsonHandler):
    server: Kubernetes

    def do_GET(self) -> None:
        url, kind = urlsplit(self.path), urlsplit(self.path).path.rpartition("/")[2]
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        assert url.path == f"/api/v1/namespaces/kubeflow/{kind}"
        if self.server.status != 200:
            self.answer(self.server.status, {"kind": "Status", "message": "refused"})
        elif kind == "pods":
            assert query["labelSelector"] == "pipeline/runid=r-1"
            self.answer(200, {"kind": "PodList", "items": self.server.pods})
        else:
            name = query["fieldSelector"].removeprefix("involvedObject.name=").removesuffix(",type=Warning")
            self.answer(200, {"kind": "EventList", "items": self.server.events.get(name, [])})


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubernetes]:
    server = Kubernetes()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def pod(name: str, *, phase: str = "Pending", state: dict | None = None, **status: object) -> dict:
    """A pod with its container `main`, which may use 3Gi."""
    container = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state or {}}
    return {
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "3Gi"}}}]},
        "status": {"phase": phase, "containerStatuses": [container], **status},
    }


def waiting(reason: str, message: str = "") -> dict:
    return {"waiting": {"reason": reason, "message": message}}


def test_each_cause_is_named_by_kubernetes_own_word(cluster: Kubernetes) -> None:
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes have nvidia.com/gpu",
    }
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    cluster.pods = [
        pod("secret", state=waiting("CreateContainerConfigError", 'secret "star-s3" not found')),
        pod("image", state=waiting("ImagePullBackOff", 'Back-off pulling image "star:1"')),
        pod("node", conditions=[unscheduled]),
        pod("claim", state=waiting("ContainerCreating")),
        pod("memory", phase="Failed", state=killed),
        pod("evicted", phase="Failed", reason="Evicted", message="The node was low on resource: memory."),
        pod("starting", state=waiting("ContainerCreating")),
        pod("running", phase="Running", state={"running": {}}),
    ]
    mounted = {"reason": "FailedMount", "message": "claim star-work is not bound", "type": "Warning"}
    about = {"metadata": {"name": "e"}, "involvedObject": {"name": "claim"}}
    cluster.events = {"claim": [{**mounted, **about}]}
    pods = RunPods("r-1", "kubeflow")
    assert has_cluster() and pods.findings() == {
        "secret": PodFinding("CreateContainerConfigError", 'secret "star-s3" not found'),
        "image": PodFinding("ImagePullBackOff", 'Back-off pulling image "star:1"'),
        "node": PodFinding("Unschedulable", "0/3 nodes have nvidia.com/gpu"),
        "claim": PodFinding("FailedMount", "claim star-work is not bound"),
        "memory": PodFinding("OOMKilled", "killed because it used more memory than its limit of 3Gi"),
        "evicted": PodFinding("Evicted", "The node was low on resource: memory."),
    }
    assert pods.problem is None


def test_a_cluster_that_refuses_is_asked_once(cluster: Kubernetes) -> None:
    cluster.status = 403
    pods = RunPods("r-1", "kubeflow")
    assert pods.findings() == {} and "HTTP 403" in (pods.problem or "")
    cluster.status, cluster.pods = 200, [pod("secret", state=waiting("CreateContainerConfigError"))]
    assert pods.findings() == {}


def test_without_a_kubeconfig_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    pods = RunPods("r-1", "kubeflow")
    assert not has_cluster() and pods.findings() == {} and pods.problem is None
