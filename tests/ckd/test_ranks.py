"""Two ranks on a CPU (gloo), under DDP and under FSDP, make the same steps as one process, also where samples share their prompts."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from star.topk.sequences import SEQUENCES
from star.topk.store import TopKWriter

pytestmark = pytest.mark.slow
Trained = tuple[dict[str, torch.Tensor], list[dict]]  # the weights, and the logged figures
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen3DecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@pytest.fixture(scope="module")
def topk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What some teacher says of 12 random sequences of unequal lengths, two of each prompt."""
    folder, rng = tmp_path_factory.mktemp("topk"), torch.Generator().manual_seed(0)
    rows = []
    with TopKWriter(folder, 8, vocab_size=300) as writer:
        for number in range(12):
            tokens = torch.randint(3, 300, (8 + number,), generator=rng).tolist()
            prompt = tokens[:5] if number % 2 == 0 else None  # None: that of the row above
            rows.append({"id": f"s{number:02}", "prompt_ids": prompt, "completion_ids": tokens[5:]})
            logits = 3 * torch.randn(len(tokens) - 5, 300, generator=rng)
            logprobs, ids = torch.log_softmax(logits, dim=1).topk(8, dim=1)
            writer.add(f"s{number:02}", ids, logprobs)
    pq.write_table(pa.Table.from_pylist(rows), folder / SEQUENCES)
    return folder


def trained(topk: Path, out: Path, wrapper: str, *options: str) -> Trained:
    """The weights and the logged figures of a training by one process, or by two."""
    command = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(topk), str(out), wrapper, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (FSDP if wrapper == "fsdp" else {})
    ranks = [{}]
    if wrapper != "alone":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        ranks = [meeting | {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    logs = [out / f"rank{number}.log" for number in range(len(ranks))]
    with ExitStack() as files:
        processes = [
            subprocess.Popen(
                command, env=environment | rank, stdout=files.enter_context(log.open("wb")), stderr=subprocess.STDOUT
            )
            for rank, log in zip(ranks, logs, strict=True)
        ]
        try:
            codes = [process.wait(timeout=240) for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    history = json.loads((out / "state.json").read_text(encoding="utf-8"))["log_history"]
    return load_file(out / "model" / "model.safetensors"), [entry for entry in history if "fkl" in entry]


@pytest.fixture(scope="module")
def alone(topk: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """The training by one process, made once with each of the options."""

    @cache
    def train_alone(*options: str) -> Trained:
        out = tmp_path_factory.mktemp("alone")
        weights, logged = trained(topk, out, "alone", *options)
        started = load_file(out / "started" / "model.safetensors")
        assert max((weights[name] - started[name]).abs().max() for name in weights) > 1e-3 and len(logged) == 3
        return weights, logged

    return train_alone


@pytest.mark.parametrize(("wrapper", "options"), [("ddp", ()), ("fsdp", ()), ("fsdp", ("shared",))])
def test_two_ranks_make_the_steps_of_one(wrapper, options, alone, topk, tmp_path):
    weights, logged = trained(topk, tmp_path, wrapper, *options)
    expected_weights, expected = alone(*options)
    if wrapper == "fsdp":  # saves the tied head by both its names
        assert torch.equal(weights.pop("lm_head.weight"), weights["model.embed_tokens.weight"])
    assert weights.keys() == expected_weights.keys()
    apart = max((weights[name] - expected_weights[name]).abs().max() for name in weights)
    assert apart < 2e-5  # three steps of 1e-3; sums of float32 in another order, which Adam's first steps enlarge
    for entry, other in zip(logged, expected, strict=True):
        for name in ("loss", "fkl", "tail", "entropy", "overlap"):
            assert entry[name] == pytest.approx(other[name], rel=1e-4)
