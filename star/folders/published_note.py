"""Remembers in $STAR_WORK where a result was published, for the next attempt of a task that was killed right after it.

    /var/star/work/synthesize-0b6dd34c7f2e91aa.done
        /artifacts/run-5a1c/attempt-1/data              the path of the published folder
        9f2c41...                                       code of this home over path, fingerprint and manifest

Whoever can write to $STAR_WORK can write such a file, and a folder with a manifest of its own making. So a note counts only
with a code (HMAC-SHA256) by the key of the home, `note.key`, which only this user can read. A note without it is passed
over, and the work is done.
"""

import hmac
import secrets
from pathlib import Path

from star.folders.manifest import MANIFEST
from star.folders.owners import create_home, is_own, read_own_file, write_own_file
from star.hashing import digest_of, sha256_of
from star.home import home

KEY_FILE = "note.key"


def write_note(note: Path, published: Path, *, fingerprint: str) -> None:
    """Notes that the result of this work was published at this path. Without a home that can be written nothing is noted."""
    try:
        key = _read_key() or _create_key()
    except OSError:
        return
    write_own_file(note, f"{published}\n{_code(key, published, fingerprint)}\n")


def read_note(note: Path, *, fingerprint: str) -> Path | None:
    """Returns the published folder that the note names; None without a note of this home, or if the folder was changed.

    Raises:
        InputError: the note is a link, or belongs to somebody else.
    """
    published, _, code = (read_own_file(note) or "").rstrip("\n").rpartition("\n")
    key = _read_key() if published else None
    folder = Path(published)
    if not key or not (folder / MANIFEST).is_file() or not is_own(folder):
        return None
    return folder if hmac.compare_digest(code, _code(key, folder, fingerprint)) else None


def _code(key: str, published: Path, fingerprint: str) -> str:
    content = digest_of([str(published), fingerprint, sha256_of(published / MANIFEST)])
    return hmac.new(key.encode(), content.encode(), "sha256").hexdigest()


def _read_key() -> str | None:
    return read_own_file(home() / KEY_FILE)


def _create_key() -> str:
    create_home()
    key = secrets.token_hex(32)
    write_own_file(home() / KEY_FILE, key)
    return key
