"""Folders that are whole or not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from star.errors import InputError
from star.folders.manifest import Manifest, is_finished, open_input, read_manifest
from star.folders.publish import finish_interrupted_publish, publish
from star.folders.workspace import open_workspace, remove_leftover_workspace
from star.hashing import digest_of


def manifest(fingerprint: str = "f") -> Manifest:
    return Manifest("synthesize", fingerprint, "c", "d", "0", {})


def finish(out: Path, *, fingerprint: str = "f", content: str = "rows") -> Manifest:
    with open_workspace(out, stage="synthesize", fingerprint=fingerprint, resume=True) as workspace:
        (workspace.out / "train.jsonl").write_text(content)
        return publish(workspace.out, out=out, manifest=manifest(fingerprint))


def fail_halfway(out: Path) -> None:
    with open_workspace(out, stage="s", fingerprint="f", resume=True) as workspace:
        (workspace.state / "half").write_text("done so far")
        raise ValueError("failed halfway")


def test_a_finished_folder_is_verified_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "data"
    written = finish(out)
    assert open_input(out, stage="synthesize") == written == read_manifest(out)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert is_finished(out, fingerprint="f")
    assert not is_finished(out, fingerprint="g")


def test_a_failed_stage_leaves_no_output_and_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with pytest.raises(ValueError, match="failed halfway"):
        fail_halfway(out)
    assert not out.exists()
    with open_workspace(out, stage="s", fingerprint="f", resume=True) as workspace:
        assert (workspace.state / "half").read_text() == "done so far"


@pytest.mark.parametrize(("fingerprint", "resume"), [("other", True), ("f", False)])
def test_other_work_and_a_restart_begin_anew(tmp_path: Path, fingerprint: str, resume: bool) -> None:
    out = tmp_path / "data"
    with pytest.raises(ValueError, match="failed halfway"):
        fail_halfway(out)
    with open_workspace(out, stage="s", fingerprint=fingerprint, resume=resume) as workspace:
        assert not list(workspace.state.iterdir())


def test_two_processes_at_the_same_work_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "data"
    code = (
        "from pathlib import Path\nfrom star.folders.workspace import open_workspace\n"
        f"with open_workspace(Path({str(out)!r}), stage='s', fingerprint='f', resume=True): print('entered')"
    )
    with open_workspace(out, stage="s", fingerprint="f", resume=True):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "another process" in other.stderr
    assert "entered" not in other.stdout


def test_the_work_folder_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path / "work"))
    out = tmp_path / "data"
    with open_workspace(out, stage="s", fingerprint="f" * 64, resume=True) as workspace:
        assert workspace.out.is_relative_to(tmp_path / "work")
        publish(workspace.out, out=out, manifest=manifest())
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".done"]


def test_a_result_that_its_runner_did_not_note_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path / "work"))
    finish(tmp_path / "first")
    (tmp_path / ".second.incoming").mkdir()
    (tmp_path / ".second.incoming" / "left").touch()  # of a copy that was killed
    finish_interrupted_publish(tmp_path / "second", stage="synthesize", fingerprint="f")
    assert is_finished(tmp_path / "second", fingerprint="f")
    assert not (tmp_path / "second" / "left").exists()
    assert is_finished(tmp_path / "first", fingerprint="f")
    finish_interrupted_publish(tmp_path / "third", stage="synthesize", fingerprint="other")
    assert not (tmp_path / "third").exists()
    shutil.rmtree(tmp_path / "second")  # by hand: it shall be made again, not come back from the copy that nobody uses
    finish_interrupted_publish(tmp_path / "fourth", stage="synthesize", fingerprint="f")
    assert not (tmp_path / "fourth").exists()


@pytest.mark.parametrize("marked", [True, False], ids=["whole", "removed in part"])
def test_what_a_kill_right_after_publishing_left_is_cleared(
    marked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    monkeypatch.setenv("STAR_WORK", str(work))
    finish(tmp_path / "data")
    for name in ("synthesize-f", "synthesize-g"):  # the finished work's, and one that another configuration has begun
        (work / name / "state").mkdir(parents=True)
        (work / name / "fingerprint").write_text(name[-1])
    if not marked:
        (work / "synthesize-f" / "fingerprint").unlink()
    (work / "synthesize-f.lock").touch()
    remove_leftover_workspace(tmp_path / "data", stage="synthesize", fingerprint="f")
    assert sorted(path.name for path in work.iterdir()) == ["synthesize-f.done", "synthesize-g"]


def test_a_result_caught_between_two_renames_is_put_in_its_place(tmp_path: Path) -> None:
    out = tmp_path / "data"
    finish(out)
    out.rename(tmp_path / ".data.incoming")
    finish_interrupted_publish(out, stage="synthesize", fingerprint="other")
    assert not out.exists()
    finish_interrupted_publish(out, stage="synthesize", fingerprint="f")
    assert is_finished(out, fingerprint="f")


def test_the_manifest_counts_rows(tmp_path: Path) -> None:
    finish(tmp_path / "data", content="{}\n{}\n")
    assert [entry.rows for entry in read_manifest(tmp_path / "data").files] == [2]


def test_a_newer_result_replaces_an_older_one(tmp_path: Path) -> None:
    out = tmp_path / "data"
    finish(out, content="old")
    finish(out, fingerprint="g", content="new")
    assert (out / "train.jsonl").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="thesis"):
        finish(out)
    assert (out / "chapter.txt").read_text() == "years of work"


def damage_missing(out: Path) -> None:
    (out / "train.jsonl").unlink()


def damage_changed(out: Path) -> None:
    (out / "train.jsonl").write_text("r0ws")


def damage_manifest(out: Path) -> None:
    (out / "manifest.json").write_text('{"stage": ')


def damage_no_manifest(out: Path) -> None:
    (out / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [damage_missing, damage_changed, damage_manifest, damage_no_manifest])
def test_a_damaged_input_is_refused_by_name(tmp_path: Path, damage) -> None:
    out = tmp_path / "data"
    finish(out)
    damage(out)
    with pytest.raises(InputError, match="data") as error:
        open_input(out, stage="synthesize")
    assert "\n" not in str(error.value)
    assert not is_finished(out, fingerprint="f")


def test_another_stages_output_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "data")
    with pytest.raises(InputError, match="output of synthesize, not of rollout"):
        open_input(tmp_path / "data", stage="rollout")


def test_the_digest_is_of_the_content_and_not_of_the_metrics(tmp_path: Path) -> None:
    digests = []
    for seconds in (1, 2):
        out = tmp_path / str(seconds)
        with open_workspace(out, stage="s", fingerprint="f", resume=True) as workspace:
            (workspace.out / "train.jsonl").write_text("rows")
            (workspace.out / "metrics.json").write_text(json.dumps({"seconds": seconds}))
            digests.append(publish(workspace.out, out=out, manifest=manifest()).digest)
    assert digests[0] == digests[1]


def test_files_are_readable_by_other_users(tmp_path: Path) -> None:
    out = tmp_path / "data"
    with open_workspace(out, stage="s", fingerprint="f", resume=True) as workspace:
        (workspace.out / "model.safetensors").write_text("")
        (workspace.out / "model.safetensors").chmod(0o600)
        publish(workspace.out, out=out, manifest=manifest())
    assert (out / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_digest_does_not_depend_on_key_order() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
