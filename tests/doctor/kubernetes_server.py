"""A Kubernetes API on loopback that answers from a table of objects, in the forms of the real one.

    server.put("/api/v1/namespaces/star/secrets/star-s3", {"kind": "Secret", "data": {...}})
    server.forbidden.append("secrets")        # this account may not read them: 403 with a Status

What does not exist is a Status with 404; a group that the server does not have is `404 page not found` as text. A
LocalSubjectAccessReview is answered by the Roles and RoleBindings that were put.
"""

import json
import re
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.json_handler import JsonHandler

VERSION = {
    "major": "1", "minor": "34", "gitVersion": "v1.34.1", "gitCommit": "0", "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.24", "compiler": "gc", "platform": "linux/amd64",
}  # fmt: skip
RBAC = "/apis/rbac.authorization.k8s.io/v1"
GROUPS = ("/api/v1/", "/apis/storage.k8s.io/v1/", f"{RBAC}/")


class KubernetesServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        objects: path -> object.
        forbidden: words; a request whose path has one of them is answered with 403.
        known: whether the account's credentials are accepted.
        requests: `METHOD path` of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.forbidden: list[str] = []
        self.known = True
        self.groups = list(GROUPS)
        self.requests: list[str] = []
        Thread(target=self.serve_forever, daemon=True).start()

    def put(self, path: str, content: dict[str, Any]) -> None:
        """Adds an object; its name and namespace are those of the path."""
        found = re.search(r"(?:/namespaces/([^/]+))?/[^/]+/([^/]+)$", path)
        assert found
        metadata = {"name": found[2], **({"namespace": found[1]} if found[1] else {}), **content.get("metadata", {})}
        self.objects[path] = {**content, "metadata": metadata}
        group = re.match(r"/apis?/(?:[^/]+\.[^/]+/)?[^/]+/", path)
        assert group
        self.groups.append(group[0])

    def apply(self, file: Path, *, namespace: str) -> None:
        """Adds the accounts, Roles and RoleBindings of a manifest, as kubectl apply -n NAMESPACE does."""
        places = {"ServiceAccount": "/api/v1", "Role": RBAC, "RoleBinding": RBAC}
        for document in yaml.safe_load_all(file.read_text()):
            if root := places.get(document["kind"]):
                plural = f"{document['kind'].lower()}s"
                self.put(f"{root}/namespaces/{namespace}/{plural}/{document['metadata']['name']}", document)

    def kubeconfig(self, folder: Path, *, namespace: str | None = "star") -> Path:
        """A kubeconfig whose context `there` leads here."""
        file = folder / "kubeconfig"
        place = {"cluster": "there", "user": "anna"} | ({"namespace": namespace} if namespace else {})
        cluster = {"server": f"http://127.0.0.1:{self.server_address[1]}"}
        content = {
            "clusters": [{"name": "there", "cluster": cluster}],
            "contexts": [{"name": "there", "context": place}],
            "current-context": "there",
            "users": [{"name": "anna", "user": {"token": "anna's token"}}],
        }
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **content}))
        return file

    def allows(self, account: str, namespace: str, asked: dict[str, Any]) -> bool:
        """Whether a Role that is bound to an account in its namespace allows a request."""
        root = f"{RBAC}/namespaces/{namespace}"
        resource = "/".join(part for part in (asked["resource"], asked.get("subresource")) if part)
        for path, binding in self.objects.items():
            if not path.startswith(f"{root}/rolebindings/"):
                continue
            subjects = [(one["kind"], one["name"], one.get("namespace", namespace)) for one in binding["subjects"]]
            role = self.objects.get(f"{root}/roles/{binding['roleRef']['name']}")
            if ("ServiceAccount", account, namespace) in subjects and role:
                for rule in role["rules"]:
                    names = rule.get("resourceNames")
                    if (
                        asked.get("group", "") in rule["apiGroups"]
                        and resource in rule["resources"]
                        and asked["verb"] in rule["verbs"]
                        and (names is None or asked.get("name") in names)
                    ):
                        return True
        return False


class _Handler(JsonHandler):
    server: KubernetesServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if self._refused("get", path):
            return
        if path == "/version/":
            self.answer(200, VERSION)
        elif path in self.server.objects:
            self.answer(200, self.server.objects[path])
        elif not any(path.startswith(group) for group in self.server.groups):
            self.answer(404, "404 page not found\n")
        elif path == "/api/v1/nodes":
            nodes = [one for key, one in self.server.objects.items() if key.startswith("/api/v1/nodes/")]
            self.answer(
                200, {"kind": "NodeList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": nodes}
            )
        else:
            *_, plural, name = path.split("/")
            self.answer(404, _status(404, "NotFound", f'{plural} "{name}" not found'))

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused("create", path):
            return
        found = re.fullmatch(r"/apis/authorization\.k8s\.io/v1/namespaces/([^/]+)/localsubjectaccessreviews", path)
        assert found and body["spec"]["resourceAttributes"]["namespace"] == found[1], path
        account = body["spec"]["user"].removeprefix(f"system:serviceaccount:{found[1]}:")
        allowed = self.server.allows(account, found[1], body["spec"]["resourceAttributes"])
        self.answer(
            201, {**body, "status": {"allowed": allowed, **({} if allowed else {"reason": "no RBAC policy matched"})}}
        )

    def _refused(self, verb: str, path: str) -> bool:
        self.server.requests.append(f"{verb} {path}")
        if not self.server.known or self.headers.get("authorization") != "Bearer anna's token":
            self.answer(401, _status(401, "Unauthorized", "Unauthorized"))
            return True
        if word := next((word for word in self.server.forbidden if word in path), None):
            message = f'{word} is forbidden: User "anna" cannot {verb} resource "{word}" in API group ""'
            self.answer(403, _status(403, "Forbidden", message))
            return True
        return False


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "details": {}, "code": code,
    }  # fmt: skip
