"""A result of the same work in another folder of the home, or in S3, is taken from there instead of being made again."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from star.errors import InputError
from star.folders import link
from star.folders.manifest import MANIFEST, Manifest, open_input, read_manifest
from star.folders.run_once import Outcome, Result, draft_manifest, run_once
from star.folders.s3 import upload_folder
from star.folders.s3_local import with_local_folders
from star.folders.workspace import Workspace

LARGE = bytes(range(256)) * 8


@pytest.fixture(autouse=True)
def large_from_2_kib_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LINKED_BYTES", len(LARGE))


@pytest.fixture
def home(own_home: Path) -> Path:
    own_home.mkdir()
    return own_home


def make(out: Path, *, settings: str = "{}", resume: bool = True, valid: bool = True) -> Outcome:
    def is_valid(folder: Path) -> bool:
        return json.loads((folder / "rows.jsonl").read_text()) == {} and valid

    def describe() -> Manifest:
        return draft_manifest("writing", settings=settings, code="c", inputs={})

    def work(workspace: Workspace, manifest: Manifest) -> Result:
        (workspace.out / "rows.jsonl").write_text("{}\n")
        (workspace.out / "tokenizer").mkdir()
        (workspace.out / "tokenizer" / "weights.bin").write_bytes(LARGE)
        return Result({"rows": 1}, {"mlflow_run": f"of {out.name}"})

    return run_once(describe, work, out=out, resume=resume, is_valid=is_valid)


def test_the_result_of_another_runner_is_taken(home: Path) -> None:
    first = make(home / "pipeline" / "run-1" / "writing" / "data")
    taken = make(home / "dvc" / "data")
    assert first == Outcome({"rows": 1}, cached=False)
    assert taken == Outcome({"rows": 1}, cached=True, taken_from=str(home / "pipeline/run-1/writing/data"))
    manifest = open_input(home / "dvc" / "data", stage="writing")
    assert manifest == read_manifest(home / "pipeline/run-1/writing/data")
    # It names the run that did the work, not one of the copy.
    assert manifest.origin == {"mlflow_run": "of data"}
    assert sorted(path.name for path in (home / "dvc").iterdir()) == ["data"]


def test_only_large_files_are_shared_and_nobody_can_write_to_them(home: Path) -> None:
    make(home / "pipeline" / "data")
    make(home / "dvc" / "data")
    small, large = (
        [home / place / "data" / name for place in ("pipeline", "dvc")]
        for name in ("rows.jsonl", "tokenizer/weights.bin")
    )
    assert not small[0].samefile(small[1]) and stat.S_IMODE(small[1].stat().st_mode) & 0o200
    assert large[0].samefile(large[1]) and stat.S_IMODE(large[0].stat().st_mode) == 0o444
    shutil.rmtree(home / "pipeline")
    open_input(home / "dvc" / "data", stage="writing")


def test_a_link_stays_read_only_in_what_is_made_from_it(home: Path) -> None:
    make(home / "pipeline" / "data")
    make(home / "dvc" / "data")

    def link(workspace: Workspace, manifest: Manifest) -> Result:
        os.link(home / "dvc" / "data" / "tokenizer" / "weights.bin", workspace.out / "weights.bin")
        return Result({})

    run_once(lambda: draft_manifest("linking", settings="{}", code="c", inputs={}), link, out=home / "merged")
    assert stat.S_IMODE((home / "dvc" / "data" / "tokenizer" / "weights.bin").stat().st_mode) == 0o444


def test_a_file_system_without_hard_links_gets_a_copy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError("no hard links here")

    make(home / "pipeline" / "data")
    monkeypatch.setattr(os, "link", refuse)
    assert make(home / "dvc" / "data").taken_from
    open_input(home / "dvc" / "data", stage="writing")


def test_a_link_that_dvc_made_is_followed(home: Path, tmp_path: Path) -> None:
    make(home / "dvc" / "data")
    cached = tmp_path / "cache"
    for file in (home / "dvc" / "data" / "rows.jsonl", home / "dvc" / "data" / "tokenizer" / "weights.bin"):
        cached.mkdir(exist_ok=True)
        file.rename(cached / file.name)
        file.symlink_to(cached / file.name)
    assert make(home / "hand" / "data").taken_from
    assert not any(path.is_symlink() for path in (home / "hand" / "data").rglob("*"))


@pytest.mark.parametrize(
    "prevented",
    [
        pytest.param({"settings": '{"seed": 2}'}, id="other settings"),
        pytest.param({"resume": False}, id="--restart"),
        pytest.param({"valid": False}, id="it no longer holds"),
    ],
)
def test_other_work_is_not_taken(home: Path, prevented: dict) -> None:
    make(home / "pipeline" / "data")
    assert make(home / "dvc" / "data", **prevented).cached is False


def test_a_damaged_result_is_passed_over(home: Path) -> None:
    make(home / "a" / "data")
    make(home / "b" / "data")
    (home / "a" / "data" / "rows.jsonl").write_text('{"other": ')
    (home / "c").mkdir()
    (home / "c" / MANIFEST).write_text("[not a manifest")
    assert make(home / "dvc" / "data").taken_from == str(home / "b" / "data")
    shutil.rmtree(home / "b")
    shutil.rmtree(home / "dvc")
    assert make(home / "dvc" / "data").cached is False


def test_unfinished_work_and_files_of_the_runners_are_not_searched(home: Path) -> None:
    for place in ("work/data", "models/data", "dvc/.data.incoming"):
        make(home / place)
        assert make(home / "new" / "data").cached is False, place
        shutil.rmtree(home / "new")
        shutil.rmtree(home / place.split("/")[0])


def test_a_result_outside_the_home_is_taken_where_the_variable_names_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "other clone" / "runs" / "data")
    assert make(home / "one" / "data").cached is False
    shutil.rmtree(home / "one")
    (tmp_path / "other clone").rename(tmp_path / "clone")
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("STAR_REUSE", f"{tmp_path / 'nothing'} {tmp_path / 'clone'}")
    assert make(home / "one" / "data").taken_from == str(tmp_path / "clone" / "runs" / "data")


@pytest.mark.parametrize("place", ["nowhere", "s3://", "hom/runs/a folder"])
def test_a_place_that_is_no_folder_is_named(
    home: Path, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAR_REUSE", place if place.startswith("s3:") else str(tmp_path / place))
    with pytest.raises(InputError, match=place.split()[0]):
        make(home / "data")


def test_a_manifest_that_cannot_be_read_belongs_to_no_work(home: Path) -> None:
    (home / "a").mkdir()
    # As one that is removed between the listing and the reading, or that only its owner may read.
    (home / "a" / MANIFEST).symlink_to(home / "gone")
    assert make(home / "dvc" / "data").cached is False


def test_a_file_whose_mode_cannot_be_changed_is_copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError("another user's file")

    make(home / "pipeline" / "data")
    monkeypatch.setattr(Path, "chmod", refuse)
    assert make(home / "dvc" / "data").taken_from
    taken = open_input(home / "dvc" / "data", stage="writing")
    assert not any((home / "dvc" / "data" / entry.path).stat().st_nlink > 1 for entry in taken.files)


@pytest.fixture
def bucket(s3_store: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in s3_store.items():
        monkeypatch.setenv(name, value)
    return f"s3://models/{tmp_path.name}"


def test_a_result_in_s3_is_taken(bucket: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "elsewhere" / "data")
    make(tmp_path / "elsewhere" / "other", settings='{"seed": 2}')
    for name in ("data", "other"):
        upload_folder(tmp_path / "elsewhere" / name, f"{bucket}/run-7/{name}")
    monkeypatch.setenv("STAR_REUSE", bucket)
    assert make(home / "dvc" / "data").taken_from == f"{bucket}/run-7/data"
    assert read_manifest(home / "dvc" / "data") == read_manifest(tmp_path / "elsewhere" / "data")


def test_a_result_that_lies_at_the_output_in_s3_is_taken(bucket: str, home: Path) -> None:
    outcomes: list[Outcome] = []

    def run() -> None:
        with_local_folders(lambda out: outcomes.append(make(out)), out=Path(f"{bucket}/data"), upload=True)

    run()
    shutil.rmtree(home / "s3")  # another machine
    run()
    assert [outcome.taken_from for outcome in outcomes] == [None, f"{bucket}/data"]
    assert json.loads((home / "s3" / "made" / bucket[5:] / "data" / MANIFEST).read_text())["origin"]


def test_only_listed_files_of_another_result_are_taken(home: Path) -> None:
    make(home / "pipeline" / "data")
    (home / "pipeline" / "data" / "tokenizer" / "adapter_config.json").write_text("{}")
    assert make(home / "dvc" / "data").taken_from
    assert open_input(home / "dvc" / "data", stage="writing")
    assert sorted(path.name for path in (home / "dvc" / "data" / "tokenizer").iterdir()) == ["weights.bin"]
