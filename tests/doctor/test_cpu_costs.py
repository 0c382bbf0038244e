"""What `star doctor` says of a CPU: times grow with the work, memory with the micro batch, and rows are measured."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from star.config.experiment import Config
from star.doctor import cost_lines, machine
from star.doctor.costs import ModelSize, stage_costs, workload_of
from star.doctor.cpu_costs import BYTES_PER_UPDATE, SECONDS_TO_START, Cpu, measure_cpu, stage_seconds
from star.doctor.estimates import (
    FROZEN,
    FULL,
    GIB,
    describe_base,
    host_memory_needed,
    memory_needed,
    topk_store_bytes,
    workload,
)
from star.doctor.sample_rows import Lengths, measure_lengths, sample_rows, typical_lengths
from tests.small_models import write_scratch_model

# Two cores with AVX-512 and bf16, as measured, and SmolLM2-135M.
TWO_CORES = Cpu(flops=430e9, bytes_per_second=20e9, weight_bytes=2)
SMOLLM2 = ModelSize(134_515_008, 23_040, 30)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scratch_model(tmp_path_factory.mktemp("models") / "base")


def pretrained(base: Path, **settings: object) -> Config:
    bases = {"teacher": {"base": str(base)}, "student": {"base": str(base)}}
    return Config.model_validate({**bases, **settings})


def test_a_stage_takes_longer_where_it_has_more_to_do(base: Path) -> None:
    def seconds(lengths: Lengths, cpu: Cpu = TWO_CORES, **settings: object) -> dict[str, float]:
        config = pretrained(base, **settings)
        work = workload_of(config, teacher=SMOLLM2, student=SMOLLM2, vocab_size=49_152, lengths=lengths)
        return stage_seconds(config, work, cpu)

    lengths = Lengths(500, 180, 320, 75, 540)
    before = seconds(lengths)
    assert min(before.values()) >= SECONDS_TO_START
    longer = seconds(replace(lengths, prompt_tokens=640))
    assert all(longer[stage] > before[stage] for stage in ("rollout", "extract-topk", "distill", "refine"))
    assert seconds(replace(lengths, heldout_prompt_tokens=1000))["evaluate"] > before["evaluate"]
    assert seconds(lengths, distill={"steps": 2000})["distill"] > before["distill"]
    # Of 8 x 395 tokens, 320 + 8 x 75 are left where the samples share their prompt.
    shared = seconds(lengths, distill={"steps": 1000, "share_prompts": True})["distill"]
    assert shared / seconds(lengths, distill={"steps": 1000})["distill"] == pytest.approx(920 / 3160, rel=0.05)
    # 180 rows with 8 samples each in batches of 128, and 11 rollouts of 16 prompts.
    assert seconds(lengths, distill={"epochs": 2}) == seconds(lengths, distill={"steps": 24})
    assert seconds(lengths, refine={"epochs": 3}) == seconds(lengths, refine={"steps": 33})
    # Completions are read by the starting model for the KL term, and by the one that sampled for several updates.
    one_update = {"prompts_per_step": 16, "steps": 32}
    kl = seconds(lengths, refine=one_update)["refine"] - seconds(lengths, refine={**one_update, "beta": 0})["refine"]
    two_updates = {"prompts_per_step": 8, "steps": 64, "updates_per_rollout": 2}
    sampler = seconds(lengths, refine=two_updates)["refine"] - seconds(lengths, refine=one_update)["refine"]
    optimiser = 32 * BYTES_PER_UPDATE * SMOLLM2.parameters / TWO_CORES.bytes_per_second
    assert kl > 0 and sampler - optimiser == pytest.approx(kl)
    slower = seconds(lengths, replace(TWO_CORES, flops=TWO_CORES.flops / 10))
    assert all(slower[stage] > before[stage] for stage in before if stage != "refine-teacher")
    # 8 sequences of 400 tokens take about 10 s a step at 330 tokens per second, as measured.
    distill = {"steps": 100, "batch_size": 8}
    assert 0.7 < (seconds(lengths, distill=distill)["distill"] - SECONDS_TO_START) / (100 * 8 * 395 / 330) < 1.5


def test_the_cpu_is_measured_in_the_type_that_is_computed_in() -> None:
    measured = measure_cpu(bf16=False)
    assert measured.weight_bytes == 4 and measured.flops > 1e8 and measured.bytes_per_second > 1e7


def test_memory_grows_with_the_micro_batch_and_not_with_the_name_of_the_model(base: Path) -> None:
    def needed(micro_batch_size: int, *, bf16: bool = False) -> float:
        distill = {"steps": 1, "batch_size": 64, "micro_batch_size": micro_batch_size}
        config = pretrained(base, distill=distill, max_prompt_tokens=512)
        return host_memory_needed(config, "distill", accelerator=False, processes=1, bf16=bf16)

    assert needed(64, bf16=True) < needed(64)
    assert needed(64) - needed(32) == pytest.approx(2 * (needed(32) - needed(16)))
    assert needed(1) < GIB


def test_a_student_that_loses_layers_is_counted_without_them(base: Path) -> None:
    config = pretrained(base)
    shortened = config.student.model_copy(update={"layers": 2})
    assert describe_base(config.student)[0].num_hidden_layers == 3
    assert describe_base(shortened)[0].num_hidden_layers == 2


def test_the_bases_that_are_evaluated_are_counted(base: Path, tmp_path: Path) -> None:
    trained = {"base": str(base), "refine": {"steps": 1}}
    config, alone = (pretrained(base, teacher=trained, evaluate={"bases": shown}) for shown in (True, False))
    work, of_models = workload(config), workload(alone)
    assert work.bases == (work.teacher,) and of_models.bases == ()
    cost, least = (stage_costs(found)["evaluate"] for found in (work, of_models))
    assert cost.core_seconds > least.core_seconds and cost.card_seconds > least.card_seconds and cost.disk > least.disk
    slower, faster = (stage_seconds(config, found, TWO_CORES)["evaluate"] for found in (work, of_models))
    assert slower > faster
    # A student that lost layers stands beside its whole base.
    other = shutil.copytree(base, tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    shortened = pretrained(other, teacher={"base": str(base)}, student={"base": str(other), "layers": 2})
    [whole] = workload(shortened).bases
    assert (whole.layers, workload(shortened).student.layers) == (3, 2)
    assert memory_needed(shortened, "evaluate") == FROZEN * whole.parameters
    assert host_memory_needed(shortened, "evaluate", accelerator=False, processes=1) > FULL * whole.parameters


def test_rows_are_measured_with_the_tokenizer_of_the_teacher(base: Path, tmp_path: Path) -> None:
    generated = pretrained(base, data={"generated_rows": 500, "heldout_rows": 50})
    lengths = measure_lengths(generated)
    assert lengths.read_rows == 500 and 350 < lengths.rows <= 450
    assert lengths.prompt_tokens == lengths.heldout_prompt_tokens > lengths.completion_tokens > 1
    # Of long rows only some are trained on; all of them are evaluated on.
    shorter = measure_lengths(generated.model_copy(update={"max_prompt_tokens": int(lengths.prompt_tokens)}))
    assert shorter.rows < lengths.rows
    assert shorter.prompt_tokens < lengths.prompt_tokens == shorter.heldout_prompt_tokens
    # Rows of a file are counted, though few are read.
    rows, _ = sample_rows(generated)
    seeds = tmp_path / "rows.jsonl"
    seeds.write_text("".join(json.dumps(row) + "\n" for row in rows * 20))
    given = pretrained(base, data={"seed_data": str(seeds), "generated_rows": 0, "heldout_rows": 50})
    assert measure_lengths(given).read_rows == 20 * len(rows)
    sources = [{"path": str(seeds), "source": "half", "share": 0.5}, {"path": str(seeds), "source": "few", "rows": 100}]
    listed = pretrained(base, data={"sources": sources, "generated_rows": 0, "heldout_rows": 50})
    assert measure_lengths(listed).read_rows == 10 * len(rows) + 100
    # Where no row is looked at, they are counted all the same, and those that are held out are not trained on.
    known = typical_lengths(listed)
    assert (known.read_rows, known.rows) == (10 * len(rows) + 100, 10 * len(rows) + 50)
    assert topk_store_bytes(listed)[0] == known.rows * listed.rollout.samples
    some = workload(pretrained(base, data={"generated_rows": 500, "heldout_rows": 50}, rollout={"prompts": 100}))
    assert (some.rows, some.training_rows) == (100, 450)
    # Every record has two turns of the assistant.
    for row in rows:
        row["messages"] = [row["messages"][0], {"role": "assistant", "content": "Wait."}, *row["messages"]]
    turns = tmp_path / "turns.jsonl"
    turns.write_text("".join(json.dumps({**row, "id": str(n)}) + "\n" for n, row in enumerate(rows)))
    sources = [{"path": str(turns), "source": "ace", "every_turn": True}]
    listed = pretrained(base, data={"sources": sources, "generated_rows": 0, "heldout_rows": 10})
    assert measure_lengths(listed).read_rows >= 2 * len(rows)


def test_without_a_gpu_each_stage_says_how_long_the_cpu_takes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(cost_lines, "measure_cpu", lambda *, bf16: TWO_CORES)
    heading, *lines = cost_lines.cost_lines(pretrained(base))
    assert "measured on some rows" in heading
    assert all("of this CPU" in line for line in lines if "synthesize" not in line)
    assert lines[-1].split()[:3] == ["all", "of", "them"]
    # A profile for a cluster is not for this CPU.
    assert not any("of this CPU" in line for line in cost_lines.cost_lines(pretrained(base), here=False))


def test_a_gpu_must_hold_the_training(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gpu(memory: int) -> machine.Check:
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=memory))
        checks = {check.name: check for check in machine.room_checks(pretrained(base, refine={"steps": 1}))}
        return checks["GPU"]

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Card")
    assert gpu(80 * GIB).passed
    small = gpu(2**20)
    assert not small.passed and small.detail.startswith("Card with") and "adapters" in small.detail
