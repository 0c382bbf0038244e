"""The whole BFCL route with the official harness: ground truth, silence, hostile text, two small models."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from star.chat import render_target
from star.config.bfcl_categories import CATEGORIES, MULTI_TURN
from star.errors import InputError
from star.evaluation.bfcl.environment import harness_python
from star.evaluation.bfcl.run import evaluate_bfcl, run_harness, score_bfcl
from star.folders.shard import Shard

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """benchmarks/bfcl_check.py; skips where the harness's environment is not there and cannot be made."""
    try:
        harness_python()
    except InputError as error:
        pytest.skip(str(error))
    file = Path(__file__).parents[3] / "benchmarks" / "bfcl_check.py"
    spec = importlib.util.spec_from_file_location("bfcl_check", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_ground_truth_wins_in_every_category(bench: ModuleType) -> None:
    found = evaluate_bfcl(bench.GroundTruth(), label="ground truth", limit=3)
    assert found["scores"]["overall_v3"]["mean"] >= 0.99
    assert list(found["categories"]) == list(CATEGORIES)
    assert len(found["verdicts"]) == 3 * len(CATEGORIES)


def test_a_model_that_never_calls_scores_the_floor(bench: ModuleType) -> None:
    found = evaluate_bfcl(bench.never_call, label="never calls", limit=2)
    assert found["scores"]["overall_v3"]["mean"] == pytest.approx(0.198, abs=0.001)
    assert found["floor"]["overall_v3"] == pytest.approx(0.198, abs=0.001)
    assert found["package"] == "bfcl-eval 2026.3.23"


def test_broken_calls_are_right_in_irrelevance_and_counted() -> None:
    texts = ('<tool_call>\n{"name": "f", "argum', '<tool_call name="f"/>', "There is no tool for that.")

    def answer(queries: list[dict]) -> list[dict[str, str]]:
        return [{"text": f"<think>\n\n</think>\n\n{texts[index % 3]}"} for index in range(len(queries))]

    found = evaluate_bfcl(answer, label="broken", categories=("irrelevance",), limit=6)
    assert found["scores"]["irrelevance"]["mean"] == 1.0
    assert found["began_call"] == {"irrelevance": 4}


def test_categories_asked_apart_are_scored_as_one(bench: ModuleType) -> None:
    categories = ("simple_java", "irrelevance", "live_parallel", "multiple")
    parts = [tuple(Shard(number, 3).select(list(categories))) for number in (1, 2, 3)]
    apart = [run_harness(bench.GroundTruth(), label="part", categories=part, limit=2) for part in parts]
    whole = evaluate_bfcl(bench.GroundTruth(), label="whole", categories=categories, limit=2)
    assert score_bfcl(apart, order=categories) == whole
    assert {verdict["category"] for verdict in whole["verdicts"]} == set(categories)


def test_hostile_text_executes_nothing(bench: ModuleType, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    attack = f"__import__('os').system('touch {canary}')"
    completions = [
        [{"name": attack, "arguments": {}}],
        [{"name": "cd", "arguments": {f"folder={attack},x": 1}}],
        [{"name": "cd", "arguments": {"folder": attack}}, {"name": "ls", "arguments": {"a": [[attack]]}}],
        [{"name": f"cd(folder={attack}) or cd", "arguments": {}}],
        [{"name": "echo", "arguments": {"content": {"a": f"'+{attack}+'"}}}],
    ]
    raw = [
        f'<think>\n</think>\n\n<tool_call>\n{{"name": "cd", "arguments": "{attack}"}}\n</tool_call>',
        "<tool_call>\n[1]\n</tool_call>",
        "\x00\u2028" + attack,
        '<tool_call>\n{"name": "echo", "arguments": {"content": "\\ud800", "file_name": "\\udfff"}}\n</tool_call>',
        '<tool_call>\n{"name": ["cd"], "arguments": 1}\n</tool_call>',
        '<tool_call>\n{"name": "\\ud800", "arguments": {"\\ud800": NaN}}\n</tool_call>',
    ]
    texts = [render_target({"tool_calls": calls}) for calls in completions] + raw
    asked = 0

    def answer(queries: list[dict]) -> list[dict]:
        nonlocal asked
        asked += len(queries)
        assert all(query["prompt"].encode() for query in queries)
        return [{"text": texts[(query["step"] + len(query["id"])) % len(texts)]} for query in queries]

    report = run_harness(answer, label="hostile", categories=("simple_python", *MULTI_TURN), limit=4)
    assert asked > 40 and len(report["verdicts"]) == 20
    assert not any(verdict["valid"] for verdict in report["verdicts"])
    assert not canary.exists()


def test_the_same_answers_give_the_same_verdicts_whatever_else_is_asked(bench: ModuleType) -> None:
    """No simulator lives on: an entry's verdict is the same alone and among others."""
    alone = run_harness(bench.GroundTruth(), label="alone", categories=("multi_turn_base",), limit=2)
    among = run_harness(bench.GroundTruth(), label="among", categories=MULTI_TURN, limit=2)
    assert [v for v in among["verdicts"] if v["category"] == "multi_turn_base"] == alone["verdicts"]


def test_a_small_model_and_random_weights_go_all_the_way(
    bench: ModuleType, finished: dict[str, Path], micro, tmp_path: Path
) -> None:
    from star.evaluation.candidate import Candidate
    from star.evaluation.journal import Journal
    from star.modeling.models import load_model, load_tokenizer
    from star.modeling.scratch import scratch_model

    tokenizer = load_tokenizer(finished["refine"])
    models = {"small": load_model(finished["refine"]), "random": scratch_model(micro.student.base, tokenizer, seed=1)}
    for name, model in models.items():
        file = tmp_path / f"{name}.jsonl"
        verdicts = []
        for _ in range(2):
            candidate = Candidate(name, model, tokenizer, micro.evaluate, 7, Journal(file))
            found = run_harness(
                lambda queries, candidate=candidate: candidate.reply("bfcl", [query["prompt"] for query in queries]),
                label=name,
                categories=("simple_python", "irrelevance"),
                limit=3,
            )
            verdicts.append(found["verdicts"])
        assert verdicts[0] == verdicts[1]
        assert candidate.journal.asked == 0 and candidate.journal.recalled >= 1
        assert len(json.loads(file.read_text().splitlines()[0])["answer"]) == 6


def test_an_unknown_category_is_named(bench: ModuleType) -> None:
    with pytest.raises(InputError, match="no category poetry"):
        run_harness(bench.never_call, label="x", categories=("poetry",), limit=1)
