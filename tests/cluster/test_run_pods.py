"""What is wrong with a run's pods, asked of a Kubernetes API on loopback through a kubeconfig."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from star.cluster.run_pods import PodFinding, RunPods, has_cluster
from tests.kfp_replay.pods import Kubernetes, pod, waiting


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Kubernetes]:
    server = Kubernetes("r-1")
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_each_cause_is_named_by_kubernetes_own_word(cluster: Kubernetes) -> None:
    unscheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes have nvidia.com/gpu",
    }
    gated = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "SchedulingGated",
        "message": "non-empty scheduling gates",
    }
    queued = pod("queue", conditions=[gated])
    queued["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    cluster.pods = [
        pod("secret", state=waiting("CreateContainerConfigError", 'secret "star-s3" not found')),
        pod("image", state=waiting("ImagePullBackOff", 'Back-off pulling image "star:1"')),
        pod("node", conditions=[unscheduled]),
        pod("claim", state=waiting("ContainerCreating")),
        queued,
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
        "queue": PodFinding("SchedulingGated", "it waits for room in Kueue's queue team-a"),
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
