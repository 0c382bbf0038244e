"""A teacher behind a server or in vLLM gives the same sequences and the same signal as with transformers."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from star import stages
from star.config.experiment import Config
from star.config.teacher_signal import Engine, TopK
from star.errors import InputError
from star.evaluation.gather import gather
from star.folders.manifest import open_input
from star.modeling.models import load_model, load_tokenizer
from star.teacher import openai_server as server_module
from star.teacher.openai_server import TeacherServer, split_by_occurrence
from star.teacher.vllm_engine import TeacherEngine
from star.topk.store import TopKStore
from tests.json_handler import JsonHandler


class Teacher:
    """A real model that samples and scores like vLLM's engine: every completion of a prompt has its own seed."""

    def __init__(self, folder: Path, *, max_logprobs: int = 100) -> None:
        self.model, self.tokenizer = load_model(folder).eval(), load_tokenizer(folder)
        self.max_logprobs = max_logprobs

    def sample(
        self, prompt: list[int], number: int, *, seed: int, temperature: float, **limits
    ) -> tuple[list[int], bool]:
        torch.manual_seed(seed + number)
        sampling = {"do_sample": temperature > 0, "temperature": temperature or 1.0, "top_k": 0}
        made = self.model.generate(torch.tensor([prompt]), **sampling, **limits)[0, len(prompt) :].tolist()
        return made, made[-1] in limits["eos_token_id"]

    @torch.inference_mode()
    def score(self, prompt: list[int], count: int) -> list[dict[int, float] | None]:
        logprobs = torch.log_softmax(self.model(torch.tensor([prompt])).logits[0], -1)
        positions: list = [None]
        for token, row in zip(prompt[1:], logprobs, strict=False):
            chosen = {*row.topk(min(count, self.max_logprobs)).indices.tolist(), token}
            positions.append({i: row[i].item() for i in chosen})
        return positions


class Served(ThreadingHTTPServer):
    """The used part of `vllm serve`: /v1/models and /v1/completions with prompt_logprobs. A real model answers."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.teacher, self.failures, self.token_ids = Teacher(folder), 0, True
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def choices(self, request: dict) -> Iterator[dict]:
        for prompt in request["prompt"]:
            for number in range(request["n"]):
                yield (
                    self.score(prompt, request["prompt_logprobs"])
                    if "prompt_logprobs" in request
                    else self.sample(prompt, number, request)
                )

    def sample(self, prompt: list[int], number: int, request: dict) -> dict:
        assert (request["top_p"], request["top_k"]) == (1.0, -1)
        limits = {"max_new_tokens": request["max_tokens"], "eos_token_id": request["stop_token_ids"]}
        output, finished = self.teacher.sample(
            prompt, number, seed=request["seed"], temperature=request["temperature"], **limits
        )
        text = self.teacher.tokenizer.decode(output[:-1] if finished else output, skip_special_tokens=False)
        choice = {"text": text, "finish_reason": "stop" if finished else "length"}
        return choice | {"token_ids": output} if self.token_ids else choice

    def score(self, prompt: list[int], count: int) -> dict:
        positions = [
            position and {str(token): {"logprob": value, "decoded_token": "x"} for token, value in position.items()}
            for position in self.teacher.score(prompt, count)
        ]
        return {"text": "", "finish_reason": "length", "prompt_logprobs": positions}


class Handler(JsonHandler):
    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "teacher"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.failures:
            self.server.failures -= 1
            self.answer(503, {"error": "busy"})
        elif request.get("prompt_logprobs", 0) > self.server.teacher.max_logprobs:
            self.answer(
                400,
                {"error": f"Requested prompt_logprobs, greater than max allowed: {self.server.teacher.max_logprobs}"},
            )
        else:
            made = [choice | {"index": index} for index, choice in enumerate(self.server.choices(request))]
            self.answer(200, {"choices": made[::-1]})


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
    tokenizer = served.teacher.tokenizer
    for served.token_ids in (True, False):
        groups = TeacherServer(served.url).generate(
            tokenizer, ["<|im_start|>user\nHi", "x"], samples=3, temperature=1.0, max_new_tokens=20, seed=1
        )
        assert [len(group) for group in groups] == [3, 3]
        for sample in (sample for group in groups for sample in group):
            assert sample.finished == (sample.token_ids[-1] == tokenizer.eos_token_id)
            assert tokenizer.eos_token not in sample.text


def test_samples_begin_with_what_their_prompt_opens(served: Served) -> None:
    tokenizer, sampling = served.teacher.tokenizer, {"temperature": 1.0, "max_new_tokens": 6, "seed": 1}
    prompts = ["<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n"]
    for served.token_ids in (True, False):
        opened, plain = TeacherServer(served.url).generate(tokenizer, prompts, samples=2, **sampling)
        for sample in opened:
            assert sample.text == "<think>\n" + tokenizer.decode(sample.token_ids).removesuffix(tokenizer.eos_token)
        for sample in plain:
            assert sample.text == tokenizer.decode(sample.token_ids).removesuffix(tokenizer.eos_token)


def test_a_repeated_prompt_gets_different_samples(served: Served) -> None:
    assert split_by_occurrence(["a", "b", "a", "a", "b"]) == [[0, 1], [2, 4], [3]]
    prompts = ["<|im_start|>user\nHi", "x", "<|im_start|>user\nHi"]
    groups = TeacherServer(served.url).generate(
        served.teacher.tokenizer, prompts, samples=2, temperature=1.5, max_new_tokens=12, seed=1
    )
    drawn = [tuple(sample.token_ids) for place in (0, 2) for sample in groups[place]]
    assert len(set(drawn)) == 4


def test_a_server_that_returns_too_few_logprobs_is_named(
    served: Served, micro: Config, finished, tmp_path: Path
) -> None:
    served.teacher.max_logprobs = 5
    folders = {"rollouts": finished["rollout"], "teacher": finished["refine-teacher"]}
    with pytest.raises(InputError, match=r"refused the request \(400\): .*max allowed: 5"):
        stages.extract_topk(with_server(micro, "topk", served.url), **folders, out=tmp_path / "topk")
    assert not (tmp_path / "topk").exists()


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RETRIES", 1)
    with pytest.raises(InputError, match=r"server at http://127\.0\.0\.1:9/v1 does not answer .*: start it"):
        TeacherServer("http://127.0.0.1:9/v1/")


@dataclass
class SamplingParams:
    """The used names and defaults of vLLM."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    stop_token_ids: list[int] = field(default_factory=list)


ENDED: list[str] = []  # the models whose engine was shut down


class LLM:
    """The used part of vLLM's engine, with the fields of its output. A real model answers."""

    def __init__(
        self,
        model: str,
        *,
        max_logprobs: int,
        trust_remote_code: bool,
        gpu_memory_utilization: float,
        tensor_parallel_size: int,
    ) -> None:
        assert not trust_remote_code
        self.teacher = Teacher(Path(model), max_logprobs=max_logprobs)
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: ENDED.append(model)))

    def generate(self, prompts: list[dict], sampling_params, *, use_tqdm: bool) -> list[SimpleNamespace]:
        settings = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        return [self.answer(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, settings, strict=True)]

    def answer(self, prompt: list[int], settings: SamplingParams) -> SimpleNamespace:
        if settings.prompt_logprobs is not None:
            assert settings.prompt_logprobs <= self.teacher.max_logprobs
            positions = [
                position and {token: SimpleNamespace(logprob=value) for token, value in position.items()}
                for position in self.teacher.score(prompt, settings.prompt_logprobs)
            ]
            return SimpleNamespace(prompt_logprobs=positions, outputs=[])
        limits = {"max_new_tokens": settings.max_tokens, "eos_token_id": settings.stop_token_ids}
        made = [
            self.teacher.sample(prompt, number, seed=settings.seed, temperature=settings.temperature, **limits)
            for number in range(settings.n)
        ]
        outputs = [SimpleNamespace(token_ids=ids, finish_reason="stop" if ended else "length") for ids, ended in made]
        return SimpleNamespace(prompt_logprobs=None, outputs=outputs)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself needs a GPU. This module has its names and a real model, and needs none."""
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)


def with_vllm(config: Config, section: str) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update={"vllm": Engine()})})


def test_vllm_in_the_process_gives_the_same_signal(
    vllm: None, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    folders = {"rollouts": finished["rollout"], "teacher": finished["refine-teacher"]}
    stages.extract_topk(with_vllm(micro, "topk"), **folders, out=tmp_path / "topk")
    store, here = TopKStore(tmp_path / "topk"), TopKStore(finished["extract-topk"])
    assert sorted(store) == sorted(here)
    for sequence_id in here:
        np.testing.assert_allclose(store[sequence_id][1], here[sequence_id][1], rtol=0, atol=0.021)
        np.testing.assert_array_equal(store[sequence_id][0][:, 0], here[sequence_id][0][:, 0])


def test_vllm_in_the_process_is_rolled_out(
    vllm: None, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    folders = {"data": finished["synthesize"], "teacher": finished["refine-teacher"]}
    metrics = stages.rollout(with_vllm(micro, "rollout"), **folders, out=tmp_path / "rollouts")
    assert metrics["kept"] > 0
    engine, tokenizer = TeacherEngine(finished["refine-teacher"], Engine()), load_tokenizer(finished["refine-teacher"])
    sampling = {"temperature": 1.5, "max_new_tokens": 12, "seed": 1}
    groups = engine.generate(tokenizer, ["Hi", "x", "Hi"], samples=2, **sampling)
    assert len({tuple(sample.token_ids) for place in (0, 2) for sample in groups[place]}) == 4
    for sample in (sample for group in groups for sample in group):
        assert sample.finished == (sample.token_ids[-1] == tokenizer.eos_token_id)
    [[opened]] = engine.generate(tokenizer, ["<|im_start|>assistant\n<think>\n"], samples=1, **sampling)
    assert opened.text == "<think>\n" + tokenizer.decode(opened.token_ids).removesuffix(tokenizer.eos_token)


def test_vllm_answers_an_evaluation(vllm: None, micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    ENDED.clear()
    model = finished["refine-teacher"]
    answers = {}
    for name, engine in (("vllm", Engine()), ("here", None)):
        settings = micro.evaluate.model_copy(update={"samples": 1, "vllm": engine})
        config = micro.model_copy(update={"evaluate": settings})
        (tmp_path / name).mkdir()
        [made] = gather({"m": model}, finished["synthesize"], config=config, state=tmp_path / name, title="t").models
        answers[name] = [outcome["predicted"] for outcome in made.suites["heldout"]]
    # Greedy answers are the same. The engine ends with the model, so that the next one has its memory.
    assert answers["vllm"] == answers["here"] and [str(model)] == ENDED


def test_a_machine_without_vllm_is_refused(finished: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"vLLM cannot be imported .*: use the image of target `vllm`"):
        TeacherEngine(finished["refine-teacher"], Engine())


def test_two_back_ends_are_refused() -> None:
    with pytest.raises(ValueError, match="two back ends"):
        TopK(server="http://127.0.0.1:9/v1", vllm=Engine())
