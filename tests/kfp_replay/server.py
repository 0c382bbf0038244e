"""A KFP server on loopback that replays recorded runs: it speaks API v2beta1 as kfp.Client calls it, and v1alpha1 for logs.

    with KfpReplay(recording([...])) as kfp:          # each request for a run gets its next moment
        star pipeline submit --host KFP.HOST ...       # a submitted run plays the next of the recordings

    KfpReplay(recorded, speed=50)                     # by the clock, 50 times faster than it was recorded
    kfp.run_of(recorded, at=40)                       # a run that another person submitted, 40 recorded seconds ago

What is special about the real server is done here too: a log that does not exist (yet) is answered with 500, a cancelled run goes
through CANCELING to FAILED, and a run names its pipeline inline or by the version that it was started from.
"""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.json_handler import JsonHandler
from tests.kfp_replay.moments import answer_at, moments, node_names, seconds_of
from tests.kfp_replay.pipelines import PipelineStore
from tests.kfp_replay.pipelines import spec_of as spec_of
from tests.kfp_replay.recording import stamp

EXPERIMENT = "0f0f0f0f-0000-4000-8000-0000000000e1"
NO_FAULT = {"code": 14, "message": "upstream connect error"}
Log = (
    str | list[tuple[float, str]]
)  # of a pod: its text, or its lines with the recorded seconds at which they were printed


@dataclass
class Played:
    """One run that the server has, and how far it has played."""

    recorded: dict[str, Any]
    fields: dict[str, Any]  # of the run itself, which the client or the server chose
    began: float
    speed: float | None  # None: one moment per request
    position: int = -1  # of the last moment that was answered
    second: float = 0.0  # recorded seconds since the run's creation, of the last answer
    shift: float = 0.0  # recorded seconds that were left out
    logs: dict[str, Log] = field(default_factory=dict)  # by name of the pod

    def now(self) -> float:
        """The recorded second at which the run is."""
        return self.second if self.speed is None else (time.monotonic() - self.began) * self.speed + self.shift

    def answer(self) -> dict[str, Any]:
        """The description of the run as it is now."""
        if self.speed is None:
            steps = moments(self.recorded)
            self.position = min(self.position + 1, len(steps) - 1)
            self.second = max(self.second, steps[self.position])
        else:
            self.second = self.now()
        return answer_at(self.recorded, self.second) | self.fields

    def listed(self) -> dict[str, Any]:
        """The description in a list of runs, which has no tasks. A look at it lets no time go by."""
        whole = answer_at(self.recorded, self.now()) | self.fields
        return {key: value for key, value in whole.items() if key != "run_details"}

    def cancel(self) -> None:
        """Goes on from where the run was recorded to be cancelled, or ends it now."""
        told = [change for change in self.recorded["state_history"] if change.get("state") == "CANCELING"]
        if told:
            second = seconds_of(self.recorded, told[0]["update_time"])
        else:
            second = self.now()
            self.recorded = _cancelled(self.recorded, second)
        self.shift += max(0.0, second - self.now())
        self.second = second
        self.position = moments(self.recorded).index(second) if second in moments(self.recorded) else self.position


def _cancelled(recorded: dict[str, Any], second: float) -> dict[str, Any]:
    """A recording that is cancelled at a second: what runs fails, and nothing starts any more."""
    cut = deepcopy(answer_at(recorded, second))
    offset = 0.0 if recorded["created_at"] == stamp(0) else seconds_of({"created_at": stamp(0)}, recorded["created_at"])
    for entry in cut["run_details"]["task_details"]:
        if entry.get("state") in ("PENDING", "RUNNING"):
            entry["state_history"].append({"update_time": stamp(offset + second + 4), "state": "FAILED"})
            entry |= {"state": "FAILED", "end_time": stamp(offset + second + 2)}
    cut["state_history"].append({"update_time": stamp(offset + int(second)), "state": "CANCELING"})
    cut["state_history"].append({"update_time": stamp(offset + second + 3), "state": "FAILED"})
    return cut | {"state": "FAILED", "finished_at": stamp(offset + second + 3)}


class KfpReplay(ThreadingHTTPServer):
    """The server.

    Attributes:
        host: Its address.
        recordings: What the submitted runs will play, in turn; the last one again and again.
        runs: The runs that it has, by id.
        logs: Logs of the pods of submitted runs, by name of the pod or of the node.
        token: Bearer token that requests need, if any.
        faults: `METHOD path` -> statuses of the next answers to it.
        arrives: Whether a request that is answered with a fault took effect nevertheless.
        requests: `METHOD path` of every request.
        store: Pipelines with their versions, and recurring runs.
    """

    daemon_threads = True

    def __init__(
        self, *recordings: dict[str, Any], speed: float | None = None, logs: dict[str, Log] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = f"http://127.0.0.1:{self.server_address[1]}"
        self.recordings, self.speed, self.logs = list(recordings), speed, dict(logs or {})
        self.runs: dict[str, Played] = {}
        self.experiments: list[dict[str, Any]] = []
        self.store = PipelineStore()
        self.token: str | None = None
        self.faults: dict[str, list[int]] = {}
        self.arrives = True
        self.requests: list[str] = []
        # Routes that a test adds: (method, pattern of the path, what answers with status and content).
        self.more: list[tuple[str, str, Callable[..., tuple[int, object]]]] = []

    def __enter__(self) -> "KfpReplay":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def run_of(self, recorded: dict[str, Any], *, at: float = 0.0, spec: object = None, **fields: Any) -> str:
        """Adds a run that was submitted before, and returns its id.

        Args:
            at: Recorded seconds since then.
            spec: Its pipeline, as `spec_of` gives it.
            fields: Other fields of the run.
        """
        fields |= {"pipeline_spec": spec} if spec else {}
        played = Played(recorded, fields, time.monotonic(), self.speed, shift=at, second=at, logs=self.logs)
        if self.speed is None:
            played.position = sum(moment < at for moment in moments(recorded)) - 1
        self.runs[recorded["run_id"]] = played
        return recorded["run_id"]

    def submitted(self, body: dict[str, Any]) -> dict[str, Any]:
        """Adds the run that a client asks for, which plays the next recording."""
        recorded = self.recordings.pop(0) if len(self.recordings) > 1 else self.recordings[0]
        run_id = str(uuid.uuid4()) if recorded["run_id"] in self.runs else recorded["run_id"]
        kept = ("display_name", "description", "experiment_id", "service_account", "runtime_config")
        given = {key: body[key] for key in (*kept, "pipeline_spec", "pipeline_version_reference") if key in body}
        self.runs[run_id] = Played(recorded, {**given, "run_id": run_id}, time.monotonic(), self.speed, logs=self.logs)
        return answer_at(recorded, 0.0) | self.runs[run_id].fields

    def log(self, run: Played, node: str) -> str | None:
        """What a pod has printed by now, or None if there is no such pod (yet)."""
        names = node_names(answer_at(run.recorded, run.now())["run_details"]["task_details"])
        if node not in names:
            return None
        printed = run.logs.get(node, run.logs.get(names[node]))
        if isinstance(printed, list):
            lines = [line for second, line in printed if second <= run.now()]
            return "".join(f"{line}\n" for line in lines) if lines else None
        return printed


class _Handler(JsonHandler):
    server: KfpReplay

    def do_GET(self) -> None:
        self.handle_request("GET", b"")

    def do_POST(self) -> None:
        self.handle_request("POST", self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_DELETE(self) -> None:
        self.handle_request("DELETE", b"")

    def handle_request(self, method: str, body: bytes) -> None:
        kfp, url = self.server, urlsplit(self.path)
        kfp.requests.append(f"{method} {url.path}")
        if kfp.token and self.headers.get("Authorization") != f"Bearer {kfp.token}":
            self.answer(401, {"code": 16, "message": "Request header error: there is no user identity header."})
            return
        faults = kfp.faults.get(f"{method} {url.path}", [])
        fault = faults.pop(0) if faults else None
        if fault and not kfp.arrives:
            self.answer(fault, NO_FAULT)
            return
        status, content = self.routed(method, url.path, parse_qs(url.query), body)
        self.answer(fault or status, NO_FAULT if fault else content)

    def routed(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, object]:
        kfp, is_json = self.server, "json" in (self.headers.get("Content-Type") or "json")
        document = json.loads(body or b"{}") if is_json else {}
        for verb, pattern, answer in kfp.more:
            if verb == method and (found := re.fullmatch(pattern, path)):
                return answer(found, query, document)
        if path == "/apis/v2beta1/healthz":
            return 200, {"commit_sha": "0", "tag_name": "2.17.0", "multi_user": False}
        if path.startswith("/apis/v2beta1/experiments"):
            return self.experiments(method, path, document)
        named = {key: values[0] for key, values in query.items()}
        if answer := kfp.store.answer(method, path, named, body, self.headers.get("Content-Type") or ""):
            return answer
        if path.startswith(("/apis/v2beta1/runs", "/apis/v1alpha1/runs")):
            return self.runs(method, path, query, document)
        return 404, {"code": 5, "message": f"{path} not found"}

    def experiments(self, method: str, path: str, document: dict[str, Any]) -> tuple[int, object]:
        known = self.server.experiments
        if method == "DELETE":
            known.clear()
            return 200, {}
        if method == "POST":
            known.append(
                {"experiment_id": EXPERIMENT, "display_name": document["display_name"], "storage_state": "AVAILABLE"}
            )
            return 200, known[-1]
        if path.endswith("/experiments"):
            return 200, {"experiments": known, "total_size": len(known)}
        return (200, known[-1]) if known else (404, {"code": 5, "message": "experiment not found"})

    def runs(self, method: str, path: str, query: dict[str, list[str]], document: dict[str, Any]) -> tuple[int, object]:
        kfp = self.server
        if path == "/apis/v2beta1/runs" and method == "POST":
            return 200, kfp.submitted(document)
        if path == "/apis/v2beta1/runs":
            # It knows no filter and gives one run per page, so that a run is found only by whoever reads all pages.
            known = [run.listed() | {"run_id": run_id} for run_id, run in kfp.runs.items()]
            page = int(query.get("page_token", ["0"])[0])
            more = {"next_page_token": str(page + 1)} if page + 1 < len(known) else {}
            return 200, {"runs": known[page : page + 1], "total_size": len(known), **more}
        found = re.fullmatch(r"/apis/v\w+/runs/([^/:]+)(?:(:terminate)|/nodes/([^/]+)/log)?", path)
        run = kfp.runs.get(found[1]) if found else None
        if not found or run is None:
            return 404, {"code": 5, "message": f"Run {path.rpartition('/')[2]} not found"}
        if found[2]:
            run.cancel()
            return 200, {}
        if found[3]:
            log = kfp.log(run, found[3])
            missing = f"Failed to read logs for run {found[1]}: pods {found[3]!r} not found"
            return (200, log) if log is not None else (500, {"error_message": missing, "error_details": missing})
        if method == "DELETE":
            del kfp.runs[found[1]]
            return 200, {}
        return 200, run.answer()
