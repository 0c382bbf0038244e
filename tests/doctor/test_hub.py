"""The hub is asked once, within seconds; without an answer the checks that would ask it again are left out."""

import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from star.config.experiment import Config
from star.config.load import load_config
from star.config.models import Student
from star.doctor.hub import check_hub, hub_models
from star.doctor.preflight import preflight_checks
from star.errors import InputError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A profile of two models of the hub, on a machine with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return load_config("qwen3-0.6b")


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    asked: list[str]
    status = 404

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answer]]:
    handler = type("Handler", (Answer,), {"asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        yield handler
        server.shutdown()


def cache(config: Config, folder: Path) -> None:
    for model in hub_models(config):
        snapshot = folder / f"models--{str(model.base).replace('/', '--')}"
        (snapshot / "refs").mkdir(parents=True)
        (snapshot / "refs" / "main").write_text(model.revision)
        (snapshot / "snapshots" / model.revision).mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            (snapshot / "snapshots" / model.revision / name).write_text("{}")


def test_a_hub_that_cannot_be_reached_is_named_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    # This machine may have no vLLM, which the profile samples with.
    [only] = [check for check in preflight_checks(config) if not check.passed and check.name != "vLLM"]
    assert only.name == "model hub"
    assert "http://127.0.0.1:9 cannot be reached (ConnectionError)" in only.detail
    assert "Qwen/Qwen3-0.6B, Qwen/Qwen3-8B not in the cache" in only.detail
    assert constants.HF_HUB_OFFLINE


def test_a_hub_that_never_answers_costs_seconds(
    config: Config, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent_server)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"it did not answer (within 4 s|in time)"):
        check_hub(hub_models(config))
    assert time.monotonic() - began < 10


def test_cached_models_need_no_hub(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    cache(config, tmp_path / "cache")
    assert check_hub(hub_models(config)).endswith("the models are in the cache")


def test_a_model_without_a_commit_is_named(config: Config, hub: type[Answer]) -> None:
    branch = config.model_copy(update={"student": Student(base="team/model", revision="main")})
    said = check_hub(hub_models(branch))
    assert said.endswith("answers; team/model may change there unnoticed: set `revision` to a commit")


def test_a_file_without_a_commit_is_named(config: Config, hub: type[Answer]) -> None:
    files = [f"hf://datasets/team/{name}/rows.jsonl" for name in ("old@main", f"set@{'a' * 40}")]
    said = check_hub(hub_models(config), files)
    assert said.endswith(
        "answers; hf://datasets/team/old@main/rows.jsonl may change there: write a commit behind the @"
    )


def test_any_answer_will_do_but_that_of_a_broken_server(config: Config, hub: type[Answer]) -> None:
    assert check_hub(hub_models(config)).endswith("answers")
    [path] = hub.asked
    # At the revision of the profile, not at `main`.
    assert re.fullmatch(r"/Qwen/Qwen3-8B/resolve/[0-9a-f]{40}/config\.json", path)
    hub.status = 503
    with pytest.raises(InputError, match="answers 503"):
        check_hub(hub_models(config))


def test_models_from_scratch_and_folders_are_not_looked_up(micro: Config, tmp_path: Path) -> None:
    assert hub_models(micro) == []
    (tmp_path / "folder").mkdir()
    folder = micro.model_copy(update={"student": micro.student.model_validate({"base": str(tmp_path / "folder")})})
    assert hub_models(folder) == []
