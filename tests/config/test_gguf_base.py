"""A base may be a GGUF file: an input like any other, of which the content counts and not the name."""

import json
from pathlib import Path

import pytest

from star.config.experiment import Config
from star.config.files import GgufFile, paths_in
from star.config.load import load_config
from star.errors import InputError


def profile(folder: Path, base: object) -> Path:
    file = folder / "my.yaml"
    file.write_text(json.dumps({"extends": "tiny", "teacher": {"base": base}, "student": {"base": base}}))
    return file


def test_the_content_counts_and_not_the_name(tmp_path: Path, own_home: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.gguf").write_bytes(b"GGUF")
    (tmp_path / "other.GGUF").write_bytes(b"GGUF")
    config = load_config(profile(tmp_path, "models/small.gguf"))
    base = config.student.base
    assert isinstance(base, GgufFile)
    assert (base.path, base.file_name) == (str(tmp_path / "models" / "small.gguf"), "small.gguf")
    assert base.read_verified() == tmp_path / "models" / "small.gguf"
    read_back = Config.from_json(config.with_places(("student",)))
    assert read_back.student.base == base
    # The stage protects the file and the folder that is made of it from `star clean`.
    assert set(paths_in(config.with_places(("student",)))) == {Path(base.path), own_home / "inputs" / base.sha256}
    renamed = load_config(profile(tmp_path, {"path": "./other.GGUF"}))
    assert renamed.slice(("student",)) == config.slice(("student",))
    assert "gguf" not in config.slice(("student",))

    (tmp_path / "other.GGUF").write_bytes(b"other")
    assert load_config(tmp_path / "my.yaml").slice(("student",)) != config.slice(("student",))
    with pytest.raises(InputError, match="has changed since the run was configured"):
        renamed.student.base.read_verified()


def test_one_that_the_stage_does_not_read_is_not_hashed(tmp_path: Path, read_files: list[str]) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    config = load_config(profile(tmp_path, "small.gguf"), sections=("seed", "teacher"))
    assert read_files.count("small.gguf") == 1
    assert (config.student.base.sha256, config.student.base.file_name) == ("", "small.gguf")


@pytest.mark.parametrize("base", ["missing.gguf", "./missing.gguf", {"path": "missing.gguf"}, "team/missing.gguf"])
def test_a_missing_file_is_named(tmp_path: Path, base: object) -> None:
    with pytest.raises(InputError, match=r"no file at .*missing\.gguf: check the path"):
        load_config(profile(tmp_path, base))
