"""A Kubernetes API on loopback that lists the pods of a run and their events, as star/cluster/run_pods.py asks for them."""

import json
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.json_handler import JsonHandler


class Kubernetes(ThreadingHTTPServer):
    """The pods of one run in the namespace kubeflow, and their events."""

    def __init__(self, run_id: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.run_id = run_id
        self.pods: list[dict] = []
        self.events: dict[str, list[dict]] = {}  # by pod
        self.status = 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig that leads here."""
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}],
            "users": [{"name": "u", "user": {}}],
        }
        (folder / "kubeconfig").write_text(json.dumps(config))
        return folder / "kubeconfig"


class _Handler(JsonHandler):
    server: Kubernetes

    def do_GET(self) -> None:
        url, kind = urlsplit(self.path), urlsplit(self.path).path.rpartition("/")[2]
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        assert url.path == f"/api/v1/namespaces/kubeflow/{kind}"
        if self.server.status != 200:
            self.answer(self.server.status, {"kind": "Status", "message": "refused"})
        elif kind == "pods":
            run = query["labelSelector"].removeprefix("pipeline/runid=")
            self.answer(200, {"kind": "PodList", "items": self.server.pods if run == self.server.run_id else []})
        else:
            name = query["fieldSelector"].removeprefix("involvedObject.name=").removesuffix(",type=Warning")
            self.answer(200, {"kind": "EventList", "items": self.server.events.get(name, [])})


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
