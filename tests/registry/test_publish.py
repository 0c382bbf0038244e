"""From a folder into the registry and back."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from star.errors import InputError
from star.registry.download import download_version_as
from star.registry.find_model import download_model, get_model_folder
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model
from star.registry.publish import describe_version
from star.registry.versions import Version, find_version, list_versions
from star.tracking.runs import stage_run
from star.tracking.server import connect

SCORES = {"exact_match": 0.815, "pass@8": 0.9, "format_errors": 0.0}


def register(folder: Path, *, digest: str = "d1", name: str = "tiny") -> Version:
    return register_model(
        folder, name=name, scores=SCORES, lineage={"data": "5eed", "code": "abc"}, model_digest=digest
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_registered_comes_back(home: Path, model: Path) -> None:
    with stage_run("register"):
        registered = register(model, name="qwen3-0.6b")
    promote("qwen3-0.6b", registered.version)
    original = content(model)
    shutil.rmtree(model)  # the registry has a copy of its own
    fetched = download_model("qwen3-0.6b", home / "cache")
    assert content(fetched) == original
    assert (fetched.parent, fetched.name.partition("-")[0]) == (home / "cache", "d1")
    for reference in ("qwen3-0.6b@champion", "models:/qwen3-0.6b@champion", "qwen3-0.6b/1", "models:/qwen3-0.6b/1"):
        assert download_model(reference, home / "cache") == fetched
    assert list((home / "cache").iterdir()) == [fetched]
    for reference, name in (("champion", "qwen3-0.6b"), ("1", "qwen3-0.6b"), ("qwen3-0.6b/1", "star")):
        assert content(get_model_folder(reference, name=name)) == original
    with pytest.raises(InputError, match="no model folder at Qwen/Qwen3"):
        get_model_folder("Qwen/Qwen3", name="star")


def test_a_version_tells_where_it_comes_from(home: Path, model: Path) -> None:
    first = register(model)
    second = register(model, digest="d2")
    promote("tiny", 2)
    assert (first.version, second.version) == (1, 2)
    newest, oldest = list_versions("tiny")
    assert (newest.version, newest.aliases, newest.model_digest) == (2, ("champion",), "d2")
    assert (oldest.version, oldest.aliases, oldest.model_digest) == (1, (), "d1")
    assert newest.scores == {"exact_match": 0.815, "pass_8": 0.9, "format_errors": 0.0}
    assert newest.lineage == {"data": "5eed", "code": "abc"}
    assert newest.created >= oldest.created
    assert set(newest.files) == set(content(model))


def test_a_description_that_is_too_long_for_mlflows_database_ends_with_a_whole_line(home: Path, model: Path) -> None:
    line = "| exact_match | 0.8150 |"
    describe_version(register(model), "\n".join([line] * 300))
    described = connect().get_model_version("tiny", "1").description
    assert 4900 < len(described) <= 5000 and set(described.splitlines()) == {line}


def test_the_same_model_is_registered_once(home: Path, model: Path) -> None:
    assert register(model) == register(model)
    assert len(list_versions("tiny")) == 1


def test_a_damaged_copy_is_downloaded_again(home: Path, model: Path) -> None:
    register(model)
    fetched = download_model("tiny/1", home / "cache")
    (fetched / "model.safetensors").write_bytes(b"damaged")
    assert content(download_model("tiny/1", home / "cache")) == content(model)


@pytest.mark.parametrize("damage", ["change", "remove", "empty"])
def test_a_damaged_store_is_refused(home: Path, model: Path, damage: str) -> None:
    register(model)
    (stored,) = (home / "mlartifacts").rglob("model.safetensors")
    if damage == "change":
        stored.write_bytes(stored.read_bytes() + b"x")
    elif damage == "remove":
        stored.unlink()
    else:
        shutil.rmtree(stored.parent)
        stored.parent.mkdir()
    with pytest.raises(InputError, match=r"tiny version 1 .*model\.safetensors"):
        download_model("tiny/1", home / "cache")
    assert list((home / "cache").iterdir()) == []


def test_a_digest_of_any_length_is_a_folder(home: Path, model: Path) -> None:
    registered = register(model)
    tags = {"star.files": '{"a": "b"}', "star.model_digest": "é/" * 2000}
    connect().create_model_version("tiny", registered.source, tags=tags)
    with pytest.raises(InputError, match="are not those registered"):
        download_version_as(find_version("tiny", version=2), home / "copy")


def test_a_copy_with_a_link_to_a_folder_is_another(home: Path, model: Path, tmp_path: Path) -> None:
    """transformers follows the link, for example to templates of somebody else's."""
    register(model)
    (tmp_path / "elsewhere").mkdir()
    for folder in (download_model("tiny/1", home / "models"), tmp_path / "given"):
        if folder.name == "given":
            shutil.copytree(model, folder)
        (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    assert content(download_model("tiny/1", home / "models")) == content(model)
    assert not (home / "models" / "d1" / "additional_chat_templates").exists()
    with pytest.raises(InputError, match="does not hold the files of tiny version 1"):
        download_version_as(find_version("tiny", version=1), tmp_path / "given")


def test_a_version_is_downloaded_to_a_given_folder(home: Path, model: Path, tmp_path: Path) -> None:
    register_model(model, name="tiny", scores={}, lineage={}, model_digest="d1")

    def download(out: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "star.cli", "models", "download", "tiny/1", "--out", str(out)]
        return subprocess.run(command, capture_output=True, text=True)

    out = tmp_path / "new" / "champion"
    for _ in range(2):  # what is there already is checked and kept
        done = download(out)
        assert (done.returncode, done.stdout) == (0, f"tiny version 1 is in {out}\n"), done.stderr
    assert content(out) == content(model) and [entry.name for entry in out.parent.iterdir()] == ["champion"]
    (out / "config.json").write_text("mine")
    done = download(out)
    assert done.returncode == 2 and "does not hold the files of tiny version 1: remove it" in done.stderr
    assert (out / "config.json").read_text() == "mine"


def test_what_is_missing_is_named(home: Path, model: Path) -> None:
    assert list_versions("tiny") == []
    with pytest.raises(InputError, match=r"no model 'tiny' is registered: run `star run` first"):
        download_model("tiny", home / "cache")
    register(model)
    with pytest.raises(InputError, match=r"no version of tiny is called 'champion'.*\(1\)"):
        download_model("tiny", home / "cache")
    with pytest.raises(InputError, match=r"tiny has no version 9: choose one of 1"):
        find_version("tiny", version=9)
    for reference in ("", "tiny/latest", "a/b/c", "it's", "tiny@"):
        with pytest.raises(InputError, match="names no model"):
            download_model(reference, home / "cache")


def test_what_cannot_be_registered_is_refused(home: Path, model: Path) -> None:
    with pytest.raises(InputError, match="cannot be named 'team/tiny'"):
        register(model, name="team/tiny")
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match="is no model"):
        register(model)
    assert list_versions("tiny") == []


def test_a_foreign_version_is_listed_and_not_fetched(home: Path, model: Path) -> None:
    client = connect()
    client.create_registered_model("tiny")
    client.create_model_version("tiny", source=model.as_uri())
    assert list_versions("tiny")[0].files == {}
    with pytest.raises(InputError, match="was not registered by `star`"):
        download_model("tiny/1", home / "cache")
