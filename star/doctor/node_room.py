"""Looks for nodes on which the pods of a profile can run: labels, taints, accelerators and room.

Example: the profile wants `nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3`, 128Gi and one `nvidia.com/gpu`. Of ten nodes two have
the label, one of them a taint that the profile does not tolerate; the other offers eight GPUs and 900Gi: "1 of 10 nodes, 7 pods
at a time".
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from star.config.cluster import CPU, Cluster, Node, Toleration, TrainJob
from star.doctor.kubernetes_api import KubernetesApi
from star.errors import InputError
from star.stages import STAGES

if TYPE_CHECKING:
    from kubernetes.client import V1Node, V1Taint

SHOWN = 5  # values of a label in a message
SCALED = "if an autoscaler adds such nodes on demand, this is no fault"


def used_nodes(cluster: Cluster) -> dict[str, int]:
    """The nodes of a profile that tasks run on, with the number of pods of one task that must run there at the same time."""
    placed: dict[str, str] = dict(cluster.placement.items())
    jobs: dict[str, TrainJob] = dict(cluster.train_jobs.items())
    pods = {CPU: 1}
    for stage in STAGES:
        name = placed.get(stage.name, CPU)
        pods[name] = max(pods.get(name, 1), jobs[stage.name].nodes if stage.name in jobs else 1)
    return pods


def check_node(api: KubernetesApi, wanted: Node, *, pods: int) -> str:
    """Checks that pods find room on the cluster's nodes, were they empty.

    Args:
        pods: how many must run at the same time.
    """
    from kubernetes.client import CoreV1Api

    found = api.ask("nodes", CoreV1Api(api.client).list_node)
    everything: list[V1Node] = found.items if found else []
    requests = _requests(wanted)
    steps: tuple[tuple[Callable[[V1Node], bool], Callable[[list[V1Node]], str]], ...] = (
        (lambda node: not _missing_labels(node, wanted), lambda nodes: _about_labels(nodes, wanted)),
        (lambda node: not _refusing_taints(node, wanted), lambda nodes: _about_taints(nodes, wanted)),
        (
            lambda node: not wanted.accelerator or _offered(node, wanted.accelerator) > 0,
            lambda nodes: _about_accelerator(nodes, wanted),
        ),
        (lambda node: _fitting(node, requests) > 0, lambda nodes: _about_room(nodes, requests)),
    )
    fitting = everything
    for fits, about in steps:
        left = [node for node in fitting if fits(node)]
        if not left:
            raise InputError(f"{about(fitting)}; {SCALED}")
        fitting = left
    room = sum(_fitting(node, requests) for node in fitting)
    said = f"{len(fitting)} of {len(everything)} nodes fit, {room} pods at a time where nothing else runs"
    if room < pods:
        raise InputError(f"{said}, and a TrainJob needs {pods}: add nodes, or lower its `nodes`; {SCALED}")
    return said


def _requests(wanted: Node) -> dict[str, str]:
    accelerators = {wanted.accelerator: str(wanted.accelerators)} if wanted.accelerator else {}
    return {**wanted.requests, **accelerators}


def _offered(node: "V1Node", resource: str) -> float:
    from kubernetes.utils import parse_quantity

    return float(parse_quantity((node.status.allocatable or {}).get(resource, "0")))


def _fitting(node: "V1Node", requests: dict[str, str]) -> int:
    """How many pods with these requests a node without others has room for."""
    from kubernetes.utils import parse_quantity

    amounts = {resource: float(parse_quantity(amount)) for resource, amount in requests.items()}
    return min(int(_offered(node, resource) // amount) for resource, amount in amounts.items() if amount)


def _missing_labels(node: "V1Node", wanted: Node) -> dict[str, str]:
    labels = node.metadata.labels or {}
    return {key: value for key, value in wanted.node_selector.items() if labels.get(key) != value}


def _about_labels(nodes: list["V1Node"], wanted: Node) -> str:
    if not nodes:
        return "the cluster has no nodes"
    for label, value in wanted.node_selector.items():
        values = sorted({(node.metadata.labels or {}).get(label) or "" for node in nodes} - {""})
        if value not in values:
            others = f" (nodes have {', '.join(values[:SHOWN])})" if values else " (no node has this label)"
            return f"no node has {label}={value}{others}: correct `node_selector`"
    pairs = ", ".join(f"{key}={value}" for key, value in wanted.node_selector.items())
    return f"no node has all of {pairs}: correct `node_selector`"


def _refusing_taints(node: "V1Node", wanted: Node) -> list[str]:
    """The taints of a node that keep the pods away, as they are written."""
    taints = [] if node.spec is None else node.spec.taints or []
    hard: list[V1Taint] = [taint for taint in taints if taint.effect in ("NoSchedule", "NoExecute")]
    refusing = [taint for taint in hard if not any(_tolerates(one, taint) for one in wanted.tolerations)]
    return [f"{taint.key}={taint.value or ''}:{taint.effect}" for taint in refusing]


def _tolerates(toleration: Toleration, taint: "V1Taint") -> bool:
    same_effect = toleration.effect in (None, taint.effect)
    same_value = toleration.operator == "Exists" or (toleration.value or "") == (taint.value or "")
    return same_effect and same_value and toleration.key == taint.key


def _about_taints(nodes: list["V1Node"], wanted: Node) -> str:
    taints = sorted({taint for node in nodes for taint in _refusing_taints(node, wanted)})
    return (
        f"all {len(nodes)} nodes with the right labels have taints that the profile does not tolerate "
        f"({', '.join(taints[:SHOWN])}): add them to `tolerations`"
    )


def _about_accelerator(nodes: list["V1Node"], wanted: Node) -> str:
    keys = sorted({key for node in nodes for key in node.status.allocatable or {} if "/" in key})
    others = f"they offer {', '.join(keys[:SHOWN])}" if keys else "is its device plugin installed?"
    return f"none of the {len(nodes)} nodes with the right labels offers {wanted.accelerator} ({others}): correct `accelerator`"


def _about_room(nodes: list["V1Node"], requests: dict[str, str]) -> str:
    largest = max(nodes, key=lambda node: [_offered(node, resource) for resource in reversed(requests)])
    has = ", ".join(f"{(largest.status.allocatable or {}).get(resource, '0')} {resource}" for resource in requests)
    wants = ", ".join(f"{amount} {resource}" for resource, amount in requests.items())
    return f"no node has room for {wants} (the largest offers {has}): lower the requests, or add larger nodes"
