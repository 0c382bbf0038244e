"""The real vLLM on this CPU: rollout and signal by its server and in its process, and tool calls by `star call --endpoint`.

`make test-vllm` runs this with an environment of vLLM's own and with the models of `make run`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
import torch

from star import stages
from star.chat import Completion, FormatError, parse_completion, render_prompt, validate_calls
from star.config.experiment import Config
from star.config.load import load_config
from star.data.endpoint import Endpoint
from star.data.rows import read_rows
from star.modeling.generation import Sequence, generate
from star.modeling.models import load_model, load_tokenizer
from star.modeling.served_inference import answer_request_at
from star.teacher.extract import choose_ids, model_top_k
from star.teacher.openai_server import TeacherServer
from star.topk.store import TopKStore

PYTHON = os.environ.get("STAR_TEST_VLLM", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="needs an environment with vLLM: make test-vllm")
ROOT = Path(__file__).parents[2]
# vLLM takes a share of the memory, and a thread per core, unless it is told otherwise.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
ILLEGAL = re.compile(rf"Illegal instruction|SIGILL|exit(?:ed with)? code:? ?-?{signal.SIGILL.value}\b")
START_SECONDS = 900
PARSERS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
K, TOKENS = 50, 72  # as in the profile tiny
# On a CPU vLLM 0.30 ends when it samples with a seed and has to split a prompt over two steps ("CPU Generator does not use offset").
# So no step may be too small for the prompts of a batch.
WHOLE_PROMPTS = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "16384"]


@pytest.fixture(scope="module")
def run() -> dict[str, Path]:
    """The stages' folders of a run of the profile tiny."""
    latest = Path(os.environ["STAR_TEST_RUN"])
    return {name: (latest / name).resolve() for name in ("synthesize", "refine-teacher", "refine")}


@pytest.fixture(scope="module")
def rows(run: dict[str, Path]) -> list[dict]:
    """Held-out rows with one message, as `star call` sends."""
    held_out = read_rows(run["synthesize"] / "heldout.jsonl")
    return [row for row in held_out if [message["role"] for message in row["messages"][:-1]] == ["user"]]


def skip_or_fail(log: str, code: int | None) -> None:
    if code == -signal.SIGILL or ILLEGAL.search(log):
        pytest.skip("this processor lacks an instruction that this build of vLLM uses (illegal instruction)")
    pytest.fail(f"vLLM ended with {code}: {log[-3000:]}")


@contextmanager
def serving(model: Path, folder: Path, *options: str) -> Iterator[str]:
    """The URL of vLLM's own server with a model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny"]
    limits = ["--max-logprobs", "100", "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), *limits, *WHOLE_PROMPTS, *options],
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                skip_or_fail(log.read_text(errors="replace"), server.poll())
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        # With the processes that it has started. Where it ended by itself, the error must not hide why.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def teacher_url(run: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(run["refine-teacher"], tmp_path_factory.mktemp("teacher")) as url:
        yield url


def profile(folder: Path, sections: str) -> Config:
    """The profile tiny with a small rollout and these sections."""
    file = folder / "profile.yaml"
    file.write_text(f"extends: {ROOT / 'configs' / 'tiny.yaml'}\n{sections}\n")
    return load_config(str(file))


def test_a_served_teacher_answers_as_in_this_process(teacher_url: str, run: dict[str, Path], rows: list[dict]) -> None:
    model, tokenizer = load_model(run["refine-teacher"]), load_tokenizer(run["refine-teacher"])
    prompts = [render_prompt(row["messages"][:-1], row["tools"], tokenizer) for row in rows[:50]]
    settings = {"samples": 1, "temperature": 0.0, "max_new_tokens": TOKENS, "seed": 7}
    here = generate(model, tokenizer, prompts, **settings)
    served = TeacherServer(teacher_url).generate(tokenizer, prompts, **settings)
    equal = sum(a == b for a, b in zip(here, served, strict=True))
    print(f"\ngreedy answers equal to transformers', to the id: {equal} of {len(prompts)}")
    # A tie in the logits may be broken differently.
    assert equal >= 0.96 * len(prompts)


def test_a_rollout_by_the_server_through_the_stage(teacher_url: str, run: dict[str, Path], tmp_path: Path) -> None:
    sizes = "prompts: 64, samples: 4, batch_size: 32, max_new_tokens: 72, retries: 1"
    folders = {"data": run["synthesize"], "teacher": run["refine-teacher"]}
    kept = {}
    for name, server in (("transformers", ""), ("vLLM", f", server: '{teacher_url}'")):
        config = profile(tmp_path, f"rollout: {{{sizes}{server}}}")
        metrics = stages.rollout(config, **folders, out=tmp_path / name)
        kept[name] = metrics["kept"]
        print(f"\nrollout by {name}: " + ", ".join(f"{key} {value:g}" for key, value in metrics.items()))
    sequences = pq.read_table(tmp_path / "vLLM" / "sequences.parquet").to_pylist()
    assert len(sequences) == kept["vLLM"] > 0
    assert all(parse_completion(sequence["completion"]) for sequence in sequences)
    # Other random numbers, but the same distribution: of 256 samples, the share kept is off by 4 standard deviations at most.
    assert abs(kept["vLLM"] - kept["transformers"]) <= 0.12 * 256


def test_the_signal_of_the_server_is_that_of_our_extraction(
    teacher_url: str, run: dict[str, Path], rows: list[dict], tmp_path: Path
) -> None:
    model, tokenizer = load_model(run["refine-teacher"]).eval(), load_tokenizer(run["refine-teacher"])
    prompts = [render_prompt(row["messages"][:-1], row["tools"], tokenizer) for row in rows[:50]]
    samples = generate(model, tokenizer, prompts, samples=2, temperature=1.0, max_new_tokens=TOKENS, seed=7)
    sequences = [
        Sequence(tokenizer(prompt, add_special_tokens=False)["input_ids"], sample.token_ids)
        for prompt, group in zip(prompts, samples, strict=True)
        for sample in group
    ]
    stored = choose_ids(tokenizer, rows=model.config.vocab_size, top_k=K)
    given = {"k": stored.k, "excluded_ids": stored.excluded_ids}
    here = model_top_k(model, pad_id=tokenizer.pad_token_id, **given)(sequences)
    served = TeacherServer(teacher_url).top_k(sequences, **given)
    worst, other_ids, tokens = compare_signals(here, served)
    print(f"\nsignal of {tokens} tokens, top {K}: worst difference {worst:.2e} nats; {other_ids} tokens with other ids")
    assert worst < 1e-4
    # And through the stage: the store's own rounding is 0.01 nats.
    rollouts = stages.rollout(
        profile(tmp_path, "rollout: {prompts: 32, samples: 2, batch_size: 32}"),
        data=run["synthesize"],
        teacher=run["refine-teacher"],
        out=tmp_path / "rollouts",
    )
    stores = {}
    for name, server in (("here", ""), ("served", f", server: '{teacher_url}'")):
        config = profile(tmp_path, f"topk: {{top_k: {K}{server}}}")
        folders = {"rollouts": tmp_path / "rollouts", "teacher": run["refine-teacher"]}
        stages.extract_topk(config, **folders, out=tmp_path / name)
        stores[name] = TopKStore(tmp_path / name)
    assert rollouts["kept"] == len(stores["here"]) == len(stores["served"])
    ids = pq.read_table(tmp_path / "rollouts" / "sequences.parquet")["id"].to_pylist()
    pairs = [[tuple(map(torch.as_tensor, stores[name][sequence])) for sequence in ids] for name in ("here", "served")]
    worst, _, tokens = compare_signals(*pairs)
    print(f"stored signal of {tokens} tokens: worst difference {worst:.2e} nats")
    assert worst < 0.025


def compare_signals(first: list, second: list) -> tuple[float, int, int]:
    """Largest difference of log-probs of ids that both have, number of tokens whose sets of ids differ, number of tokens."""
    worst, other_ids, tokens = 0.0, 0, 0
    for (ids, logprobs), (second_ids, second_logprobs) in zip(first, second, strict=True):
        for row in range(len(ids)):
            pairs = [
                dict(zip(of_row.tolist(), values.tolist(), strict=True))
                for of_row, values in ((ids[row], logprobs[row]), (second_ids[row], second_logprobs[row]))
            ]
            both = pairs[0].keys() & pairs[1].keys()
            worst = max(worst, *(abs(pairs[0][token] - pairs[1][token]) for token in both))
            other_ids += pairs[0].keys() != pairs[1].keys()
            tokens += 1
    return worst, other_ids, tokens


def test_vllm_in_the_stages_own_process(run: dict[str, Path], tmp_path: Path) -> None:
    """`rollout.vllm`, `topk.vllm` and `evaluate.vllm`, each with the command and with vLLM's Python."""
    # Small batches for the reason of WHOLE_PROMPTS.
    sections = """rollout: {prompts: 32, samples: 2, batch_size: 8, vllm: {}}
topk: {vllm: {}}
evaluate: {samples: 2, batch_size: 8, vllm: {}}"""
    profile(tmp_path, sections)
    folders = {"--config": "profile.yaml", "--data": run["synthesize"], "--teacher": run["refine-teacher"]}
    star(tmp_path, "rollout", folders, "--out", "rollouts")
    folders.pop("--data")
    star(tmp_path, "extract-topk", folders, "--rollouts", "rollouts", "--out", "topk")
    stages.extract_topk(
        profile(tmp_path, ""), rollouts=tmp_path / "rollouts", teacher=run["refine-teacher"], out=tmp_path / "here"
    )
    stores = [TopKStore(tmp_path / name) for name in ("here", "topk")]
    ids = pq.read_table(tmp_path / "rollouts" / "sequences.parquet")["id"].to_pylist()
    worst, _, tokens = compare_signals(
        *[[tuple(map(torch.as_tensor, store[name])) for name in ids] for store in stores]
    )
    print(
        f"\nin the process: {len(ids)} sequences; stored signal of {tokens} tokens, worst difference {worst:.2e} nats"
    )
    assert len(ids) > 0 and worst < 0.025
    scores = {}
    for name, text in (("vLLM", sections), ("transformers", "evaluate: {samples: 2}")):
        profile(tmp_path, text)
        python = PYTHON if name == "vLLM" else sys.executable
        given = {
            "--config": "profile.yaml",
            "--model": run["refine"],
            "--data": run["synthesize"],
            "--suite": "heldout",
        }
        star(tmp_path, "evaluate", given, "--out", name, python=python)
        [scores[name]] = json.loads((tmp_path / name / "evaluation.json").read_text())["models"].values()
    exact = {name: score["heldout"]["exact_match"] for name, score in scores.items()}
    print(f"evaluation by vLLM and by transformers: exact match {exact}")
    assert abs(exact["vLLM"] - exact["transformers"]) <= 0.02


def star(folder: Path, command: str, options: dict[str, object], *more: str, python: str = PYTHON) -> None:
    words = [python, "-m", "star.cli", command, *(str(word) for pair in options.items() for word in pair), *more]
    environment = {**ENVIRONMENT, "STAR_HOME": str(folder / "home")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        skip_or_fail(done.stdout + done.stderr, done.returncode)


def test_star_call_asks_the_server(run: dict[str, Path], rows: list[dict], tmp_path: Path) -> None:
    """The champion's own answers, by a server that parses calls and by one that does not, against those in this process."""
    asked = rows[:50]
    model, tokenizer = load_model(run["refine"]), load_tokenizer(run["refine"])
    prompts = [render_prompt(row["messages"][:-1], row["tools"], tokenizer) for row in asked]
    groups = generate(model, tokenizer, prompts, samples=1, temperature=0.0, max_new_tokens=TOKENS, seed=7)
    here = [answer(read, sample.text, row["tools"]) for row, [sample] in zip(asked, groups, strict=True)]
    for name, options in (("parses calls", PARSERS), ("sends text", [])):
        with serving(run["refine"], tmp_path, *options) as url:
            endpoint = Endpoint(url).found_model()
            served = [
                answer(answer_request_at, endpoint, query(row), tools=row["tools"], max_tokens=TOKENS) for row in asked
            ]
            equal = sum(a == b for a, b in zip(here, served, strict=True))
            calls = sum(isinstance(made, Completion) and bool(made.tool_calls) for made in served)
            print(f"\nserver that {name}: {equal} of {len(asked)} answers as in this process, {calls} with calls")
            assert equal >= 0.96 * len(asked) and calls
            (tmp_path / "tools.json").write_text(json.dumps(asked[0]["tools"]))
            words = ["call", query(asked[0]), "--tools", "tools.json", "--endpoint", url, "--max-tokens", str(TOKENS)]
            done = subprocess.run(
                [sys.executable, "-m", "star.cli", *words], cwd=tmp_path, capture_output=True, text=True
            )
            print(f"$ star call {query(asked[0])!r} --tools tools.json --endpoint {url}\n{done.stdout}", end="")
            assert done.returncode == 0, done.stderr


def query(row: dict) -> str:
    return row["messages"][0]["content"]


def read(text: str, tools: list[dict]) -> Completion:
    completion = parse_completion(text)
    validate_calls(completion, tools)
    return completion


def answer(ask: Callable[..., Completion], *arguments: object, **settings: object) -> Completion | str:
    """The completion, or why there is none."""
    try:
        return ask(*arguments, **settings)
    except FormatError as error:
        return str(error.__cause__ or error)


def test_vllms_parser_and_ours_on_200_answers(run: dict[str, Path], rows: list[dict]) -> None:
    """Where ours reads calls, vLLM's `hermes` reads the same; what else differs is counted by its reason."""
    model, tokenizer = load_model(run["refine"]), load_tokenizer(run["refine"])
    prompts = [render_prompt(row["messages"][:-1], row["tools"], tokenizer) for row in rows[:50]]
    texts = []
    for temperature in (1.0, 1.5):  # the second breaks many of them
        groups = generate(model, tokenizer, prompts, samples=2, temperature=temperature, max_new_tokens=TOKENS, seed=7)
        texts += [sample.text for group in groups for sample in group]
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("inside.py")), "parse", str(run["refine"])],
        input=json.dumps(texts),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        skip_or_fail(done.stdout + done.stderr, done.returncode)
    counts: Counter[str] = Counter()
    for text, theirs in zip(texts, json.loads(done.stdout.splitlines()[-1]), strict=True):
        read = "no call" if theirs is None else "calls"
        try:
            ours = parse_completion(text)
        except FormatError as error:
            counts[f"vLLM reads {read}, ours refuses: {error}"] += 1
            continue
        if ours.tool_calls == (theirs or []):
            counts["the same " + ("calls" if theirs else "reply")] += 1
        else:
            counts["other calls"] += 1
            print(f"\n{text!r}\nvLLM {theirs}\nours {ours.tool_calls}")
    print(f"\n{len(texts)} answers:")
    for what, count in counts.most_common():
        print(f"{count:5} {what}")
    assert len(texts) == 200 and not counts["other calls"] and counts["the same calls"]


def test_the_arguments_of_sim_rl_are_those_of_trl_and_vllm() -> None:
    """TRL runs vLLM on CUDA only. So the classes are compared: what TRL passes on is known to this vLLM."""
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("inside.py")), "trl"], env=ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        skip_or_fail(done.stdout + done.stderr, done.returncode)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\nvLLM {found['version']}: TRL passes {', '.join(found['passed'])}")
    assert found["available"] and not found["unknown to LLM"] and not found["unknown to SamplingParams"]
    arguments = found["arguments"]
    assert (arguments["use_vllm"], arguments["vllm_mode"]) == (True, "colocate")
    assert arguments["vllm_max_model_length"] == 5000 + load_config("qwen3-0.6b").refine.max_new_tokens
