"""docs/paper.md says what the profiles hold: every value, every difference with its reason, every setting of the trainings."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from star.config.experiment import Config
from star.config.load import load_config
from star.modeling.training import supervised_arguments
from star.simrl.grpo_config import grpo_config
from tests.paper_page import ROWS

ROOT = Path(__file__).parents[2]
# What the paper's recipe is about. Other sections (cluster, registry, ...) have nothing to compare with.
COMPARED = ("max_prompt_tokens", "teacher", "student", "rollout", "topk", "distill", "refine")


def value_at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content[int(part)] if isinstance(content, list) else content[part]
    return content


def same(found: Any, said: Any) -> bool:
    """Whether a value is the one that the page says: of a section all that is not null, and of an input only its path."""
    if isinstance(found, dict) and isinstance(said, dict):
        given = {key: value for key, value in found.items() if value is not None}
        return given.keys() == said.keys() and all(same(given[key], value) for key, value in said.items())
    if isinstance(found, dict) and "path" in found:
        found = found["path"]
    return found == said or (isinstance(found, (list, tuple)) and list(found) == said)


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The profiles that the page names, as JSON. The hub's files and the checkout of ACEBench are empty here."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "downloads" / "ACEBench").mkdir(parents=True)
    (tmp_path / "empty.jsonl").touch()
    monkeypatch.setattr("star.config.files.fetch_from_hub", lambda address: tmp_path / "empty.jsonl")
    names = {row.of.removeprefix("setting of ") for row in ROWS if row.of.startswith("setting of qwen3")}
    return {name: load_config(tmp_path / "configs" / f"{name}.yaml").model_dump(mode="json") for name in names}


def test_the_page_has_the_values_of_the_profiles(profiles: dict[str, dict[str, Any]]) -> None:
    assert profiles.keys() == {"qwen3-0.6b", "qwen3-0.6b-paper"}
    wrong = [
        f"{key}: {value_at(profiles[name], key)!r}, and the page says {row.cells['here']}"
        for name in profiles
        for row in ROWS
        if row.of == f"setting of {name}"
        for key in row.keys
        if not same(value_at(profiles[name], key), row.value("here"))
    ]
    assert not wrong, "\n".join(wrong)


def test_only_a_difference_has_a_reason() -> None:
    compared = [row for row in ROWS if "official" in row.cells]
    assert len(compared) > 50
    for row in compared:
        assert bool(row.cells["why it differs"]) == (row.value("official") != row.value("here")), row


def test_every_setting_of_the_recipe_is_in_a_table(profiles: dict[str, dict[str, Any]]) -> None:
    named = [key for row in ROWS if row.of == "setting of qwen3-0.6b" for key in row.keys]
    assert sorted(named) == sorted(set(named))

    def missing(content: Any, key: str) -> Iterator[str]:
        if key in named:
            return
        if not isinstance(content, dict):
            yield key
        for name, inner in content.items() if isinstance(content, dict) else ():
            yield from missing(inner, f"{key}.{name}")

    assert [key for name in COMPARED for key in missing(profiles["qwen3-0.6b"][name], name)] == []


def test_the_trainers_get_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("qwen3-0.6b")
    # vLLM is not installed here, and its arguments are made all the same. The precision belongs to the machine.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    arguments = {
        "distill": supervised_arguments(config.distill, folder=tmp_path, seed=7, bf16=False, sequences=1_024_000),
        "refine": grpo_config(config.refine, folder=tmp_path, seed=7, bf16=False, prompts=128_000, longest_prompt=5120),
    }
    for stage, found in arguments.items():
        [*said] = [row for row in ROWS if row.of == f"argument of {stage}"]
        assert said
        assert {key: row.value("here") for row in said for key in row.keys} == {
            key: getattr(getattr(found, key), "value", getattr(found, key)) for row in said for key in row.keys
        }
    assert arguments["distill"].max_steps == 8_000 and arguments["refine"].max_steps == 24_000


def test_the_larger_students_differ_in_the_student_alone() -> None:
    def without_student(config: Config) -> Config:
        return config.model_copy(update={"name": "", "student": Config().student})

    small = load_config("qwen3-0.6b")
    for name in ("qwen3-1.7b", "qwen3-4b"):
        larger = load_config(name)
        assert larger.student != small.student and without_student(larger) == without_student(small)
