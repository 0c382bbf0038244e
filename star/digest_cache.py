"""Computes the sha256 of files, and remembers it, so that bytes that have not changed are not read again.

    digests_of([folder / "model.safetensors"])                 12 s for 8 GB, and a millisecond at every later start
    digests_of([folder / "model.safetensors"], trust="own")    for what is loaded
    digests_of([folder / "model.safetensors"], trust="none")   for what is published: reads it, once per process

docs/security.md says why, and what uses which.

A digest is remembered under the file's path with device, inode, size, mtime and ctime, as DVC and git do. ctime is what
finds a content that was exchanged under the old size and mtime: no program can set it. Its clock moves in steps, though,
of up to ten milliseconds on Linux's disks. Who writes twice in one step, and has the file hashed in between, changes
content and leaves ctime (git calls such a file racily clean). So a digest is remembered only if the file was seen
unchanged, before its first byte was read, for longer than a step:

- a file on the home's file system, by that file system's own clock: a touched folder there has a later ctime already;
- any other file, after a pause. No clock is compared, so one of another machine may be as wrong as it likes.

What one process has read is in memory, what all have read in star/digest_notes.py.
"""

import contextlib
import hashlib
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import IO, Literal

from star.digest_notes import Identity, Known, Notes, identity_of, open_notes
from star.errors import InputError

PAUSE = 0.02  # seconds: two steps of the slowest clock that stamps with fractions of a second
WORTH_A_PAUSE = 2**20  # bytes; fewer are read again as quickly, and are not remembered
SECOND = 10**9  # nanoseconds
Trust = Literal["all", "own", "none"]

_read_here: dict[Path, Known] = {}  # what this process has read itself


def digests_of(files: Iterable[Path], *, trust: Trust = "all", algorithm: str = "sha256") -> dict[Path, str]:
    """The digest (hex) of each file: as remembered if the file has not changed since it was read, else of its bytes.

    Args:
        trust: of which files another process's reading counts. `own` are those that nobody but this user can write to:
            who has a file of others open may change its memory-mapped pages without a new ctime. What this process has
            read itself counts in any case.
        algorithm: a name of hashlib.

    Raises:
        InputError: a file is missing.

    Returns:
        In the order of `files`.
    """
    found: dict[Path, str] = {}
    missing: dict[Path, Identity] = {}
    places = {file: file.resolve() for file in files}
    with open_notes() as notes:
        for file, place in places.items():
            status = _status_at(place, file)
            identity = identity_of(status)
            is_trusted = trust == "all" or (trust == "own" and _is_own(status))
            known = _known(place, identity, notes if is_trusted else None, algorithm)
            if known:
                found[file] = known.digests[algorithm]
            else:
                missing[file] = identity
        is_settled = _wait_until_settled(missing.values(), notes)
        read: dict[Path, Known] = {}
        for file, identity in missing.items():
            found[file], after = _hash(file, algorithm)
            if after == identity and is_settled(identity):
                read[places[file]] = Known(identity, {algorithm: found[file]})
        _remember(read, notes)
    return {file: found[file] for file in places}


def digest_of_file(file: Path, *, trust: Trust = "all") -> str:
    """`digests_of` for one file."""
    return digests_of([file], trust=trust)[file]


class HashingFile:
    """Writes a new file and hashes what it writes, so that nobody needs to read it again.

    The file must be out of the reach of others until `remember_written` is called.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Writes and hashes the next bytes."""
        self._sha256.update(data)
        return self._file.write(data)

    @property
    def digest(self) -> str:
        """The sha256 (hex) of all that was written."""
        return self._sha256.hexdigest()


def remember_written(digests: Mapping[Path, str], *, for_others: bool = True) -> None:
    """Remembers the sha256 of files that this process has just written and hashed, and that nobody else can write to.

    They are in their places, and closed.

    Args:
        for_others: also for other processes; otherwise until `remember_moved`. A note on disk has all files of a folder, so
            many calls for one folder would write much.
    """
    written = {file.resolve(): digest for file, digest in digests.items()}
    with open_notes() as notes:
        identities = {place: identity_of(_status_at(place, place)) for place in written}
        # Whoever writes after this pause changes ctime.
        is_settled = _wait_until_settled(identities.values(), notes)
        kept = {place: identity for place, identity in identities.items() if is_settled(identity)}
        known = {place: Known(kept[place], {"sha256": written[place]}) for place in kept}
        _remember(known, notes if for_others else None)


def remember_moved(old: Path, new: Path) -> None:
    """Remembers the digests of a folder's files under its new path, after this process has renamed it."""
    old, new = old.resolve(), new.resolve()
    moved = {}
    for place in [place for place in _read_here if place.is_relative_to(old)]:
        known = _read_here.pop(place)
        target = new / place.relative_to(old)
        # On another file system it is a copy, and nobody has read that.
        if _identity(target) == known.identity:
            moved[target] = known
    with open_notes() as notes:
        _remember(moved, notes)


@contextlib.contextmanager
def links_change(links: Mapping[Path, Path | None]) -> Iterator[None]:
    """Keeps the digests of files through a block that makes or removes hard links of them, which changes their ctime.

    Args:
        links: file -> the link that the block makes of it; None where it only removes one.
    """
    places = {file.resolve(): link for file, link in links.items()}
    with open_notes() as notes:
        # Of others' files nothing is kept: they may write in the block, and set mtime back.
        own = [place for place in places if place.is_file() and _is_own(place.lstat())]
        before = {place: known for place in own if (known := _known(place, _identity(place), notes, "sha256"))}
        here = {place for place, known in before.items() if _read_here.get(place) == known}
        yield
        kept: dict[Path, Known] = {}
        read: dict[Path, Known] = {}
        for place, known in before.items():
            for one in (place, (places[place] or place).resolve()):
                identity = _identity(one)
                # Everything but ctime.
                if identity and identity[:4] == known.identity[:4]:
                    (read if place in here else kept)[one] = Known(identity, known.digests)
        is_settled = _wait_until_settled([known.identity for known in (kept | read).values()], notes)
        _note({place: known for place, known in kept.items() if is_settled(known.identity)}, notes)
        _remember({place: known for place, known in read.items() if is_settled(known.identity)}, notes)


def _known(place: Path, identity: Identity | None, notes: Notes | None, algorithm: str) -> Known | None:
    """What is remembered of a file with this identity: what this process has read, else what is in the notes."""
    for known in (_read_here.get(place), notes and notes.read(place.parent).get(place.name)):
        if known and known.identity == identity and algorithm in known.digests:
            return known
    return None


def _remember(read: Mapping[Path, Known], notes: Notes | None) -> None:
    for place, known in read.items():
        earlier = _read_here.get(place)
        same = earlier.digests if earlier and earlier.identity == known.identity else {}
        _read_here[place] = Known(known.identity, {**same, **known.digests})
    _note({place: _read_here[place] for place in read}, notes)


def _note(files: Mapping[Path, Known], notes: Notes | None) -> None:
    if notes is None:
        return
    by_folder: dict[Path, dict[str, Known]] = defaultdict(dict)
    for place, known in files.items():
        by_folder[place.parent][place.name] = known
    for folder, named in by_folder.items():
        notes.add(folder, named)


def _wait_until_settled(found: Iterable[Identity], notes: Notes | None) -> Callable[[Identity], bool]:
    """Waits, if that is worth it, until a later change of these files would show in their ctime.

    Returns:
        Says of one of them whether it would.
    """
    identities = list(found)
    device = notes.device if notes else None
    near = [identity.ctime_ns for identity in identities if identity.device == device]
    far = len(identities) > len(near)
    paused = far and sum(identity.size for identity in identities) >= WORTH_A_PAUSE
    if paused:
        time.sleep(PAUSE)
    now = notes.now_ns() if notes and near else 0
    end = time.monotonic() + PAUSE
    # A clock of 0 is that of a home that cannot be written: nothing can be noted there.
    while notes and near and max(near) >= now > 0 and time.monotonic() < end:
        time.sleep(PAUSE / 10)
        now = notes.now_ns()

    def is_settled(identity: Identity) -> bool:
        if identity.device == device:
            return identity.ctime_ns < now
        # Whole seconds: a step of that clock is longer than the pause.
        return paused and identity.ctime_ns % SECOND != 0

    return is_settled


def _hash(file: Path, algorithm: str) -> tuple[str, Identity]:
    """Reads a file; its digest, and its identity if it is the same before and after."""
    with _opened(file) as content:
        before = identity_of(os.fstat(content.fileno()))
        digest = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        after = identity_of(os.fstat(content.fileno()))
    return digest, after if before == after else Identity(*[-1] * 5)


def _status_at(place: Path, file: Path) -> os.stat_result:
    # Opened, because NFS asks its server only then.
    with _opened(place, shown=file) as content:
        return os.fstat(content.fileno())


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o022


def _identity(place: Path) -> Identity | None:
    try:
        return identity_of(place.lstat())
    except OSError:
        return None


def _opened(file: Path, *, shown: Path | None = None) -> BufferedReader:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        # A pipe would wait for ever for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    raise InputError(f"no file at {shown or file}: check the path")
