"""Extraction: correct log-probs, the same bytes after a kill, shards that make the whole, no start on a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from star import stages
from star.config.experiment import Config
from star.errors import InputError
from star.folders.manifest import read_manifest
from star.modeling.generation import Sequence, completion_hidden_states
from star.modeling.models import load_model
from star.teacher.extract import model_top_k, store_top_k, top_k_logprobs
from star.topk.inspection import inspect_store, print_inspection
from star.topk.sequences import SEQUENCES, SequenceIds, StoredSequences, read_sequences
from star.topk.store import TopKStore, TopKWriter

MICRO = Path(__file__).parents[1] / "micro.yaml"


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    vocab=st.sampled_from([1, 7, 500, 1000, 20000]),
    k=st.integers(1, 120),
    seed=st.integers(0, 99),
)
def test_the_top_k_is_that_of_the_log_softmax(rows: int, vocab: int, k: int, seed: int) -> None:
    k = min(k, vocab)
    logits = 5 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    expected = torch.log_softmax(logits.double(), dim=1)
    ids, logprobs = top_k_logprobs(logits.clone(), k)
    assert torch.allclose(logprobs.double(), expected.topk(k, dim=1).values, atol=1e-5)
    assert torch.allclose(expected.gather(1, ids), logprobs.double(), atol=1e-5)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_ids_lie_anywhere_in_the_vocabulary() -> None:
    logits = torch.zeros(1, 64 * 300 + 5)
    best = [0, 63, 64, 12345, 64 * 300 - 1, 64 * 300, 64 * 300 + 4]
    logits[0, best] = torch.arange(7, 0, -1.0)
    assert top_k_logprobs(logits, 7)[0].tolist() == [best]


def test_the_stored_signal_is_the_teachers(finished: dict[str, Path]) -> None:
    model = load_model(finished["refine-teacher"]).eval()
    folder = finished["extract-topk"]
    store = TopKStore(folder)
    ids, sequences = read_sequences(folder)
    assert sorted(store) == sorted(ids) and len(ids) > 3
    assert {entry.path: entry.rows for entry in read_manifest(folder).files}["sequences.arrow"] == len(ids)
    for sequence_id, sequence in zip(list(ids)[:4], sequences, strict=False):
        with torch.inference_mode():
            logits = model(torch.tensor([sequence.prompt_ids + sequence.completion_ids])).logits[0]
        expected = torch.log_softmax(logits, -1)[len(sequence.prompt_ids) - 1 : -1]
        got_ids, got_logprobs = store[sequence_id]
        assert got_ids.shape == (len(sequence.completion_ids), store.top_k)
        at_ids = expected.gather(1, torch.from_numpy(got_ids).long()).numpy()
        np.testing.assert_allclose(got_logprobs, at_ids, rtol=0, atol=0.0101)
        np.testing.assert_allclose(got_logprobs, expected.topk(store.top_k).values.numpy(), rtol=0, atol=0.0101)


def test_the_store_names_its_teacher_and_tokenizer(finished: dict[str, Path]) -> None:
    provenance = TopKStore(finished["extract-topk"]).provenance
    assert provenance["teacher"] == read_manifest(finished["refine-teacher"]).digest
    assert len(provenance["tokenizer"]) == 64


class Stages(NamedTuple):
    config: Config
    data: Path
    teacher: Path


@pytest.fixture
def inputs(micro: Config, finished: dict[str, Path]) -> Stages:
    return Stages(micro, finished["synthesize"], finished["refine-teacher"])


def test_shards_are_disjoint_and_make_the_whole(inputs: Stages, finished: dict[str, Path], tmp_path: Path) -> None:
    config, data, teacher = inputs
    for number in (1, 2):
        made = tmp_path / f"rollouts-{number}"
        stages.rollout(config, data=data, teacher=teacher, out=made, shard=f"{number}/2")
        stages.extract_topk(config, rollouts=made, teacher=teacher, out=tmp_path / f"topk-{number}")
        assert read_manifest(tmp_path / f"topk-{number}").part == f"{number}/2"
    merged = tmp_path / "rollouts"
    stages.merge([tmp_path / "rollouts-2", tmp_path / "rollouts-1"], out=merged)
    for name in ("sequences.parquet", "prompts.parquet"):
        assert (merged / name).read_bytes() == (finished["rollout"] / name).read_bytes()
    metrics = stages.merge([tmp_path / "topk-1", tmp_path / "topk-2"], out=tmp_path / "topk")
    store, whole = TopKStore(tmp_path / "topk"), TopKStore(finished["extract-topk"])
    assert sorted(store) == sorted(whole)
    assert metrics["tokens"] == store.tokens == whole.tokens
    for sequence_id in whole:
        np.testing.assert_array_equal(store[sequence_id][0][:, 0], whole[sequence_id][0][:, 0])
        np.testing.assert_allclose(store[sequence_id][1], whole[sequence_id][1], atol=0.021)
    stages.distill(config, topk=tmp_path / "topk", out=tmp_path / "student")


def test_shards_of_an_extraction_hold_the_bytes_of_the_whole(
    inputs: Stages, finished: dict[str, Path], tmp_path: Path
) -> None:
    config, _, teacher = inputs
    whole = TopKStore(finished["extract-topk"])
    seen: list[str] = []
    for number in (1, 2, 3):
        out = tmp_path / str(number)
        stages.extract_topk(config, rollouts=finished["rollout"], teacher=teacher, out=out, shard=f"{number}/3")
        part = TopKStore(out)
        assert sorted(part) == sorted(read_sequences(out)[0])
        for sequence_id in part:
            seen.append(sequence_id)
            for got, expected in zip(part[sequence_id], whole[sequence_id], strict=True):
                np.testing.assert_array_equal(got, expected)
    assert sorted(seen) == sorted(whole)
    stages.merge([tmp_path / str(number) for number in (1, 2, 3)], out=tmp_path / "merged")
    name = "sequences.arrow"
    assert (tmp_path / "merged" / name).read_bytes() == (finished["extract-topk"] / name).read_bytes()


def test_distillation_refuses_a_single_shard(inputs: Stages, finished: dict[str, Path], tmp_path: Path) -> None:
    config, _, teacher = inputs
    stages.extract_topk(config, rollouts=finished["rollout"], teacher=teacher, out=tmp_path / "part", shard="1/2")
    with pytest.raises(InputError, match=r"part is shard 1/2 only: .*star merge"):
        stages.distill(config, topk=tmp_path / "part", out=tmp_path / "student")
    with pytest.raises(InputError, match="missing among the shards: 2/2"):
        stages.merge([tmp_path / "part"], out=tmp_path / "whole")
    shutil.copytree(tmp_path / "part", tmp_path / "copy")
    with pytest.raises(InputError, match="the same shard is there twice"):
        stages.merge([tmp_path / "part", tmp_path / "copy"], out=tmp_path / "whole")
    with pytest.raises(InputError, match="is a whole result, not a shard"):
        stages.merge([finished["extract-topk"], tmp_path / "part"], out=tmp_path / "whole")
    stages.rollout(config, data=inputs.data, teacher=teacher, out=tmp_path / "rolled", shard="2/2")
    with pytest.raises(InputError, match="differ in their stage"):
        stages.merge([tmp_path / "part", tmp_path / "rolled"], out=tmp_path / "whole")


def first_file_of_another_run(folder: Path, *, k: int, teacher: str) -> bytes:
    """The first file of a store with the same sequences and their first k ids, as another extraction would write it."""
    store = TopKStore(folder)
    with tempfile.TemporaryDirectory() as other:
        provenance = store.provenance | {"teacher": teacher}
        with TopKWriter(other, k, vocab_size=store.vocab_size, provenance=provenance) as writer:
            for sequence_id in store:
                writer.add(sequence_id, *(array[:, :k] for array in store[sequence_id]))
        return (Path(other) / "topk-00000.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated", "another run", "another k"])
def test_a_damaged_file_is_refused_by_name_before_training(
    damage: str, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    topk = tmp_path / "topk"
    shutil.copytree(finished["extract-topk"], topk)
    file = topk / "topk-00000.safetensors"
    content = file.read_bytes()
    store = TopKStore(topk)
    damaged = {
        "flipped": content[:700] + bytes([content[700] ^ 4]) + content[701:],
        "truncated": content[:-1],
        "another run": first_file_of_another_run(topk, k=store.top_k, teacher="0" * 64),
        "another k": first_file_of_another_run(topk, k=store.top_k - 1, teacher=store.provenance["teacher"]),
    }
    file.unlink()
    if damage != "missing":
        file.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=r"topk-00000\.safetensors is missing or was changed"):
        stages.distill(micro, topk=topk, out=tmp_path / "student")
    assert not (tmp_path / "student").exists() and not list(tmp_path.glob(".student.partial/state/*"))
    with pytest.raises(InputError, match=f"topk-00000.safetensors is .*({damage}|damaged|top_k)"):
        TopKStore(topk)


def written(folder: Path, pairs: list[tuple[list[int], list[int]]]) -> tuple[SequenceIds, StoredSequences]:
    """Sequences of these prompts and completions, as `read_sequences` gives them."""
    rows = [
        {"id": f"row-{number}#0", "prompt_ids": prompt, "completion_ids": completion}
        for number, (prompt, completion) in enumerate(pairs)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / SEQUENCES)
    return read_sequences(folder)


def test_a_full_disk_is_refused_before_the_teacher_runs(tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    ids, sequences = written(tmp_path, [([1] * 5, [2] * 300)] * 2)
    writer = TopKWriter(tmp_path / "store", 100, vocab_size=151936)

    def never(_: list) -> list:
        raise AssertionError("the teacher ran")

    with pytest.raises(InputError, match=r"the top-k of 600 tokens takes about 169 kB and .* has 100 kB free"):
        store_top_k(never, ids, sequences, [np.array([0]), np.array([1])], writer=writer)


def test_the_estimate_is_printed_first(
    finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = load_model(finished["refine-teacher"]).eval()
    ids, sequences = written(tmp_path, [([5, 6], [7, 8, 9]), ([5], [7])])
    with TopKWriter(tmp_path, 4, vocab_size=model.config.vocab_size) as writer:
        top_k = model_top_k(model, pad_id=0, k=4)
        batches = [np.array([0]), np.array([1])]
        assert store_top_k(top_k, ids, sequences, batches, writer=writer) == {"sequences": 2, "tokens": 4}
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("top-k: 2 sequences, 4 tokens; ")
    assert any("completion tokens per second" in line for line in lines)


def test_the_folder_of_another_stage_is_named_as_that(finished: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"rollout is the output of rollout, which holds no top-k"):
        print_inspection(finished["rollout"])


def test_inspection_describes_the_store(finished: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    folder = finished["extract-topk"]
    store = TopKStore(folder)
    found = inspect_store(folder)
    masses = np.concatenate([np.exp(store[sequence_id][1]).sum(1) for sequence_id in store])
    assert found["tokens"] == store.tokens == len(masses)
    assert found["mass_mean"] == pytest.approx(np.minimum(masses, 1).mean(), abs=1e-6)
    assert found["mass_p1"] == pytest.approx(np.quantile(masses, 0.01), abs=0.02)
    assert 0 < found["entropy"] < np.log(store.top_k) + 0.1
    print_inspection(folder)
    assert f"{store.tokens:,}" in capsys.readouterr().out


KILLED_AT = """
import os, random, runpy, signal, sys, threading, time
delay = float(sys.argv.pop(1))
threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
sys.argv[0] = "star"
runpy.run_module("star.cli", run_name="__main__")
"""
SMALL_FILES = """
import sys, runpy
import star.topk.store as store
store.TopKWriter.__init__.__kwdefaults__["tokens_per_file"] = 150
"""


def extraction(finished: dict[str, Path], out: Path) -> list[str]:
    folders = [f"--rollouts={finished['rollout']}", f"--teacher={finished['refine-teacher']}", f"--out={out}"]
    return ["extract-topk", f"--config={MICRO}", *folders]


@pytest.mark.slow
def test_an_extraction_killed_at_any_moment_ends_with_the_same_bytes(finished: dict[str, Path], tmp_path: Path) -> None:
    """Kills at every file operation of the store in turn: write, rename and sync of each shard file, lookup and index."""
    script = (
        SMALL_FILES
        + """
import os, signal
left = int(sys.argv.pop(1))
def counted(function):
    def call(*arguments, **keywords):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call
import star.topk.shard_file as shards
from pathlib import Path
from types import SimpleNamespace
# Only the store's own operations count: tracking writes to the same disk from a thread.
shards.os = SimpleNamespace(**vars(os) | {"fsync": counted(os.fsync)})
replace, counted_replace = Path.replace, counted(Path.replace)
Path.replace = lambda path, target: (counted_replace if path.name.startswith(("topk", "lookup", "index")) else replace)(path, target)
sys.argv[0] = "star"
runpy.run_module("star.cli", run_name="__main__")
"""
    )
    whole = tmp_path / "whole"
    command = [sys.executable, "-c", script]
    subprocess.run([*command, "1000000", *extraction(finished, whole)], check=True, capture_output=True)
    expected = read_manifest(whole).digest
    assert len(list(whole.glob("topk-*"))) >= 3
    out, kept, kills = tmp_path / "out", -1, 0
    while not out.exists():
        # One operation later each time: first at operations on shard files, then on the lookup and the index.
        before = len(list(tmp_path.glob(".out.partial/out/topk-*.safetensors")))
        assert before >= kept
        kept = before
        process = subprocess.run([*command, str(4 + kills), *extraction(finished, out)], capture_output=True)
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), process.stderr.decode()
        assert kills < 60
    assert kills >= 2
    assert read_manifest(out).digest == expected


@pytest.mark.slow
def test_an_extraction_killed_at_random_times_ends_with_the_same_bytes(
    finished: dict[str, Path], tmp_path: Path
) -> None:
    draw = np.random.default_rng(4)
    for number in range(3):
        out = tmp_path / f"out-{number}"
        command = [sys.executable, "-c", KILLED_AT, str(draw.uniform(2, 12)), *extraction(finished, out)]
        subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        again = subprocess.run(
            [sys.executable, "-m", "star.cli", *extraction(finished, out)], capture_output=True, text=True
        )
        assert again.returncode == 0, again.stderr
        assert read_manifest(out).digest == read_manifest(finished["extract-topk"]).digest
        assert json.loads((out / "index.json").read_text())["tokens"] == TopKStore(out).tokens


def test_a_bf16_model_on_a_cpu_gives_logits_that_are_not_rounded(finished: dict[str, Path]) -> None:
    model, k = load_model(finished["refine-teacher"], precision="bf16").cpu().eval(), 4
    sequences = [Sequence([5, 6, 7], [8, 9, 10, 11])]
    [(ids_TK, logprobs_TK)] = model_top_k(model, pad_id=0, k=k)(sequences)
    [hidden_TH] = completion_hidden_states(model, sequences, pad_id=0)
    exact_TV = torch.log_softmax(hidden_TH.float() @ model.get_output_embeddings().weight.detach().float().T, dim=1)
    assert torch.allclose(logprobs_TK, exact_TV.topk(k, dim=1).values, atol=1e-5)
    assert torch.allclose(logprobs_TK, exact_TV.gather(1, ids_TK), atol=1e-5)
