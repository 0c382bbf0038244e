"""The home and unfinished work are closed to others, and what others put in their place is neither followed nor taken."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from star.errors import InputError
from star.folders import owners
from star.folders.link import link_or_copy
from star.folders.manifest import Manifest, is_finished
from star.folders.owners import create_in_home, create_private, is_own, own_part_of, refuse_others
from star.folders.publish import finish_interrupted_publish, publish
from star.folders.run_once import Outcome, Result, draft_manifest, run_once
from star.folders.workspace import Workspace, open_workspace

STRANGER = 20002
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who can give files to another user")


def describe() -> Manifest:
    return draft_manifest("counting", settings="{}", code="c", inputs={})


def count(workspace: Workspace, manifest: Manifest) -> Result:
    (workspace.out / "rows.jsonl").write_text("{}\n")
    return Result({"rows": 1})


def run(out: Path) -> Outcome:
    return run_once(describe, count, out=out)


def fail_halfway(out: Path) -> None:
    def work(workspace: Workspace, manifest: Manifest) -> Result:
        (workspace.state / "checkpoint").write_text("half of it")
        raise ValueError("failed halfway")

    with pytest.raises(ValueError, match="failed halfway"):
        run_once(describe, work, out=out)


def mode_of(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A private file of this user, to which a stranger's link leads."""
    file = tmp_path / "credentials"
    file.write_text("aws_secret_access_key = PLANTED")
    file.chmod(0o600)
    return file


def link_at(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def folder_of_a_stranger(place: Path, secret: Path) -> None:
    (place / "out").mkdir(parents=True)
    (place / "out" / "notes.txt").symlink_to(secret)
    for path in (place, place / "out", place / "out" / "notes.txt"):
        os.lchown(path, STRANGER, STRANGER)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_home_and_unfinished_work_are_closed_whatever_the_umask(
    own_home: Path, tmp_path: Path, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    fail_halfway(tmp_path / "data")
    fail_halfway(own_home / "data")
    for folder in (own_home, own_home / ".data.partial", tmp_path / ".data.partial", create_in_home("spool")):
        assert mode_of(folder) == "0o700", folder
    run(tmp_path / "data")
    assert mode_of(tmp_path / "data") == oct(0o777 & ~mask)
    assert mode_of(tmp_path / "data" / "rows.jsonl") == "0o644"


def test_the_work_folder_of_the_environment_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path / "volume" / "work"))
    with open_workspace(tmp_path / "data", stage="s", fingerprint="f", resume=True) as workspace:
        assert mode_of(workspace.out.parent) == mode_of(tmp_path / "volume" / "work") == "0o700"
        assert mode_of(tmp_path / "volume" / "work" / "s-f.lock") == "0o600"


def test_a_work_folder_that_an_older_version_left_open_is_closed(tmp_path: Path) -> None:
    fail_halfway(tmp_path / "data")
    (tmp_path / ".data.partial").chmod(0o755)
    with open_workspace(
        tmp_path / "data", stage="counting", fingerprint=describe().fingerprint, resume=True
    ) as workspace:
        assert (workspace.state / "checkpoint").read_text() == "half of it"
        assert mode_of(workspace.out.parent) == "0o700"


@pytest.mark.parametrize("name", [".data.partial", ".data.partial.lock", ".data.incoming"])
@pytest.mark.parametrize("plant", [link_at, pytest.param(folder_of_a_stranger, marks=needs_root)])
def test_what_a_stranger_put_beside_the_output_is_refused(
    plant: Callable[[Path, Path], None], name: str, secret: Path, tmp_path: Path
) -> None:
    plant(tmp_path / name, secret)
    with pytest.raises(InputError, match=rf"{name} (is a link|belongs to uid 20002)") as error:
        run(tmp_path / "data")
    assert "\n" not in str(error.value)
    assert secret.read_text().endswith("PLANTED") and mode_of(secret) == "0o600"
    assert not (tmp_path / "data").exists()


@needs_root
def test_an_older_output_of_a_stranger_is_refused(secret: Path, tmp_path: Path) -> None:
    link_at(tmp_path / ".data.outgoing", secret)
    os.lchown(tmp_path / ".data.outgoing", STRANGER, STRANGER)
    with pytest.raises(InputError, match="outgoing belongs to uid 20002"):
        run(tmp_path / "data")


@needs_root
def test_an_output_of_a_stranger_does_not_vouch_for_itself(tmp_path: Path) -> None:
    run(tmp_path / "data")
    os.chown(tmp_path / "data", STRANGER, STRANGER)
    with pytest.raises(InputError, match="data belongs to uid 20002"):
        run(tmp_path / "data")


def plant_link(workspace: Path, secret: Path) -> Path:
    (workspace / "state" / "checkpoint-2").symlink_to(secret.parent)
    return workspace / "state" / "checkpoint-2"


def plant_pipe(workspace: Path, secret: Path) -> Path:
    (workspace / "fingerprint").unlink()
    os.mkfifo(workspace / "fingerprint")
    return workspace / "fingerprint"


def plant_file(workspace: Path, secret: Path) -> Path:
    os.chown(workspace / "state" / "checkpoint", STRANGER, STRANGER)
    return workspace / "state" / "checkpoint"


@pytest.mark.parametrize("plant", [plant_link, plant_pipe, pytest.param(plant_file, marks=needs_root)])
def test_a_resume_takes_nothing_that_others_put_into_the_work(
    plant: Callable[[Path, Path], Path], secret: Path, tmp_path: Path
) -> None:
    fail_halfway(tmp_path / "data")
    planted = plant(tmp_path / ".data.partial", secret)
    with pytest.raises(InputError, match=str(planted)):
        run(tmp_path / "data")


def test_a_link_is_not_published_and_its_target_not_opened(secret: Path, tmp_path: Path) -> None:
    def work(workspace: Workspace, manifest: Manifest) -> Result:
        (workspace.out / "notes.txt").symlink_to(secret)
        return Result({})

    with pytest.raises(InputError, match=r"notes\.txt is a link"):
        run_once(describe, work, out=tmp_path / "data")
    assert mode_of(secret) == "0o600" and not (tmp_path / "data").exists()


def test_the_output_may_be_a_link_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert not run(tmp_path / "data").cached
    assert run(tmp_path / "data").cached
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "disk"]


def test_a_leftover_of_a_stranger_does_not_keep_a_result_from_being_read(secret: Path, tmp_path: Path) -> None:
    run(tmp_path / "data")
    link_at(tmp_path / ".data.partial", secret)
    assert run(tmp_path / "data").cached
    assert (tmp_path / ".data.partial").is_symlink()


@pytest.fixture
def open_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A STAR_WORK like /tmp."""
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o1777)
    monkeypatch.setenv("STAR_WORK", str(work))
    return work


def test_where_others_can_write_the_work_lies_in_a_folder_of_the_user(open_work: Path, tmp_path: Path) -> None:
    fail_halfway(tmp_path / "data")
    own = open_work / f"user-{os.geteuid()}"
    assert [path.name for path in open_work.iterdir()] == [own.name] and mode_of(own) == "0o700"
    assert not run(tmp_path / "data").cached
    assert [path.suffix for path in own.iterdir()] == [".done"]


@pytest.mark.parametrize("plant", [link_at, pytest.param(folder_of_a_stranger, marks=needs_root)])
def test_who_takes_the_name_of_that_folder_stops_nobody(
    plant: Callable[[Path, Path], None], open_work: Path, secret: Path, tmp_path: Path
) -> None:
    plant(open_work / f"user-{os.geteuid()}", secret.parent if plant is link_at else secret)
    fail_halfway(tmp_path / "data")
    found = own_part_of(open_work)
    assert found.name.startswith(f"user-{os.geteuid()}-") and is_own(found) and mode_of(found) == "0o700"
    assert list(found.glob("*/state/checkpoint")), "a killed run must find its work again"
    assert run(tmp_path / "data") == Outcome({"rows": 1}, cached=False)


def finish(out: Path) -> None:
    with open_workspace(out, stage="synthesize", fingerprint="f", resume=True) as workspace:
        (workspace.out / "rows.jsonl").write_text("{}\n")
        publish(workspace.out, out=out, manifest=Manifest("synthesize", "f", "c", "d", "0", {}))


def test_a_note_without_the_key_of_the_home_vouches_for_nothing(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path / "work"))
    finish(tmp_path / "evil")
    note = next((tmp_path / "work").glob("*.done"))
    forged = [str(tmp_path / "evil"), f"{tmp_path / 'evil'}\n{'0' * 64}\n", "", "\n\n", "\x00" * 10]
    for text in forged:
        note.write_text(text)
        finish_interrupted_publish(tmp_path / "data", stage="synthesize", fingerprint="f")
        assert not (tmp_path / "data").exists(), text


def test_a_note_holds_for_its_result_and_its_home_only(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path / "work"))
    finish(tmp_path / "first")
    manifest = tmp_path / "first" / "manifest.json"
    content = manifest.read_text()
    manifest.write_text(content + " ")  # another manifest with the same fingerprint
    finish_interrupted_publish(tmp_path / "second", stage="synthesize", fingerprint="f")
    assert not (tmp_path / "second").exists()
    manifest.write_text(content)
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "another home"))
    finish_interrupted_publish(tmp_path / "second", stage="synthesize", fingerprint="f")
    assert not (tmp_path / "second").exists()
    monkeypatch.setenv("STAR_HOME", str(own_home))
    finish_interrupted_publish(tmp_path / "second", stage="synthesize", fingerprint="f")
    assert is_finished(tmp_path / "second", fingerprint="f")
    assert mode_of(own_home / "note.key") == "0o600"


def test_a_link_in_place_of_a_note_is_not_written_through(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_WORK", str(tmp_path / "work"))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "synthesize-f.done").symlink_to(secret)
    finish(tmp_path / "data")
    assert secret.read_text().endswith("PLANTED")


def test_who_shares_the_work_may_go_on_with_it_and_nobody_may_change_a_result(
    tmp_path: Path, umask: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for sharing, folder, file in (("group", "0o2770", "0o664"), ("everyone", "0o777", "0o666")):
        umask(0o022)
        monkeypatch.setenv("STAR_WORK", str(tmp_path / f"work of {sharing}"))
        monkeypatch.setenv("STAR_SHARED_WITH", sharing)
        fail_halfway(tmp_path / sharing)
        work = next((tmp_path / f"work of {sharing}").glob("counting-*/state")).parent
        assert (mode_of(work), mode_of(work / "state" / "checkpoint")) == (folder, file)
        run(tmp_path / sharing)
        assert stat.S_IMODE((tmp_path / sharing).stat().st_mode) & 0o022 == 0
        assert mode_of(tmp_path / sharing / "rows.jsonl") == "0o644"
        assert umask(0o022) == 0o022, "the umask of the process is the old one again"


@needs_root
@pytest.mark.parametrize(
    ("sharing", "group", "taken"),
    [("nobody", 0, False), ("group", 0, True), ("group", 20003, False), ("everyone", 20003, True)],
)
def test_whose_files_are_taken_is_said_by_the_variable(
    sharing: str, group: int, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_SHARED_WITH", sharing)
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", STRANGER, group)
    with contextlib.nullcontext() if taken else pytest.raises(InputError, match="STAR_SHARED_WITH"):
        refuse_others(tmp_path / "theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match="is a link"):
        refuse_others(tmp_path / "link")


def test_another_value_of_the_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_SHARED_WITH", "all")
    with pytest.raises(InputError, match="STAR_SHARED_WITH is 'all': set it to one of nobody, group, everyone"):
        create_private(tmp_path / "work")


@needs_root
def test_where_the_file_system_shows_one_owner_for_all_files_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / "mine", STRANGER, STRANGER)
    # As CIFS and NFS with all_squash do; a new file of this process is shown as the stranger's too.
    monkeypatch.setattr(owners, "_owner_of_new_files", lambda folder: STRANGER)
    refuse_others(tmp_path / "mine")


@needs_root
def test_only_files_of_the_user_are_linked(tmp_path: Path) -> None:
    for name, owner in (("mine", 0), ("theirs", STRANGER)):
        (tmp_path / name).write_text(name)
        os.chown(tmp_path / name, owner, owner)
        link_or_copy(tmp_path / name, tmp_path / f"{name} again", read_only=True)
        assert (tmp_path / f"{name} again").read_text() == name
    assert (tmp_path / "mine again").samefile(tmp_path / "mine") and mode_of(tmp_path / "mine") == "0o444"
    assert not (tmp_path / "theirs again").samefile(tmp_path / "theirs") and mode_of(tmp_path / "theirs") == "0o644"


@needs_root
def test_a_home_of_a_stranger_is_refused(own_home: Path) -> None:
    own_home.mkdir()
    os.chown(own_home, STRANGER, STRANGER)
    with pytest.raises(InputError, match="home belongs to uid 20002"):
        create_in_home("spool")
