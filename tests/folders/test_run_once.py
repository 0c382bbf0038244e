"""The folder contract as its callers see it: work is done once, resumed after a failure, and never published in part."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from star import digest_cache
from star.errors import InputError
from star.folders.manifest import Manifest, open_input
from star.folders.run_once import Outcome, Result, draft_manifest, run_once
from star.folders.workspace import Workspace
from star.hashing import sha256_of


class Work:
    """Work that counts to two and can fail in between."""

    def __init__(self, *, fail: bool = False, settings: str = "{}") -> None:
        self.fail = fail
        self.settings = settings
        self.steps: list[str] = []

    def describe(self) -> Manifest:
        return draft_manifest("counting", settings=self.settings, code="c", inputs={})

    def work(self, workspace: Workspace, manifest: Manifest) -> Result:
        for step in ("one", "two"):
            if not (workspace.state / step).exists():
                self.steps.append(step)
                (workspace.state / step).touch()
            if self.fail:
                raise ValueError("failed halfway")
        (workspace.out / "rows.jsonl").write_text("{}\n{}\n")
        return Result({"steps": 2}, {"commit": "abc"})

    def run(self, out: Path, *, resume: bool = True, valid: bool = True) -> Outcome:
        return run_once(self.describe, self.work, out=out, resume=resume, is_valid=lambda folder: valid)


@pytest.fixture
def fail_halfway(tmp_path: Path) -> Callable[[], Path]:
    def fail() -> Path:
        with pytest.raises(ValueError, match="failed halfway"):
            Work(fail=True).run(tmp_path / "out")
        return tmp_path / "out"

    return fail


def test_work_is_done_once(tmp_path: Path) -> None:
    first, again = Work(), Work()
    assert first.run(tmp_path / "out") == Outcome({"steps": 2}, cached=False)
    assert again.run(tmp_path / "out") == Outcome({"steps": 2}, cached=True)
    assert (first.steps, again.steps) == (["one", "two"], [])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_published_folder_says_what_it_is(tmp_path: Path) -> None:
    Work().run(tmp_path / "out")
    manifest = open_input(tmp_path / "out", stage="counting")
    assert [(entry.path, entry.rows) for entry in manifest.files] == [("metrics.json", None), ("rows.jsonl", 2)]
    assert manifest.origin == {"commit": "abc"}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"steps": 2}


def test_failed_work_is_not_published_and_resumes(fail_halfway) -> None:
    out = fail_halfway()
    assert not out.exists()
    work = Work()
    work.run(out)
    assert work.steps == ["two"]


def test_work_without_resume_starts_from_nothing(fail_halfway) -> None:
    work = Work()
    work.run(fail_halfway(), resume=False)
    assert work.steps == ["one", "two"]


def test_other_settings_are_other_work(fail_halfway) -> None:
    work = Work(settings='{"seed": 2}')
    work.run(fail_halfway())
    assert work.steps == ["one", "two"]


def test_a_result_that_no_longer_holds_is_made_again(tmp_path: Path) -> None:
    Work().run(tmp_path / "out")
    again = Work()
    assert again.run(tmp_path / "out", valid=False).cached is False
    assert again.steps == ["one", "two"]


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    Work().run(tmp_path / "out")
    (tmp_path / "out" / "rows.jsonl").write_text("other\n")
    again = Work()
    again.run(tmp_path / "out")
    assert again.steps == ["one", "two"]


def test_a_finished_result_is_not_read_again(tmp_path: Path, own_home: Path, read_files: list[str]) -> None:
    own_home.mkdir()
    Work().run(tmp_path / "out")
    digest_cache._read_here.clear()  # as in another process
    read_files.clear()
    assert Work().run(tmp_path / "out").cached
    open_input(tmp_path / "out", stage="counting", trust="own")
    assert read_files == []
    open_input(tmp_path / "out", stage="counting", trust="none")
    assert sorted(read_files) == ["metrics.json", "rows.jsonl"]


def test_other_content_of_the_same_size_and_time_is_found(tmp_path: Path, own_home: Path) -> None:
    own_home.mkdir()
    Work().run(tmp_path / "out")
    rows = tmp_path / "out" / "rows.jsonl"
    before = rows.stat()
    rows.write_text("{}\n[]\n")
    os.utime(rows, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="was changed"):
        open_input(tmp_path / "out", stage="counting")
    assert not Work().run(tmp_path / "out").cached


def test_a_folder_of_others_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    work = Work()
    with pytest.raises(InputError, match="exists and is not a stage's output"):
        work.run(tmp_path / "out")
    assert work.steps == []


def test_the_result_of_another_stage_and_an_input_are_not_replaced(tmp_path: Path) -> None:
    Work().run(tmp_path / "out")
    kept = (tmp_path / "out" / "rows.jsonl").read_bytes()

    def describe() -> Manifest:
        return draft_manifest("other", settings="{}", code="c", inputs={})

    with pytest.raises(InputError, match="out is the output of counting, which other would replace"):
        run_once(describe, Work().work, out=tmp_path / "out")
    for source in (tmp_path / "out", tmp_path / "out" / "rows.jsonl"):
        with pytest.raises(InputError, match="would replace the input"):
            run_once(Work(settings='{"seed": 2}').describe, Work().work, out=tmp_path / "out", sources=[source])
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == kept
    # A damaged folder is made again, whoever wrote it.
    (tmp_path / "out" / "manifest.json").write_text("{")
    run_once(describe, Work().work, out=tmp_path / "out")


def add_link_to_a_folder(folder: Path) -> None:
    folder.with_name("elsewhere").mkdir()
    (folder / "additional_chat_templates").symlink_to(folder.with_name("elsewhere"))


def add_in_a_folder(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")


ADDITIONS: dict[str, Callable[[Path], object]] = {
    "adapter_config.json": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    ".hidden": lambda folder: (folder / ".hidden").touch(),
    "broken": lambda folder: (folder / "broken").symlink_to("nowhere"),
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
    "additional_chat_templates": add_link_to_a_folder,
    "additional_chat_templates/tool_use.jinja": add_in_a_folder,
}


@pytest.mark.parametrize("path", ADDITIONS)
def test_a_file_that_the_stage_did_not_write_is_refused_and_stays(tmp_path: Path, path: str) -> None:
    Work().run(tmp_path / "out")
    ADDITIONS[path](tmp_path / "out")
    with pytest.raises(InputError, match=f"has '{path}', which `star counting` did not write .* move it out"):
        open_input(tmp_path / "out", stage="counting")
    again = Work()
    with pytest.raises(InputError, match="move it out"):
        again.run(tmp_path / "out")
    assert again.steps == []
    assert os.path.lexists(tmp_path / "out" / path)


def test_empty_folders_and_open_files_of_nfs_are_no_additions(tmp_path: Path) -> None:
    Work().run(tmp_path / "out")
    (tmp_path / "out" / "empty").mkdir()
    (tmp_path / "out" / ".nfs00000000038a0f3200000001").touch()
    assert Work().run(tmp_path / "out").cached
    (tmp_path / "out" / ".nfs01.jinja").touch()
    with pytest.raises(InputError, match="jinja"):
        open_input(tmp_path / "out", stage="counting")
    (tmp_path / "out" / ".nfs01.jinja").unlink()
    (tmp_path / "out" / ".nfs02").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"\.nfs02"):
        open_input(tmp_path / "out", stage="counting")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"files": [{"path": "a" * 5000, "size": 1, "sha256": ""}]}, "is missing or was changed"),
        ([1], r"manifest\.json is damaged \(it is missing"),
        ({"ancestors": [1]}, r"manifest\.json is damaged"),
        ({"inputs": "x"}, r"manifest\.json is damaged"),
        ({"origin": None}, r"manifest\.json is damaged \(origin"),
        ({"stage": ["counting"]}, r"manifest\.json is damaged \(stage"),
        ({"ancestors": {"a" * 64: {"stage": "distill"}}}, r"manifest\.json is damaged \(ancestors\.a{64}\.fingerprint"),
        ({"origin": {"base": ["a"]}}, r"manifest\.json is damaged \(origin\.base is missing or of another kind\)"),
        ({"origin": {"base": {"name": None}}}, r"manifest\.json is damaged \(origin\.base\.name"),
        (
            {"origin": {"trained": [{"phase": "sft", "steps": "many"}]}},
            r"manifest\.json is damaged \(origin\.trained\[0\]\.steps",
        ),
        (
            {"origin": {"data": {"licences": {"mit": "many"}}}},
            r"manifest\.json is damaged \(origin\.data\.licences\.mit",
        ),
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, change: dict | list, says: str) -> None:
    Work().run(tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.chmod(0o600)
    manifest.write_text(json.dumps(change if isinstance(change, list) else content | change))
    with pytest.raises(InputError, match=says):
        open_input(tmp_path / "out", stage="counting")


def test_a_listed_file_may_be_a_link_into_a_cache(tmp_path: Path) -> None:
    """DVC replaces the files of a folder by links where it is told to."""
    Work().run(tmp_path / "out")
    (tmp_path / "out" / "rows.jsonl").rename(tmp_path / "cached")
    (tmp_path / "out" / "rows.jsonl").symlink_to(tmp_path / "cached")
    assert open_input(tmp_path / "out", stage="counting")
    (tmp_path / "cached").write_text("{}\n[]\n")
    with pytest.raises(InputError, match="was changed"):
        open_input(tmp_path / "out", stage="counting")


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    Work().run(tmp_path / "out")
    (tmp_path / "elsewhere").touch()
    file = tmp_path / "out" / "manifest.json"
    content = json.loads(file.read_text())
    content["files"].append({"path": "../elsewhere", "size": 0, "sha256": sha256_of(tmp_path / "elsewhere")})
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="outside its folder"):
        open_input(tmp_path / "out", stage="counting")
