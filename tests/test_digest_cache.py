"""Bytes that have not changed are read once, and any change is found: also one that keeps size and mtime."""

import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from star import digest_cache, digest_notes
from star.digest_cache import (
    HashingFile,
    digest_of_file,
    digests_of,
    links_change,
    remember_moved,
    remember_written,
)
from star.errors import InputError
from star.folders.manifest import Manifest
from star.folders.publish import publish
from star.folders.workspace import open_workspace

TICK = 0.02  # seconds: a step of the clock of file systems


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def forget() -> None:
    """As in another process: only the notes on disk are left."""
    digest_cache._read_here.clear()
    digest_notes._parsed.clear()


@pytest.fixture
def home(own_home: Path) -> Path:
    own_home.mkdir()
    return own_home


@pytest.fixture
def file(home: Path, tmp_path: Path) -> Path:
    """A file whose digest another process has noted."""
    made = tmp_path / "model.safetensors"
    made.write_bytes(b"one")
    time.sleep(TICK)
    digest_of_file(made)
    forget()
    return made


def notes(home: Path) -> Path:
    return home / f".digests-{os.geteuid()}"


def note(home: Path) -> Path:
    [found] = notes(home).iterdir()
    return found


def test_an_unchanged_file_is_read_once_by_all_processes(file: Path, home: Path, read_files: list[str]) -> None:
    assert digests_of([file, file]) == {file: sha256(b"one")} and read_files == []
    assert digest_of_file(file, trust="own") == sha256(b"one") and read_files == []
    assert digest_of_file(file, trust="none") == sha256(b"one") and read_files == [file.name]
    assert digest_of_file(file, trust="none") == sha256(b"one") and read_files == [file.name]
    code = f"from star.digest_cache import digest_of_file; print(digest_of_file(__import__('pathlib').Path({str(file)!r})))"
    silent = f"import hashlib; hashlib.file_digest = None; {code}"
    done = subprocess.run([sys.executable, "-c", silent], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sha256(b"one")
    assert stat.S_IMODE(notes(home).stat().st_mode) == 0o700 and stat.S_IMODE(note(home).stat().st_mode) == 0o600


def test_two_algorithms_do_not_drive_each_other_out(file: Path, read_files: list[str]) -> None:
    md5 = hashlib.md5(b"one", usedforsecurity=False).hexdigest()
    assert digests_of([file], algorithm="md5") == {file: md5}
    forget()
    assert digests_of([file]) == {file: sha256(b"one")} and digests_of([file], algorithm="md5") == {file: md5}
    assert read_files == [file.name]


def test_the_order_is_that_of_the_files(file: Path) -> None:
    others = [file.with_name(name) for name in ("a", "z")]
    for other in others:
        other.touch()
    assert list(digests_of([others[0], file, others[1]])) == [others[0], file, others[1]]


def rewrite(file: Path) -> None:
    file.write_bytes(b"two")


def exchange(file: Path) -> None:
    file.with_name("other").write_bytes(b"two")
    file.with_name("other").replace(file)


def link(file: Path) -> None:
    file.rename(file.with_name("other"))
    file.with_name("other").write_bytes(b"two")
    file.symlink_to("other")


def write_through_a_hard_link(file: Path) -> None:
    os.link(file, file.with_name("other"))
    file.with_name("other").write_bytes(b"two")


@pytest.mark.parametrize("change", [rewrite, exchange, link, write_through_a_hard_link])
@pytest.mark.parametrize("restored", [True, False])
def test_a_content_of_the_same_size_is_found(file: Path, change: Callable[[Path], None], restored: bool) -> None:
    before = file.stat()
    change(file)
    if restored:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert digest_of_file(file) == sha256(b"two")
    time.sleep(TICK)
    assert digest_of_file(file) == sha256(b"two")


def test_a_file_that_may_change_within_the_same_tick_is_not_remembered(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_files: list[str]
) -> None:
    """A clock that stands still: the file is written, hashed and written again under the same stamps."""
    young, size = tmp_path / "young", digest_cache.WORTH_A_PAUSE
    young.write_bytes(b"a" * size)
    monkeypatch.setattr(digest_notes.Notes, "now_ns", lambda notes: young.stat().st_ctime_ns)
    assert digest_of_file(young) == sha256(b"a" * size)
    assert digest_of_file(young, trust="none") == sha256(b"a" * size)
    remember_written({young: sha256(b"a" * size)})
    forget()
    digest_of_file(young)
    assert read_files == ["young"] * 3


@pytest.mark.parametrize("mode", [0o644, 0o664, 0o646])
def test_a_file_that_others_can_write_to_is_read_when_it_is_loaded(
    file: Path, mode: int, read_files: list[str]
) -> None:
    file.chmod(mode)
    time.sleep(TICK)
    digest_of_file(file)
    forget()
    read_files.clear()
    assert digest_of_file(file) == sha256(b"one") and read_files == []
    assert digest_of_file(file, trust="own") == sha256(b"one") and bool(read_files) == (mode != 0o644)


def test_every_one_of_many_quick_changes_is_found(home: Path, tmp_path: Path) -> None:
    for number in range(1000, 1400):
        (tmp_path / "file").write_text(f"{number}")
        assert digest_of_file(tmp_path / "file") == sha256(f"{number}".encode())


def test_a_young_file_is_waited_for(home: Path, tmp_path: Path, read_files: list[str]) -> None:
    young = tmp_path / "young"
    young.write_bytes(b"1")
    digest_of_file(young)
    forget()
    digest_of_file(young)
    assert read_files == ["young"]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_file_of_another_file_system_is_remembered_whatever_its_clock_says(
    home: Path, monkeypatch: pytest.MonkeyPatch, read_files: list[str]
) -> None:
    far = Path(f"/dev/shm/star-test-{os.getpid()}")
    try:
        # Neither the home's clock nor this machine's is compared with its stamps.
        monkeypatch.setattr(digest_notes.Notes, "now_ns", lambda notes: 0)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        far.write_bytes(bytes(digest_cache.WORTH_A_PAUSE))
        digest_of_file(far)
        forget()
        assert digest_of_file(far) == sha256(bytes(digest_cache.WORTH_A_PAUSE)) and read_files == [far.name]
        far.write_bytes(b"1" * digest_cache.WORTH_A_PAUSE)
        assert digest_of_file(far) == sha256(b"1" * digest_cache.WORTH_A_PAUSE)
    finally:
        far.unlink()


def test_a_file_that_is_written_while_it_is_read_is_not_remembered(
    file: Path, monkeypatch: pytest.MonkeyPatch, read_files: list[str]
) -> None:
    noted = hashlib.file_digest

    def written_meanwhile(content, digest):
        made = noted(content, digest)
        file.write_bytes(b"two")
        return made

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", written_meanwhile)
        digest_of_file(file, trust="none")
    assert digest_of_file(file, trust="none") == sha256(b"two")


def damaged(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


def another_digest(path: Path) -> None:
    path.write_text(path.read_text().replace(sha256(b"one"), sha256(b"two")))


def of_another_folder(path: Path) -> None:
    body = json.dumps({"folder": "/elsewhere", "files": {}})
    path.write_text(f"{sha256(body.encode())}\n{body}")


def of_another_version(path: Path) -> None:
    body = json.dumps([1])
    path.write_text(f"{sha256(body.encode())}\n{body}")


def a_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def written_by_others(path: Path) -> None:
    path.chmod(0o666)


def open_to_others(path: Path) -> None:
    path.parent.chmod(0o770)


def a_link_to_a_folder(path: Path) -> None:
    path.parent.rename(path.parent.parent / "elsewhere")
    path.parent.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        damaged(""), damaged("[" * 10**5), damaged("{}"), another_digest, of_another_folder, of_another_version, a_link,
        a_pipe, written_by_others, open_to_others, a_link_to_a_folder,
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_cache_is_none(
    file: Path, home: Path, damage: Callable[[Path], object], read_files: list[str]
) -> None:
    damage(note(home))
    assert digest_of_file(file) == sha256(b"one") and read_files == [file.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user")
@pytest.mark.parametrize("taken", ["folder", "note"])
def test_the_cache_of_another_user_is_none(
    file: Path, home: Path, taken: str, read_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAR_SHARED_WITH", "everyone")
    os.chown(notes(home) if taken == "folder" else note(home), 20002, 20002)
    assert digest_of_file(file) == sha256(b"one") and read_files == [file.name]


def test_without_a_home_nothing_is_made(own_home: Path, tmp_path: Path, read_files: list[str]) -> None:
    (tmp_path / "file").write_bytes(b"one")
    for _ in range(2):
        assert digest_of_file(tmp_path / "file") == sha256(b"one")
    assert read_files == ["file"] * 2 and not own_home.exists()
    own_home.touch()
    assert digest_of_file(tmp_path / "file") == sha256(b"one")


@pytest.mark.parametrize("call", ["utime", "replace"])
def test_a_home_that_cannot_be_written_is_only_read(
    file: Path, home: Path, call: str, read_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(digest_notes.os, call, refuse)
    assert digest_of_file(file) == sha256(b"one") and read_files == []
    file.with_name("other").write_bytes(b"two")
    assert digest_of_file(file.with_name("other")) == sha256(b"two")
    assert digest_of_file(file.with_name("other"), trust="none") == sha256(b"two")
    # Nothing half written is left.
    assert note(home).stat().st_size > 0


def test_what_is_no_file_is_named(home: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match=f"no file at {path}"):
            digest_of_file(path)


@pytest.mark.parametrize("limit", [2, 100])
def test_the_cache_stays_small(file: Path, home: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest_notes, "MAX_BYTES", 3000)
    monkeypatch.setattr(digest_notes, "MAX_NOTES", limit)
    monkeypatch.setattr(digest_notes, "NOTE_BYTES", 1500)
    for number in range(30):
        folder = file.with_name(f"folder-{number}")
        folder.mkdir()
        for name in "abcdefgh":
            (folder / name).touch()
    time.sleep(TICK)
    for number in range(30):
        digests_of(sorted(file.with_name(f"folder-{number}").iterdir()))
        assert sum(one.stat().st_size for one in notes(home).iterdir()) <= 3000 + 1500
        assert len(list(notes(home).iterdir())) <= limit
        assert all(one.stat().st_size <= 1500 for one in notes(home).iterdir())


def test_two_processes_write_at_once_and_readers_see_whole_notes(home: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"file-{number}" for number in range(40)]
    for made in files:
        made.write_text(made.name)
    time.sleep(TICK)
    code = (
        "import sys, pathlib\nfrom star import digest_cache\n"
        "for path in map(pathlib.Path, sys.argv[1:]):\n"
        "    print(digest_cache.digest_of_file(path))\n"
        "    digest_cache._read_here.clear()\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, *map(str, order)], stdout=subprocess.PIPE, text=True)
        for order in (files, files[::-1])
    ]
    expected = [sha256(made.name.encode()) for made in files]
    for process, wanted in zip(started, (expected, expected[::-1]), strict=True):
        assert process.communicate()[0].split() == wanted and process.returncode == 0
    assert len(digest_notes._parse(note(home).read_bytes(), tmp_path)) >= 30
    assert list(digests_of(files).values()) == expected


def test_what_this_process_wrote_or_moved_is_not_read_again(home: Path, tmp_path: Path, read_files: list[str]) -> None:
    (tmp_path / "old").mkdir()
    for name in ("a", "b"):
        with (tmp_path / "old" / name).open("wb") as content:
            hashing = HashingFile(content)
            hashing.write(name.encode() * 2**20)
        remember_written({tmp_path / "old" / name: hashing.digest})
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "b").unlink()
    shutil.copyfile(tmp_path / "new" / "a", tmp_path / "new" / "b")  # somebody's own
    remember_moved(tmp_path / "old", tmp_path / "new")
    forget()
    found = digests_of([tmp_path / "new" / "a", tmp_path / "new" / "b"])
    assert list(found.values()) == [sha256(b"a" * 2**20)] * 2 and read_files == ["b"]


def test_a_result_that_is_linked_to_the_state_of_its_work_is_known(
    home: Path, tmp_path: Path, read_files: list[str]
) -> None:
    """As a teacher that is fine-tuned and not refined."""
    out = tmp_path / "out"
    with open_workspace(out, stage="refine-teacher", fingerprint="f", resume=True) as workspace:
        (workspace.state / "weights").write_bytes(bytes(2**20))
        os.link(workspace.state / "weights", workspace.out / "weights")
        publish(workspace.out, out=out, manifest=Manifest("refine-teacher", "f", "c", "d", "0", {}))
    forget()
    read_files.clear()
    assert digest_of_file(out / "weights") == sha256(bytes(2**20)) and read_files == []


def test_hard_links_of_known_files_are_known(home: Path, tmp_path: Path, read_files: list[str]) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    for made in (file, other):
        made.write_bytes(bytes(2**20))
    digests_of([file, other])
    forget()
    (tmp_path / "links").mkdir()
    links = {made: tmp_path / "links" / made.name for made in (file, other)}
    with links_change(links):
        for made, second in links.items():
            os.link(made, second)
        other.write_bytes(b"1" * 2**20)  # not a link only
    read_files.clear()
    forget()
    assert list(digests_of([file, *links.values()]).values())[:2] == [sha256(bytes(2**20))] * 2
    assert read_files == ["other"]
    with links_change({file: None}):
        links[file].unlink()
    forget()
    read_files.clear()
    assert digest_of_file(file) == sha256(bytes(2**20)) and read_files == []
