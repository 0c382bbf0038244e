"""The part of a KFP server that keeps pipelines, their versions and recurring runs.

Requests are held to what KFP 2.17's API server checks (backend/src/apiserver/server/pipeline_server.go, pipeline_upload_server.go,
job_server.go, resource/resource_manager.go of kubeflow/pipelines); answers have the fields of `kfp_server_api`'s models, where proto's
defaults (false, zero) are left out.
"""

import json
import re
from email.parser import BytesParser
from email.policy import HTTP
from itertools import count
from typing import Any

import kfp_server_api
import yaml

MOMENT = "2026-01-01T00:00:00Z"
LIST_PARAMETERS = {"page_token", "page_size", "sort_by", "filter", "namespace"}
BAD_REQUEST = 3  # gRPC's INVALID_ARGUMENT
Answer = tuple[int, object]


def refusal(status: int, message: str, *, code: int = BAD_REQUEST) -> Answer:
    return status, {"code": code, "message": message, "details": []}


class PipelineStore:
    """Pipelines, versions and recurring runs, each a dictionary in the form of its model."""

    def __init__(self) -> None:
        self.pipelines: list[dict] = []
        self.versions: list[dict] = []
        self.recurring_runs: list[dict] = []
        self.numbers = count(1)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, content_type: str) -> Answer | None:
        """The answer to a request, or None if it is for another part of the server."""
        match = re.fullmatch(r"/apis/v2beta1/(pipelines|recurringruns)(/.*|)", path)
        if not match:
            return None
        kind, rest = match.groups()
        if kind == "pipelines":
            return self._pipelines(method, rest, query, body, content_type)
        return self._recurring(method, rest, query, body)

    def _pipelines(self, method: str, rest: str, query: dict[str, str], body: bytes, content_type: str) -> Answer:
        if (method, rest) == ("POST", ""):
            return self._create_pipeline(json.loads(body))
        if (method, rest) == ("GET", ""):
            return _listed("pipelines", self.pipelines, query, LIST_PARAMETERS)
        if (method, rest) == ("POST", "/upload_version"):
            return self._upload_version(query, body, content_type)
        if method == "GET" and (match := re.fullmatch(r"/([^/]+)(?:/versions/([^/]+))?", rest)):
            entries, key = (self.versions, "pipeline_version_id") if match[2] else (self.pipelines, "pipeline_id")
            found = [entry for entry in entries if entry[key] == match[match.lastindex]]
            return (200, found[0]) if found else refusal(404, f"ResourceNotFoundError: {rest} not found", code=5)
        if match := re.fullmatch(r"/([^/]+)/versions", rest):
            of_pipeline = [entry for entry in self.versions if entry["pipeline_id"] == match[1]]
            return _listed("pipeline_versions", of_pipeline, query, LIST_PARAMETERS - {"namespace"})
        if method == "DELETE" and (match := re.fullmatch(r"/([^/]+)/versions/([^/]+)", rest)):
            self.versions[:] = [entry for entry in self.versions if entry["pipeline_version_id"] != match[2]]
            return 200, {}
        if method == "DELETE" and (match := re.fullmatch(r"/([^/]+)", rest)):
            if any(entry["pipeline_id"] == match[1] for entry in self.versions) and query.get("cascade") != "True":
                return refusal(400, "as it has existing pipeline versions", code=9)
            self.pipelines[:] = [entry for entry in self.pipelines if entry["pipeline_id"] != match[1]]
            self.versions[:] = [entry for entry in self.versions if entry["pipeline_id"] != match[1]]
            return 200, {}
        raise AssertionError(f"{method} pipelines{rest} is no request of KFP's client")

    def _create_pipeline(self, body: dict) -> Answer:
        assert set(body) <= set(kfp_server_api.V2beta1Pipeline.openapi_types)
        if not body.get("name"):
            return refusal(400, "name is required")
        if any(
            (entry["name"], entry.get("namespace")) == (body["name"], body.get("namespace")) for entry in self.pipelines
        ):
            return refusal(409, f"Already exist error: The name {body['name']} already exist", code=6)
        made = {"pipeline_id": f"p-{next(self.numbers)}", "display_name": body["name"], **body, "created_at": MOMENT}
        self.pipelines.append(made)
        return 200, made

    def _upload_version(self, query: dict[str, str], body: bytes, content_type: str) -> Answer:
        assert set(query) <= {"name", "display_name", "description", "pipelineid", "tags", "code_source_url"}
        package = _part(body, content_type, name="uploadfile")
        if not any(entry["pipeline_id"] == query["pipelineid"] for entry in self.pipelines):
            return refusal(400, "Failed to create a pipeline version")
        of_pipeline = [entry for entry in self.versions if entry["pipeline_id"] == query["pipelineid"]]
        if query["name"] in {entry["name"] for entry in of_pipeline}:
            return refusal(409, "Failed to create a pipeline version")
        made = {
            "pipeline_id": query["pipelineid"],
            "pipeline_version_id": f"v-{next(self.numbers)}",
            "display_name": query["name"],
            "name": query["name"],
            "description": query.get("description", ""),
            "created_at": MOMENT,
            "pipeline_spec": spec_of(package),
        }
        self.versions.append(made)
        return 200, made

    def _recurring(self, method: str, rest: str, query: dict[str, str], body: bytes) -> Answer:
        if (method, rest) == ("POST", ""):
            return self._create_recurring_run(json.loads(body))
        if (method, rest) == ("GET", ""):
            group = query.get("experiment_id")
            found = [entry for entry in self.recurring_runs if group in (None, entry["experiment_id"])]
            return _listed("recurringRuns", found, query, LIST_PARAMETERS | {"experiment_id"})
        match = re.fullmatch(r"/([^/:]+)(?::(enable|disable))?", rest)
        assert match, f"{method} recurringruns{rest} is no request of KFP's client"
        [entry] = [entry for entry in self.recurring_runs if entry["recurring_run_id"] == match[1]] or [None]
        if entry is None:
            return refusal(404, f"ResourceNotFoundError: Job {match[1]} not found", code=5)
        if match[2]:
            entry["mode"], entry["status"] = match[2].upper(), f"{match[2].upper()}D"
            return 200, {}
        if method == "DELETE":
            assert set(query) <= {"propagation_policy"}
            self.recurring_runs.remove(entry)
            return 200, {}
        return 200, entry

    def _create_recurring_run(self, body: dict) -> Answer:
        assert set(body) <= set(kfp_server_api.V2beta1RecurringRun.openapi_types)
        if not 1 <= int(body["max_concurrency"]) <= 10:
            return refusal(400, "The max concurrency of the recurring run is out of range. Support 1-10.")
        cron = body["trigger"].get("cron_schedule", {}).get("cron")
        if cron is not None and len(cron.split()) != 6:
            return refusal(400, "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron).")
        version = body["pipeline_version_reference"]["pipeline_version_id"]
        if version not in {entry["pipeline_version_id"] for entry in self.versions}:
            return refusal(404, f"ResourceNotFoundError: PipelineVersion {version} not found", code=5)
        times = next(iter(body["trigger"].values()))
        if "interval_second" in times:
            times["interval_second"] = str(times["interval_second"])  # 64 bits are text in proto's JSON
        made = {
            **{key: value for key, value in body.items() if value is not False},
            "recurring_run_id": f"s-{next(self.numbers)}",
            "max_concurrency": str(body["max_concurrency"]),
            "status": "ENABLED" if body["mode"] == "ENABLE" else "DISABLED",
            "created_at": MOMENT,
            "updated_at": MOMENT,
        }
        self.recurring_runs.append(made)
        return 200, made


def _listed(key: str, entries: list[dict], query: dict[str, str], known: set[str]) -> Answer:
    """One entry a page, so that all of them are found only by whoever reads all pages."""
    assert set(query) <= known, f"unknown parameters: {set(query) - known}"
    if wanted := query.get("filter"):
        [predicate] = json.loads(wanted)["predicates"]
        assert predicate["operation"] in ("EQUALS", 1) and predicate["key"] in ("display_name", "name")
        entries = [entry for entry in entries if entry[predicate["key"]] == predicate["stringValue"]]
    page = int(query.get("page_token") or 0)
    more = {"next_page_token": str(page + 1)} if page + 1 < len(entries) else {}
    return 200, {key: entries[page : page + 1], "total_size": len(entries), **more} if entries else {}


def _part(body: bytes, content_type: str, *, name: str) -> bytes:
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    [part] = [part for part in message.iter_parts() if part.get_param("name", header="content-disposition") == name]
    return part.get_payload(decode=True)


def spec_of(compiled: bytes | str) -> dict[str, Any]:
    """A compiled pipeline as the server returns it: its definition, and what concerns Kubernetes beside it."""
    documents = list(yaml.load_all(compiled, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    if len(documents) == 1:
        return documents[0]
    return {"pipeline_spec": documents[0], "platform_spec": documents[1]}
