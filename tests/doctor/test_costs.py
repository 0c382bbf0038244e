"""The formulas of docs/scale.md: its tables come from them, they grow with the rows, and the store keeps to its bound."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from star.config.cluster import Cluster, Node
from star.config.experiment import Config
from star.config.teacher_signal import Engine
from star.doctor.cost_lines import cost_lines
from star.doctor.cost_tables import paper_workload, size_table, stage_table
from star.doctor.costs import stage_costs, store_bytes, workload_of
from star.topk.store import TopKStore, TopKWriter

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_the_tables_of_the_page_are_those_of_the_formulas() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for table in (stage_table(paper_workload(128_000)), size_table()):
        assert table in page, "run: python -m star.doctor.cost_tables, and put its tables into docs/scale.md"


def test_no_stage_grows_faster_than_the_rows() -> None:
    small, large = (stage_costs(paper_workload(rows)) for rows in (10_000, 100_000))
    for stage, cost in large.items():
        before = small[stage]
        assert cost.core_seconds <= 10 * before.core_seconds * 1.0001
        assert before.card_seconds <= cost.card_seconds <= 10 * before.card_seconds * 1.0001


def test_a_larger_teacher_costs_more_wherever_it_is_asked() -> None:
    large = paper_workload(1000)
    costs, of_smaller = stage_costs(large), stage_costs(replace(large, teacher=large.student))
    for stage in ("refine-teacher", "rollout", "extract-topk", "evaluate"):
        assert of_smaller[stage].card_seconds < costs[stage].card_seconds
    for stage in ("synthesize", "distill", "refine"):
        assert of_smaller[stage] == costs[stage]


@pytest.mark.parametrize(("tokens", "k", "vocab_size"), [(30, 100, 151_936), (200, 100, 151_936), (400, 50, 768)])
def test_the_size_of_a_store_is_known_before(tokens: int, k: int, vocab_size: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(tokens)
    logprobs_TK = -np.sort(draw.gamma(2.0, 3.0, (tokens, k)), axis=1).astype(np.float32) - 1e-3
    ids_TK = np.stack([draw.permutation(vocab_size)[:k] for _ in range(tokens)])
    with TopKWriter(tmp_path, k, vocab_size=vocab_size) as writer:
        writer.add("row#0", ids_TK, logprobs_TK)
    work = replace(paper_workload(1), samples=1, completion_tokens=tokens, top_k=k, vocab_size=vocab_size)
    assert TopKStore(tmp_path).size == pytest.approx(store_bytes(work), rel=0.2)


def test_the_doctor_names_what_each_stage_costs(micro: Config) -> None:
    heading, *lines = cost_lines(micro)
    assert f"{micro.rollout.prompts or micro.data.generated_rows:,} rows" in heading
    assert [line.split()[0] for line in lines] == list(stage_costs(paper_workload(1)))
    assert all("on disk" in line and "card" not in line for line in lines)


def test_a_price_of_the_node_makes_money_of_card_time(micro: Config) -> None:
    # So large a price that a tiny model costs whole euros.
    gpu = Node(accelerator="nvidia.com/gpu", accelerator_price=1e9)
    stages = ("refine-teacher", "rollout", "extract-topk", "distill", "refine", "evaluate")
    for priced in (stages, stages[:-1]):
        placement = {"nodes": {"gpu": gpu, "free": Node(accelerator="nvidia.com/gpu")}, "currency": "EUR"}
        placement["placement"] = {stage: "gpu" if stage in priced else "free" for stage in stages}
        config = micro.model_copy(update={"cluster": Cluster.model_validate(placement)})
        lines = {line.split()[0]: line for line in cost_lines(config)}
        assert [stage for stage in stages if "H100 80 GB (" in lines[stage] and "EUR)" in lines[stage]] == list(priced)
        # A sum in which a price is missing would be too small.
        assert ("EUR)" in lines["all"]) == (priced == stages)


def test_simrl_reads_a_prompt_once_for_each_group() -> None:
    work = paper_workload(1000)
    larger_groups = replace(work, student_group=16)
    costs, cheaper = stage_costs(work), stage_costs(larger_groups)
    assert cheaper["refine"].card_seconds < costs["refine"].card_seconds
    assert cheaper["refine-teacher"] == costs["refine-teacher"]


def test_the_extraction_reads_a_prompt_once_for_its_samples(micro: Config) -> None:
    engine = micro.model_copy(update={"topk": micro.topk.model_copy(update={"vllm": Engine()})})
    model = paper_workload(1).student
    own, of_engine = (workload_of(config, teacher=model, student=model, vocab_size=768) for config in (micro, engine))
    assert own.extracted_length == own.prompt_tokens / micro.rollout.samples + own.completion_tokens
    assert of_engine.extracted_length == own.prompt_tokens + own.completion_tokens
