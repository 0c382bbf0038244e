"""Keeps the notes of the digest cache on disk (star/digest_cache.py): one file per folder whose files were hashed.

    <home>/.digests-1000/9f2c41d0...     sha256 of the rest of the note
                                         {"folder": "/models/qwen", "files": {"model.safetensors":
                                          {"identity": [2049, 131, 1503300328, 17641..., 17641...], "sha256": "0d2f..."}}}

The name of a note is a digest of its folder's path. A note is written beside its place and renamed, so readers see a whole
one without a lock; of two writers at once the later one wins, and what the other one noted is hashed again some day. A
note that is damaged, or that another user wrote, is as good as none. Nothing here raises an error for a cache that cannot
be used: without it files are hashed.

The folder has mode 0700 and is used only if it belongs to this user and nobody else can enter it, whatever
STAR_SHARED_WITH says: whoever could write a note could make any content pass for any other. It is not a database, because
a home may lie on NFS, where SQLite's locks and shared memory do not hold.
"""

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from star.home import home

NOTE_BYTES = 8 * 2**20  # a longer note is not read: one of 30,000 files
MAX_BYTES = 64 * 2**20  # of all notes; with more the older half is removed
MAX_NOTES = 2000
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Identity(NamedTuple):
    """What a file system says of a file's content: it is the same as long as all of this is.

    The kernel sets ctime at every change, and no program can set it back. mtime can be set.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Known(NamedTuple):
    """What is remembered of a file: its identity, and by algorithm the digest of its content then."""

    identity: Identity
    digests: Mapping[str, str]


def identity_of(status: os.stat_result) -> Identity:
    """The identity in the answer of a `stat`."""
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_parsed: dict[str, tuple[Identity, dict[str, Known]]] = {}  # name of a note -> its own identity and its content


class Notes:
    """The open folder of the notes.

    Attributes:
        device: of the folder's file system.
    """

    def __init__(self, descriptor: int) -> None:
        self._folder = descriptor
        self.device = os.fstat(descriptor).st_dev

    def now_ns(self) -> int:
        """The time by the clock that the folder's file system stamps its files with; 0 if it takes no changes."""
        try:
            os.utime(self._folder)
        except OSError:
            return 0
        return os.fstat(self._folder).st_ctime_ns

    def read(self, folder: Path) -> dict[str, Known]:
        """What is noted of a folder's files, by name."""
        name = _name_of(folder)
        try:
            descriptor = os.open(name, READ, dir_fd=self._folder)
        except OSError:
            return {}
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not (stat.S_ISREG(status.st_mode) and _is_private(status) and status.st_size <= NOTE_BYTES):
                return {}
            identity = identity_of(status)
            if name not in _parsed or _parsed[name][0] != identity:
                _parsed[name] = (identity, _parse(file.read(NOTE_BYTES), folder))
        return _parsed[name][1]

    def add(self, folder: Path, files: Mapping[str, Known]) -> None:
        """Adds files to a folder's note. A disk that is full, or a home that cannot be written to, is passed over."""
        earlier = self.read(folder)
        # The new ones last, so that of too many the oldest ones go.
        merged = {name: known for name, known in earlier.items() if name not in files}
        for name, known in files.items():
            same = name in earlier and earlier[name].identity == known.identity
            merged[name] = Known(known.identity, {**earlier[name].digests, **known.digests}) if same else known
        content = {name: {"identity": known.identity, **known.digests} for name, known in merged.items()}
        while len(body := json.dumps({"folder": str(folder), "files": content}).encode()) + 65 > NOTE_BYTES:
            content = dict(list(content.items())[len(content) // 2 + 1 :])
        name, temporary = _name_of(folder), f".{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            self._make_room(name)
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            try:
                with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=self._folder), "wb") as file:
                    file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                os.replace(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except OSError:
                os.unlink(temporary, dir_fd=self._folder)

    def _make_room(self, name: str) -> None:
        """Before a note that is new: removes the older half, and what killed writers left, if there are too many."""
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
            return
        with os.scandir(self._folder) as entries:
            notes = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
        if len(notes) >= MAX_NOTES or sum(status.st_size for status in notes.values()) > MAX_BYTES:
            for name in sorted(notes, key=lambda name: notes[name].st_mtime_ns)[: len(notes) // 2 + 1]:
                os.unlink(name, dir_fd=self._folder)


@contextlib.contextmanager
def open_notes() -> Iterator[Notes | None]:
    """Yields the notes of this user; None without a home, or if others could have written them."""
    descriptor = None
    with contextlib.suppress(OSError):
        # The home itself is not created: a command that only looks leaves nothing behind.
        folder = home() / f".digests-{os.geteuid()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        # By descriptor from here on: another user of an open home may put something else at the name.
        descriptor = os.open(folder, READ | os.O_DIRECTORY)
    if descriptor is None:
        yield None
        return
    try:
        yield Notes(descriptor) if _is_private(os.fstat(descriptor)) else None
    finally:
        os.close(descriptor)


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077


def _name_of(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:40]


def _parse(note: bytes, folder: Path) -> dict[str, Known]:
    """The content of a note; empty if it is damaged, or of another version."""
    digest, _, body = note.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        return {}
    try:
        content: dict[str, Any] = json.loads(body)
        if content["folder"] != str(folder):
            return {}
        files = content["files"].items()
        return {name: Known(Identity(*entry.pop("identity")), entry) for name, entry in files}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
