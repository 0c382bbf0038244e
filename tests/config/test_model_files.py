"""The digest of a base covers what decides its behaviour, is compared at load, and only safetensors in the folder are loaded."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from star import digest_cache
from star.config.experiment import Config
from star.config.load import load_config
from star.config.model_files import digest_of_model_folder, refuse_unsafe_weights
from star.errors import InputError
from star.run_stage import draft_of
from star.stages import stage_named

TICK = 0.02  # seconds: a step of the clock of file systems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "base"
    made.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (made / name).write_text("{}")
    return made


def index(folder: Path, **weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_folder_without_other_files_has_the_digest_of_earlier_versions(folder: Path) -> None:
    (folder / "README.md").touch()
    (folder / "merges.txt").touch()
    empty = hashlib.sha256(b"{}").hexdigest()
    content = [(name, empty) for name in ("config.json", "model.safetensors", "tokenizer.json")]
    assert digest_of_model_folder(folder) == hashlib.sha256(json.dumps(content).encode()).hexdigest()


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
        "additional_chat_templates/tool_use.jinja",
        "tokenizer.model",
        "adapter_model.safetensors",
        "adapter_config.json",
        "parts/1.safetensors",
    ],
)
def test_everything_that_loaders_read_counts(folder: Path, name: str) -> None:
    index(folder, a="parts/1.safetensors")
    digests = [digest_of_model_folder(folder)]
    (folder / name).parent.mkdir(exist_ok=True)
    for text in ("one", "two"):
        (folder / name).write_text(text)
        digests.append(digest_of_model_folder(folder))
    assert len(set(digests)) == 3


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json"])
def test_a_base_with_another_template_is_other_work(folder: Path, name: str) -> None:
    """A finished stage is taken for this one only if its fingerprint is the same."""

    def fingerprints() -> list[str]:
        config = Config.model_validate({"teacher": {"base": str(folder)}, "student": {"base": str(folder)}})
        return [draft_of(stage_named(stage), config, inputs={}).fingerprint for stage in ("refine-teacher", "distill")]

    (folder / name).write_text('{"temperature": 1}')
    before = fingerprints()
    assert fingerprints() == before
    (folder / name).write_text('{"temperature": 2}')
    assert not set(fingerprints()) & set(before)


def test_templates_behind_a_link_to_a_folder_count(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    before = digest_of_model_folder(folder)
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "tool_use.jinja").touch()
    assert digest_of_model_folder(folder) != before


def test_a_base_that_changed_since_the_configuration_was_read_is_refused(folder: Path) -> None:
    base = Config.model_validate({"student": {"base": str(folder)}}).student.base
    assert base.read_verified() == folder
    (folder / "model.safetensors").write_text("[]")
    with pytest.raises(InputError, match="has changed since the run was configured"):
        base.read_verified()
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no model folder at"):
        base.read_verified()


def test_unchanged_files_are_read_once(folder: Path, own_home: Path, read_files: list[str]) -> None:
    own_home.mkdir()
    time.sleep(TICK)
    digest_cache._read_here.clear()  # what other tests have read is not in this home's notes
    base = Config.model_validate({"student": {"base": str(folder)}}).student.base
    read_files.clear()
    assert base.read_verified() == folder and read_files == []
    digest_cache._read_here.clear()  # as in another process
    assert Config.model_validate({"student": {"base": str(folder)}}).student.base == base and read_files == []
    assert base.read_verified() == folder and read_files == []
    (folder / "tokenizer.json").chmod(0o666)  # others may have it open, and are read when it is loaded
    time.sleep(TICK)
    assert digest_of_model_folder(folder) == base.sha256
    digest_cache._read_here.clear()
    read_files.clear()
    assert base.read_verified() == folder and read_files == ["tokenizer.json"]
    os.utime(folder / "config.json")
    read_files.clear()
    assert digest_of_model_folder(folder) == base.sha256 and read_files == ["config.json"]


def test_a_base_that_the_stage_does_not_read_is_not_hashed(folder: Path, tmp_path: Path, read_files: list[str]) -> None:
    (tmp_path / "e.yaml").write_text(f"extends: tiny\nteacher: {{base: {folder}}}\nstudent: {{base: ./base}}\n")
    config = load_config(tmp_path / "e.yaml", sections=("seed", "teacher"))
    assert read_files.count("model.safetensors") == 1
    whole = load_config(tmp_path / "e.yaml")
    assert config.slice(("seed", "teacher")) == whole.slice(("seed", "teacher"))
    assert config.student.base.path == whole.student.base.path == str(folder)
    with pytest.raises(InputError, match="has changed since"):
        config.student.base.read_verified()


@pytest.mark.parametrize(
    "name", ["x.bin", "../x.safetensors", "/x.safetensors", "x.safetensors.bin", "", 3, None, ["x"]]
)
def test_an_index_that_names_other_weights_is_refused(folder: Path, name: object) -> None:
    index(folder, a="model.safetensors", b=name)
    with pytest.raises(InputError, match=r"names the weight file .* not a safetensors file in the folder"):
        refuse_unsafe_weights(folder)


@pytest.mark.parametrize("name", ["adapter_model.bin", "../x.safetensors", "parts/x.safetensors.index.json", ["x"]])
def test_a_configuration_that_names_other_weights_is_refused(folder: Path, name: object) -> None:
    (folder / "config.json").write_text(json.dumps({"transformers_weights": name}))
    with pytest.raises(InputError, match=r"config\.json names the weight file"):
        refuse_unsafe_weights(folder)


def test_an_adapter_must_be_safetensors(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").touch()
    with pytest.raises(
        InputError, match=r"adapter_config\.json adds an adapter that is not in adapter_model\.safetensors"
    ):
        refuse_unsafe_weights(folder)
    (folder / "adapter_model.safetensors").touch()
    refuse_unsafe_weights(folder)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"weight_map": 3}', "{}", "not json", "3"])
def test_a_damaged_index_is_refused(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        refuse_unsafe_weights(folder)


@pytest.mark.parametrize(
    ("file", "content", "key"),
    [
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.json"]}, "fast_tokenizer_files"),
        ("config.json", {"attn_implementation": "team/kernel"}, "attn_implementation"),
        ("config.json", {"text_config": {"_attn_implementation": {"": "team/kernel"}}}, "_attn_implementation"),
    ],
)
def test_other_files_and_code_are_refused_by_name(folder: Path, file: str, content: dict, key: str) -> None:
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{file} names .*: delete `{key}` from it"):
        refuse_unsafe_weights(folder)


def test_an_implementation_of_transformers_is_no_code_of_others(folder: Path) -> None:
    (folder / "config.json").write_text('{"attn_implementation": "sdpa", "text_config": {"attn_implementation": null}}')
    refuse_unsafe_weights(folder)
