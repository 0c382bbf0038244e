"""A teacher behind a server: the same sequences and the same signal as here, over a real HTTP connection."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from star import stages
from star.config import Config
from star.errors import InputError
from star.models import load_model, load_tokenizer
from star.storage import open_input
from star.teacher import server as server_module
from star.teacher.server import TeacherServer
from star.teacher.store import TopKStore


class Served(ThreadingHTTPServer):
    """Speaks what is used of `vllm serve`: /v1/models and /v1/completions, with prompt_logprobs; a real model answers."""

    daemon_threads = True

    def __init__(self, folder: Path, *, max_logprobs: int = 100) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = load_model(folder).eval(), load_tokenizer(folder)
        self.max_logprobs, self.failures, self.token_ids = max_logprobs, 0, True
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def choices(self, request: dict) -> Iterator[dict]:
        torch.manual_seed(request.get("seed", 0))
        for prompt in request["prompt"]:
            for _ in range(request["n"]):
                yield (
                    self.score(prompt, request["prompt_logprobs"])
                    if "prompt_logprobs" in request
                    else self.sample(prompt, request)
                )

    def sample(self, prompt: list[int], request: dict) -> dict:
        assert (request["top_p"], request["top_k"]) == (1.0, -1)
        output = self.model.generate(
            torch.tensor([prompt]),
            do_sample=request["temperature"] > 0,
            temperature=request["temperature"] or 1.0,
            top_k=0,
            max_new_tokens=request["max_tokens"],
            eos_token_id=request["stop_token_ids"],
        )[0, len(prompt) :].tolist()
        finished = output[-1] in request["stop_token_ids"]
        text = self.tokenizer.decode(output[:-1] if finished else output, skip_special_tokens=False)
        choice = {"text": text, "finish_reason": "stop" if finished else "length"}
        return choice | {"token_ids": output} if self.token_ids else choice

    @torch.inference_mode()
    def score(self, prompt: list[int], count: int) -> dict:
        logprobs = torch.log_softmax(self.model(torch.tensor([prompt])).logits[0], -1)
        positions: list = [None]
        for token, row in zip(prompt[1:], logprobs, strict=False):
            chosen = {*row.topk(min(count, self.max_logprobs)).indices.tolist(), token}
            positions.append({str(i): {"logprob": row[i].item(), "decoded_token": "x"} for i in chosen})
        return {"text": "", "finish_reason": "length", "prompt_logprobs": positions}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "teacher"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.failures:
            self.server.failures -= 1
            self.answer(503, {"error": "busy"})
        elif request.get("prompt_logprobs", 0) > self.server.max_logprobs:
            self.answer(
                400, {"error": f"Requested prompt_logprobs, greater than max allowed: {self.server.max_logprobs}"}
            )
        else:
            made = [choice | {"index": index} for index, choice in enumerate(self.server.choices(request))]
            self.answer(200, {"choices": made[::-1]})

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def served(finished: dict[str, Path]) -> Iterator[Served]:
    server = Served(finished["refine-teacher"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def with_server(config: Config, section: str, url: str) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update={"server": url})})


def test_a_served_teacher_gives_the_same_signal(
    served: Served, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    served.failures = 2  # a busy server is asked again
    config = with_server(micro, "topk", served.url)
    folders = {"rollouts": finished["rollout"], "teacher": finished["refine-teacher"]}
    stages.extract_topk(config, **folders, out=tmp_path / "topk")
    store, here = TopKStore(tmp_path / "topk"), TopKStore(finished["extract-topk"])
    assert sorted(store) == sorted(here) and store.provenance == here.provenance
    assert (store.top_k, store.vocab_size) == (here.top_k, here.vocab_size)
    for sequence_id in here:
        np.testing.assert_allclose(store[sequence_id][1], here[sequence_id][1], rtol=0, atol=0.021)
        np.testing.assert_array_equal(store[sequence_id][0][:, 0], here[sequence_id][0][:, 0])


@pytest.mark.parametrize("token_ids", [True, False])
def test_a_served_teacher_is_rolled_out(
    served: Served, micro: Config, finished: dict[str, Path], tmp_path: Path, token_ids: bool
) -> None:
    served.token_ids = token_ids
    config = with_server(micro, "rollout", served.url)
    folders = {"data": finished["synthesize"], "teacher": finished["refine-teacher"]}
    metrics = stages.rollout(config, **folders, out=tmp_path / "rollouts")
    assert metrics["kept"] > 0
    assert open_input(tmp_path / "rollouts", stage="rollout")


def test_samples_end_with_the_end_token(served: Served) -> None:
    tokenizer = served.tokenizer
    for served.token_ids in (True, False):
        groups = TeacherServer(served.url).generate(
            tokenizer, ["<|im_start|>user\nHi", "x"], samples=3, temperature=1.0, max_new_tokens=20, seed=1
        )
        assert [len(group) for group in groups] == [3, 3]
        for sample in (sample for group in groups for sample in group):
            assert sample.finished == (sample.token_ids[-1] == tokenizer.eos_token_id)
            assert tokenizer.eos_token not in sample.text


def test_a_server_that_gives_too_few_logprobs_is_named(served: Served, micro: Config, finished, tmp_path: Path) -> None:
    served.max_logprobs = 5
    folders = {"rollouts": finished["rollout"], "teacher": finished["refine-teacher"]}
    with pytest.raises(InputError, match="refused the request .400.: .*max allowed: 5"):
        stages.extract_topk(with_server(micro, "topk", served.url), **folders, out=tmp_path / "topk")
    assert not (tmp_path / "topk").exists()


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "ATTEMPTS", 1)
    with pytest.raises(InputError, match="server at http://127.0.0.1:9/v1 does not answer .*: start it"):
        TeacherServer("http://127.0.0.1:9/v1/")
