"""A file of a data set on the hub, by its revision: fetched once, compared with its digest, named by its own name."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from star.config.cluster import Cluster
from star.config.experiment import Config
from star.errors import InputError

COMMIT = "0b6dd34c7f2e91aa0b6dd34c7f2e91aa0b6dd34c"
ADDRESS = "hf://datasets/team/rows@v3/data/rows.jsonl"


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one file of one data set, in the form in which the real one answers."""

    content = b'{"messages": []}\n'
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        found = self.path in (
            "/datasets/team/rows/resolve/v3/data/rows.jsonl",
            f"/datasets/team/rows/resolve/{COMMIT}/data/rows.jsonl",
        )
        self.send_response(200 if found else 404)
        content = self.content if found else b""
        headers = {"X-Repo-Commit": COMMIT, "ETag": '"91b1"'} if found else {"X-Error-Code": "EntryNotFound"}
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {"asked": []})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"  # both are made of HF_ENDPOINT at the import
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        yield handler
        server.shutdown()


def test_rows_of_the_hub_are_those_of_a_file(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_bytes(hub.content)
    local = Config.model_validate({"data": {"seed_data": str(tmp_path / "rows.jsonl")}})
    config = Config.model_validate(
        {"data": {"seed_data": ADDRESS}, "cluster": Cluster(secrets={"star-hub": {"HF_TOKEN": "token"}}).model_dump()}
    )
    assert config.slice(("data",)) == local.slice(("data",)) and not config.data.seed_data.is_local
    asked = len(hub.asked)
    assert sum(line.startswith("GET") for line in hub.asked) == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # a stage on the same machine
    again = Config.from_json(config.model_dump_json())
    assert again.data.seed_data.read_verified().read_bytes() == hub.content and len(hub.asked) == asked
    tasks = {task for task in ("synthesize", "rollout", "distill") if config.cluster_of_tasks.secrets_of(task)}
    assert tasks == {"synthesize", "distill"}
    content = json.loads(config.model_dump_json())
    content["data"]["seed_data"]["sha256"] = "a" * 64
    with pytest.raises(InputError, match=f"{ADDRESS} has changed since the run was configured"):
        Config.model_validate(content).data.seed_data.read_verified()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf://datasets/team/rows/data/rows.jsonl", "is not like hf://datasets/TEAM/NAME@REVISION/FILE"),
        ("hf://team/model@v3/config.json", "is not like hf://datasets/"),
        ("hf://datasets/team/rows@v3/none.jsonl", "cannot be fetched .*: check the name and revision, HF_ENDPOINT"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: type[Hub], address: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Config.model_validate({"data": {"tools": address}})
