"""The stages under their contract, with real parts: every folder is whole, work is done once, wrong inputs are refused."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from star.chat import parse_completion, validate_calls
from star.config.experiment import Config
from star.data.rows import read_rows
from star.errors import InputError
from star.folders.manifest import open_input, read_manifest
from star.modeling.models import load_model, load_tokenizer
from star.modeling.prompts import Prompt
from star.modeling.training import last_checkpoint
from star.stages import STAGES, distill, evaluate, extract_topk, refine, register, rollout, stage_named, synthesize
from star.topk.sequences import read_sequences
from star.topk.store import TopKStore
from star.tracking.accelerators import Accelerators


def test_every_stage_writes_a_whole_folder(finished: dict[str, Path]) -> None:
    for name, folder in finished.items():
        manifest = open_input(folder, stage=name)
        assert "metrics.json" in {entry.path for entry in manifest.files}
        assert json.loads((folder / "metrics.json").read_text())["seconds"] > 0


def test_manifests_chain_from_the_model_to_the_data(finished: dict[str, Path]) -> None:
    for stage in STAGES[:-1]:
        expected = {key: read_manifest(finished[source]).digest for key, source in stage.inputs.items()}
        assert read_manifest(finished[stage.name]).inputs == expected


def test_held_out_rows_are_not_trained_on(finished: dict[str, Path]) -> None:
    train, heldout = (list(read_rows(finished["synthesize"] / f"{part}.jsonl")) for part in ("train", "heldout"))
    assert len(heldout) == 12
    asked = {(row["messages"][0]["content"], json.dumps(row["messages"][-1])) for row in train}
    assert not any((row["messages"][0]["content"], json.dumps(row["messages"][-1])) in asked for row in heldout)


def test_rollouts_are_valid_and_distinct(finished: dict[str, Path]) -> None:
    tools = {row["id"]: row["tools"] for row in read_rows(finished["synthesize"] / "train.jsonl")}
    rows = pq.read_table(finished["rollout"] / "sequences.parquet").to_pylist()
    assert rows
    for row in rows:
        validate_calls(parse_completion(row["completion"]), tools[row["row_id"]])
    assert len({(row["row_id"], row["completion"]) for row in rows}) == len(rows)


def test_the_store_holds_the_teachers_own_log_probs(finished: dict[str, Path]) -> None:
    import torch

    teacher = load_model(finished["refine-teacher"]).eval()
    store = TopKStore(finished["extract-topk"])
    for sequence_id, sequence in zip(*read_sequences(finished["rollout"]), strict=True):
        ids, logprobs = store[sequence_id]
        tokens = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
        with torch.inference_mode():
            logits = teacher(tokens).logits[0, len(sequence.prompt_ids) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(-1, torch.as_tensor(ids, dtype=torch.long))
        assert len(ids) == len(sequence.completion_ids)
        assert torch.allclose(expected, torch.as_tensor(logprobs), atol=0.01)


def test_student_and_teacher_share_the_tokenizer_and_not_the_size(finished: dict[str, Path]) -> None:
    teacher, student = (load_model(finished[name]) for name in ("refine-teacher", "distill"))
    assert student.num_parameters() < teacher.num_parameters()
    vocabularies = [load_tokenizer(finished[name]).get_vocab() for name in ("refine-teacher", "distill", "refine")]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]


def test_the_evaluation_compares_three_models(finished: dict[str, Path]) -> None:
    evaluation = json.loads((finished["evaluate"] / "evaluation.json").read_text())
    assert [model["name"] for model in evaluation["models"]] == ["teacher", "distilled", "refined"]
    for model in evaluation["models"]:
        assert {"exact_match", "mean_reward", "format_errors", "pass_at_1", "pass_at_4", "pass_at_8", "entropy"} == set(
            model["scores"]
        )
        for score in model["scores"].values():
            assert score["low"] <= score["mean"] <= score["high"]
        assert sum(sum(counts.values()) for counts in model["mistakes"].values()) == round(
            12 * (1 - model["scores"]["exact_match"]["mean"])
        )
    assert {(found["a"], found["b"]) for found in evaluation["comparisons"]} == {
        ("refined", "distilled"),
        ("refined", "teacher"),
        ("distilled", "teacher"),
    }
    assert "<script" not in (finished["evaluate"] / "report.html").read_text()


def test_evaluated_again_the_bytes_are_the_same(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    inputs = {key: finished[source] for key, source in stage_named("evaluate").inputs.items()}
    evaluate(micro, **inputs, out=tmp_path / "again")
    for name in ("evaluation.json", "outcomes.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (finished["evaluate"] / name).read_bytes()
    assert read_manifest(tmp_path / "again").digest == read_manifest(finished["evaluate"]).digest


def test_a_stage_without_heldout_is_refused(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    inputs = {key: finished[source] for key, source in stage_named("evaluate").inputs.items()}
    only_bfcl = micro.model_copy(update={"evaluate": micro.evaluate.model_copy(update={"suites": ("bfcl",)})})
    with pytest.raises(InputError, match="heldout"):
        evaluate(only_bfcl, **inputs, out=tmp_path / "out")


def test_the_same_work_is_not_done_twice(micro: Config, finished: dict[str, Path]) -> None:
    manifest = (finished["extract-topk"] / "manifest.json").stat().st_mtime_ns
    inputs = {"rollouts": finished["rollout"], "teacher": finished["refine-teacher"]}
    metrics = extract_topk(micro, **inputs, out=finished["extract-topk"])
    assert metrics == json.loads((finished["extract-topk"] / "metrics.json").read_text())
    assert (finished["extract-topk"] / "manifest.json").stat().st_mtime_ns == manifest


def test_the_same_work_elsewhere_has_the_same_content(
    micro: Config, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_ACCELERATORS", Accelerators(4, 9.0, "EUR").to_json())
    metrics = distill(micro, topk=finished["extract-topk"], out=tmp_path / "again")
    assert read_manifest(tmp_path / "again").digest == read_manifest(finished["distill"]).digest
    # What it cost is no part of its content.
    assert metrics["accelerator_seconds"] == pytest.approx(4 * metrics["seconds"], abs=0.1)
    assert metrics["accelerator_cost"] == pytest.approx(metrics["accelerator_seconds"] / 400, abs=1e-3)
    assert "accelerator_seconds" not in json.loads((finished["distill"] / "metrics.json").read_text())


def test_a_given_student_is_distilled_instead_of_the_configured_one(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    distill(micro, topk=finished["extract-topk"], student=finished["distill"], out=tmp_path / "twice")
    first, second = (load_model(folder).state_dict() for folder in (finished["distill"], tmp_path / "twice"))
    assert first.keys() == second.keys()
    assert any((first[key] != second[key]).any() for key in first)


def test_another_tokenizer_is_refused(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    from star.modeling.models import save_model
    from star.modeling.tokenizer import train_tokenizer

    stranger = tmp_path / "stranger"
    save_model(load_model(finished["distill"]), train_tokenizer(["entirely other words"], vocab_size=320), stranger)
    with pytest.raises(InputError, match="tokenizer of the student"):
        distill(micro, topk=finished["extract-topk"], student=stranger, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_are_refused_by_name(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        rollout(micro, data=tmp_path / "nowhere", teacher=finished["refine-teacher"], out=tmp_path / "out")
    with pytest.raises(InputError, match="output of refine-teacher, not of synthesize"):
        rollout(micro, data=finished["refine-teacher"], teacher=finished["refine-teacher"], out=tmp_path / "out")
    corrupt = tmp_path / "corrupt"
    shutil.copytree(finished["distill"], corrupt)
    weights = corrupt / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        refine(micro, student=corrupt, data=finished["synthesize"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_seed_rows_reach_training_and_evaluation(micro: Config, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    tools = [{"name": "wash", "description": "Wash a car", "parameters": {"plate": {"type": "str"}}}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Wash the car {plate * 1237}"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"name": "wash", "arguments": {"plate": str(plate)}}],
                },
            ],
            "tools": tools,
        }
        for plate in range(30)
    ]
    rows.append({"messages": [], "tools": tools})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = Config.model_validate(
        {**micro.model_dump(mode="json"), "data": {"seed_data": file, "generated_rows": 30, "heldout_rows": 12}}
    )
    metrics = synthesize(given, out=tmp_path / "data")
    sources = [
        {row["source"] for row in read_rows(tmp_path / "data" / part)} for part in ("train.jsonl", "heldout.jsonl")
    ]
    assert sources == [{"generated", "seed"}, {"generated", "seed"}]
    rows = {row["id"]: row["source"] for row in read_rows(tmp_path / "data" / "train.jsonl")}
    assert {"generated", "seed"} == {rows[row_id] for row_id in chosen_ids(given, tmp_path / "data")}
    assert metrics["imported"] == 31
    rejects = (tmp_path / "data" / "rejects.jsonl").read_text().splitlines()
    assert len(rejects) == metrics["rejected"] >= 1


def chosen_ids(config: Config, data: Path) -> list[str]:
    """The rows that a rollout of half of them would take."""
    from star.teacher.rollout import choose_prompts

    prompts = [Prompt(row["id"], "", "", []) for row in read_rows(data / "train.jsonl")]
    return [prompt.row_id for prompt in choose_prompts(prompts, count=len(prompts) // 2, seed=config.seed)]


def test_registration_promotes_once_behind_the_gate(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    inputs = {"refined": finished["refine"], "evaluation": finished["evaluate"]}
    first = register(micro, **inputs, out=tmp_path / "first")
    again = register(micro, **inputs, out=tmp_path / "again")
    assert (first["version"], first["promoted"]) == (again["version"], again["promoted"]) == (1, 1)

    strict = micro.registry.model_copy(update={"gate": micro.registry.gate.model_copy(update={"min_exact_match": 1.0})})
    refused = micro.model_copy(update={"registry": strict.model_copy(update={"model_name": "strict"})})
    assert register(refused, **inputs, out=tmp_path / "refused")["promoted"] == 0
    written = json.loads((tmp_path / "refused" / "registration.json").read_text())
    assert written["champion"] is None
    assert any("is below" in reason for reason in written["reasons"])


def test_a_rollback_outlives_the_next_run(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    from star.registry.promotion.promote_and_rollback import champion, promote, rollback
    from star.registry.promotion.register_model import register_model

    inputs = {"refined": finished["refine"], "evaluation": finished["evaluate"]}
    older = register_model(finished["distill"], name="star", scores={}, lineage={}, model_digest="older")
    promote("star", older.version)
    assert register(micro, **inputs, out=tmp_path / "first")["promoted"] == 1
    assert rollback("star").version == older.version
    assert register(micro, **inputs, out=tmp_path / "first")["promoted"] == 0
    assert champion("star").version == older.version


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step, whole in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-12").exists()
