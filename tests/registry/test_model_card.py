"""The card of a published model: what it says of base, licence, trainings and data comes from the manifests of the stages."""

import json
import struct
from pathlib import Path

import pytest
import yaml

from star.config.evaluation import Registry
from star.config.experiment import Config
from star.config.models import Student
from star.folders.manifest import read_manifest
from star.registry.base_facts import base_facts
from star.registry.card_facts import card_facts
from star.registry.model_card import description, model_card

ENTRY = {"name": "refined", "parameters": 100, "scores": {"exact_match": {"mean": 0.5, "low": 0.4, "high": 0.6}}}
TEACHER = {"name": "teacher", "parameters": 1330, "scores": {"exact_match": {"mean": 0.75, "low": 0.7, "high": 0.8}}}
EVALUATION = {"suite": {"heldout": {"rows": 12}}, "models": [TEACHER, ENTRY]}
HUB = {
    "kind": "hub",
    "name": "Qwen/Qwen3-0.6B",
    "revision": "c1899de289a04d12100db370d81485cdf75e47ca",
    "license": "apache-2.0",
}


def lineage(*, student: dict, teacher: dict, **more: dict) -> dict:
    origins = {"distill": student, "refine-teacher": teacher, **more}
    stages = {stage: {"stage": stage, "origin": origin} for stage, origin in origins.items()}
    return {"stages": stages, "data": "d", "teacher": "t", "tokenizer": "k"}


def head_and_body(card: str) -> tuple[dict, str]:
    head, body = card.split("---\n", 2)[1:]
    return yaml.safe_load(head), body


def test_the_card_of_a_pretrained_student_names_its_base_its_licence_and_its_trainings() -> None:
    made = lineage(
        student={
            "base": {**HUB, "layers": 14},
            "trained": [{"phase": "heal", "steps": 1050}, {"phase": "ckd", "epochs": 1.0}],
        },
        teacher={"base": {**HUB, "name": "Qwen/Qwen3-8B"}, "trained": [{"phase": "sft", "steps": 300}]},
        refine={"trained": [{"phase": "simrl", "steps": 500, "reward": "similarity"}]},
        synthesize={
            "data": {"sources": {"xlam": 9, "generated": 3}, "licences": {"CC-BY-4.0": 9, "unknown": 3}},
            "inputs": {"data.seed_data": {"path": "hf://datasets/Salesforce/xlam@main/rows.jsonl", "sha256": "0"}},
        },
    )
    head, body = head_and_body(
        model_card(Registry(), entry=ENTRY, evaluation=EVALUATION, lineage={**made, "precision": "bf16"})
    )
    assert (head["license"], head["base_model"], head["datasets"]) == (
        "apache-2.0",
        "Qwen/Qwen3-0.6B",
        ["Salesforce/xlam"],
    )
    assert "100 parameters in bf16" in body
    assert (
        "The model began as 14 layers of Qwen/Qwen3-0.6B (revision c1899de289a0, licence apache-2.0). It was trained by 1,050 steps of "
        "healing (forward KL) on the teacher's stored probabilities, then 1 epoch of constrained knowledge distillation (CKD) on "
        "the teacher's stored probabilities, then 500 steps of Sim-RL (reward similarity). Its teacher has 1,330 parameters, 13.3 times "
        "those of the model, and began as Qwen/Qwen3-8B (revision c1899de289a0, licence apache-2.0). It was trained by 300 steps of "
        "supervised training on the rows."
    ) in body
    for part in (
        "| xlam | 9 |",
        "| CC-BY-4.0 | 9 |",
        "3 rows have no known licence",
        "| 0.5000 | 0.4000 to 0.6000 | 0.7500 |",
    ):
        assert part in body
    assert "Measured on heldout: 12 rows" in description(ENTRY, evaluation=EVALUATION, lineage=made)


@pytest.mark.parametrize(
    ("base", "settings", "expected"),
    [
        ({"kind": "scratch"}, {}, {"license": "apache-2.0"}),
        ({"kind": "hub", "name": "a/b", "license": "llama3.2"}, {}, {"license": "llama3.2", "base_model": "a/b"}),
        (
            {"kind": "hub", "name": "a/b", "license": "llama3.2"},
            {"license": "mit"},
            {"license": "mit", "base_model": "a/b"},
        ),
        (
            {"kind": "gguf", "name": "b.gguf", "license": "mit"},
            {"base_model": "a/b"},
            {"license": "mit", "base_model": "a/b"},
        ),
        ({"kind": "folder", "name": "b"}, {}, {"license": "other", "license_name": "unknown"}),
        ({"kind": "folder", "name": "b", "license": "-"}, {}, {"license": "other", "license_name": "unknown"}),
        ({"kind": "folder", "name": "b", "license": 'mit"\nx: y'}, {}, {"license": "other", "license_name": "unknown"}),
        (
            {"kind": "folder", "name": "b", "license": "other", "license_name": 'a": [b', "license_link": "LICENSE"},
            {},
            {"license": "other", "license_name": 'a": [b', "license_link": "LICENSE"},
        ),
        ({}, {}, {"license": "other", "license_name": "unknown"}),
    ],
)
def test_the_licence_is_the_one_that_is_set_or_that_of_the_base(base: dict, settings: dict, expected: dict) -> None:
    made = lineage(student={"base": base} if base else {}, teacher={})
    head, _ = head_and_body(model_card(Registry(**settings), entry=ENTRY, evaluation=EVALUATION, lineage=made))
    constant = {"library_name", "pipeline_tag", "tags", "base_model_relation"}
    assert {key: value for key, value in head.items() if key not in constant} == expected


def test_the_scores_of_an_evaluated_base_stand_beside_those_of_the_model() -> None:
    base = {"name": "student-base", "scores": {"exact_match": {"mean": 0.0, "low": 0.0, "high": 0.1}}}
    evaluation = {**EVALUATION, "models": [base, *EVALUATION["models"]]}
    entry = {**ENTRY, "base": "student-base"}
    made = lineage(student={"base": HUB}, teacher={})
    card = model_card(Registry(), entry=entry, evaluation=evaluation, lineage=made)
    assert "| score | mean | interval | teacher | base, untrained |" in card
    [row] = [line for line in card.splitlines() if "exact" in line and "| 0.0000 |" in line]
    assert row.endswith(" | 0.0000 |")
    assert "untrained" not in model_card(Registry(), entry=ENTRY, evaluation=EVALUATION, lineage=made)


def test_names_of_others_are_no_markup() -> None:
    bad = "<script>|`*_[x](y)"
    made = lineage(
        student={"base": {"kind": "folder", "name": bad, "license": bad}, "trained": [{"phase": bad, "steps": 1}]},
        teacher={},
        refine={"trained": [{"phase": "simrl", "steps": 1, "reward": bad}]},
        synthesize={"data": {"sources": {bad: 1}, "licences": {bad: 1}}},
    )
    for text in (
        model_card(Registry(), entry=ENTRY, evaluation=EVALUATION, lineage=made),
        description(ENTRY, evaluation=EVALUATION, lineage=made),
    ):
        assert "<script>" not in text and "[x](y)" not in text


def gguf(folder: Path, **entries: str) -> Path:
    """A GGUF file without weights, as far as its facts go."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    described = {"general.architecture": "llama", **entries}
    content = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(described) + 2)
    content += b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in described.items())
    content += text("llama.block_count") + struct.pack("<II", 4, 1)
    content += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 1) + text("a")
    content += text("token_embd.weight") + struct.pack("<IQIQ", 1, 1, 0, 0)
    file = folder / "base.gguf"
    file.write_bytes(content.ljust(-(-len(content) // 32) * 32, b"\0") + bytes(4))
    return file


def test_the_licence_of_a_base_is_read_from_its_card_its_metadata_or_its_licence_file(tmp_path: Path) -> None:
    named = {"general.license": "other", "general.license.name": "acme", "general.license.link": "https://acme.example"}
    facts = base_facts(Student(base=str(gguf(tmp_path, **named))))
    assert (facts["kind"], facts["name"], facts["license_name"]) == ("gguf", "base.gguf", "acme")
    (tmp_path / "LICENSE.txt").write_text("\n   Apache License\n   Version 2.0, January 2004\n")
    assert base_facts(Student(base=str(gguf(tmp_path))))["license"] == "apache-2.0"
    # What the file says of itself comes first.
    assert base_facts(Student(base=str(gguf(tmp_path, **named))))["license"] == "other"
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def licence() -> str | None:
        return base_facts(Student(base=f"{folder}")).get("license")

    assert licence() is None
    (folder / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n")
    assert licence() == "llama3.1"
    for card in ("---\nlicense: [a\n---\n", "---\nlicense: &a [*a]\n---\n", "no front matter", "---\n5\n---\n"):
        (folder / "README.md").write_text(card)
        assert licence() == "llama3.1"
    (folder / "README.md").write_text("---\nlicense: gemma\nlicense_link: https://ai.google.dev\n---\n# Base\n")
    assert licence() == "gemma"
    assert base_facts(Student(base="no/such-model")) == {"kind": "hub", "name": "no/such-model"}


@pytest.mark.parametrize("other", ["report.pdf", "other.gguf", "project/LICENSE"])
def test_a_card_or_licence_among_other_files_is_not_that_of_a_gguf_file(other: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Another project\n")
    (tmp_path / "LICENSE").write_text("Permission is hereby granted, free of charge\n")
    base = Student(base=str(gguf(tmp_path)))
    assert base_facts(base)["license"] == "mit"
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("")
    assert "license" not in base_facts(base)


def test_the_stages_note_what_the_card_says(micro: Config, finished: dict[str, Path]) -> None:
    trained = {stage: read_manifest(finished[stage]).origin for stage in ("refine-teacher", "distill", "refine")}
    assert [[phase["phase"] for phase in origin["trained"]] for origin in trained.values()] == [
        ["warmup", "sft", "simrl"],
        ["warmup", "ckd"],
        ["simrl"],
    ]
    assert trained["distill"]["base"] == {"kind": "scratch"} and "base" not in trained["refine"]
    figures = json.loads((finished["synthesize"] / "figures.json").read_text())
    assert read_manifest(finished["synthesize"]).origin["data"] == {
        key: figures[key] for key in ("sources", "licences")
    }
    assert card_facts(micro, ("topk",), finished["extract-topk"]) == {}
