"""Looks at the pods of a run in the cluster, for what KFP's API does not tell: why a pod waits, and whether it was killed for memory.

It needs a kubeconfig (KUBECONFIG, or ~/.kube/config) whose account may list pods and events, or runs in the cluster. Whatever goes wrong
here makes no difference to the run: `problem` then says it, once.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.config.cluster import QUEUE_LABEL
from star.http_client import within
from star.http_exchange import NoAnswerError

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

SECONDS = 15.0  # for one look, with the plugin that a kubeconfig may start to get a token
# A container waits with these while all is well.
STARTING = ("ContainerCreating", "PodInitializing")
RUN_LABEL = "pipeline/runid"


@dataclass(frozen=True)
class PodFinding:
    """What is wrong with a pod. `kind` is Kubernetes' word for it, such as OOMKilled or CreateContainerConfigError."""

    kind: str
    text: str


@dataclass
class RunPods:
    """The pods of one run.

    Attributes:
        problem: Why the pods cannot be looked at, once that was tried; None while it works.
    """

    run_id: str
    namespace: str
    problem: str | None = None
    _api: "CoreV1Api | None" = field(default=None, repr=False)

    def findings(self) -> dict[str, PodFinding]:
        """What is wrong with the run's pods, by their names. Empty where all is well, or where they cannot be looked at."""
        if self.problem or not has_cluster():
            return {}
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config import ConfigException
        from urllib3.exceptions import HTTPError

        try:
            return within(SECONDS, self._look)
        except ApiException as error:
            self.problem = f"HTTP {error.status} {error.reason}" if error.status else str(error.reason)
        except HTTPError as error:
            self.problem = f"no answer from the cluster ({type(error).__name__})"
        except (ConfigException, NoAnswerError, OSError, ValueError, TypeError) as error:
            self.problem = f"{type(error).__name__}: {str(error)[:200]}"
        return {}

    def _look(self) -> dict[str, PodFinding]:
        self._api = api = self._api or _connect()
        pods = api.list_namespaced_pod(self.namespace, label_selector=f"{RUN_LABEL}={self.run_id}").items

        def warnings(pod: str) -> list[Any]:
            selector = f"involvedObject.name={pod},type=Warning"
            return api.list_namespaced_event(self.namespace, field_selector=selector).items

        found = {pod.metadata.name: finding_of(pod, warnings) for pod in pods}
        return {name: finding for name, finding in found.items() if finding}


def has_cluster() -> bool:
    """Whether this process knows a cluster: by a kubeconfig, or because it runs in it."""
    paths = os.environ.get("KUBECONFIG", str(Path.home() / ".kube" / "config")).split(os.pathsep)
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(Path(path).is_file() for path in paths if path)


def finding_of(pod: Any, warnings: Callable[[str], Sequence[Any]]) -> PodFinding | None:
    """What is wrong with a pod, by its description. Its events are asked for only where that does not tell.

    Args:
        pod: A V1Pod.
        warnings: Returns the V1Events of type Warning about a pod, the oldest first.
    """
    status = pod.status
    containers = [*(status.init_container_statuses or []), *(status.container_statuses or [])]
    for container in containers:
        state = container.state
        if state and state.terminated and state.terminated.reason == "OOMKilled":
            limit = _memory_limit(pod, container.name)
            return PodFinding("OOMKilled", f"killed because it used more memory than its limit{limit}")
        if state and state.waiting and state.waiting.reason not in (None, *STARTING):
            return PodFinding(state.waiting.reason, state.waiting.message or "")
    if status.phase == "Failed" and status.reason:  # such as Evicted
        return PodFinding(status.reason, status.message or "")
    for condition in status.conditions or []:
        queue = (pod.metadata.labels or {}).get(QUEUE_LABEL)
        if condition.type == "PodScheduled" and condition.reason == "SchedulingGated" and queue:
            return PodFinding("SchedulingGated", f"it waits for room in Kueue's queue {queue}")
        if condition.type == "PodScheduled" and condition.status == "False":
            return PodFinding(condition.reason or "Unschedulable", condition.message or "")
    if status.phase == "Pending" and (events := warnings(pod.metadata.name)):
        return PodFinding(events[-1].reason or "Pending", events[-1].message or "")
    return None


def _memory_limit(pod: Any, container: str) -> str:
    for spec in [*(pod.spec.init_containers or []), *pod.spec.containers]:
        if spec.name == container and spec.resources and (spec.resources.limits or {}).get("memory"):
            return f" of {spec.resources.limits['memory']}"
    return ""


def _connect() -> "CoreV1Api":
    from kubernetes import client, config

    if "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG"):
        config.load_incluster_config(settings := client.Configuration())
    else:
        # The package itself reads the variable once, when it is imported.
        file = os.environ.get("KUBECONFIG", "~/.kube/config")
        config.load_kube_config(file, client_configuration=(settings := client.Configuration()))
    settings.retries = 0
    return client.CoreV1Api(client.ApiClient(settings))
