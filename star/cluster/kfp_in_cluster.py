"""Asks KFP's API from a pod of the cluster: for a run, its pipeline's definition, and the log of a pod.

Its address is KFP_HOST, else that of the namespace `kubeflow`. A server for several users wants a token, in the file that
KF_PIPELINES_SA_TOKEN_PATH names. It goes over http to services of the cluster, as KFP's own client sends it, because servers within
clusters have no https.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from star.http_client import origin, send
from star.http_exchange import Answer

HOST = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
SHORT_NAME = "ml-pipeline.kubeflow"  # of the same service
TIMEOUT_SECONDS = 10.0
MAX_BYTES = 64 * 2**20  # of an answer: KFP's description of a run with all its tasks, or a log
NO_LOG_STATUSES = (404, 500)  # KFP answers 500 for a pod that has no log


class KfpInCluster:
    """KFP's API.

    Attributes:
        host: its address; None where this process is in no cluster, and nobody gave one.
    """

    def __init__(self) -> None:
        self.host = os.environ.get("KFP_HOST") or (HOST if "KUBERNETES_SERVICE_HOST" in os.environ else None)

    def run(self, run_id: str) -> dict[str, Any]:
        """The description of a run. Raises InputError, NoAnswerError, BadStatusError."""
        return self._get(f"/apis/v2beta1/runs/{run_id}").checked().document()

    def definition(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """The definition of a run's pipeline: the run has it, or names the version that has it. Raises as `run`."""
        version = run.get("pipeline_version_reference") or {}
        if run.get("pipeline_spec") or not version.get("pipeline_version_id"):
            return run.get("pipeline_spec")
        path = f"/apis/v2beta1/pipelines/{version['pipeline_id']}/versions/{version['pipeline_version_id']}"
        return self._get(path).checked().document().get("pipeline_spec")

    def log(self, run_id: str, pod: str) -> str:
        """What a pod printed; empty where its log is gone. Raises as `run`."""
        # The API has logs in v1alpha1 only.
        answer = self._get(f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log")
        return "" if answer.status in NO_LOG_STATUSES else answer.checked().content.decode("utf-8", "replace")

    def _get(self, path: str) -> Answer:
        assert self.host is not None, "callers ask only where there is a server"  # noqa: S101 - a mistake of the caller
        token = None
        if (file := os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")) and Path(file).is_file():
            token = Path(file).read_text().strip()
        return send(
            "GET",
            f"{self.host.rstrip('/')}{path}",
            name="KFP_HOST",
            seconds=TIMEOUT_SECONDS,
            token=token,
            max_bytes=MAX_BYTES,
            plain_http=_is_within_cluster(self.host),
        )


def _is_within_cluster(host: str) -> bool:
    """Whether an address can only be a service of the cluster that this process runs in, which has given it its token for KFP."""
    name = (urlsplit(origin(host)).hostname or "").removesuffix(".cluster.local")
    return "KUBERNETES_SERVICE_HOST" in os.environ and (name.endswith(".svc") or name == SHORT_NAME)
