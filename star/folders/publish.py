"""Publishes finished folders: writes the manifest last and renames the folder to its place.

Readers see the older result, nothing for a moment, or the complete new result; never a part of it. With an older
result in place:

    .data.partial/out  -> .data.incoming    rename; a copy when STAR_WORK is on another file system
    data               -> .data.outgoing    rename
    .data.incoming     -> data              rename
    .data.outgoing                          removed

A kill before the last rename leaves a complete .data.incoming. The next run of the same work finds it and renames it
to its place (`finish_interrupted_publish`).
"""

import errno
import shutil
from dataclasses import asdict
from pathlib import Path

from star.folders.manifest import MANIFEST, FileEntry, Manifest, copy_listed_files, is_finished, refuse_foreign
from star.folders.working_paths import incoming_folder, outgoing_folder, published_note
from star.hashing import sha256_of
from star.json_file import write_json


def publish(folder: Path, *, out: Path, manifest: Manifest) -> Manifest:
    """Lists the files of `folder` in its manifest and renames it to `out`, replacing an older result.

    Args:
        manifest: everything but the list of files.

    Returns:
        The manifest as it was written.

    Raises:
        InputError: `out` has content that STAR did not write; it is left as it is.
    """
    files = [
        FileEntry(name, file.stat().st_size, sha256_of(file), _count_rows(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and (name := file.relative_to(folder).as_posix()) != MANIFEST
    ]
    finished = Manifest(**{**vars(manifest), "files": files})
    make_readable_by_all(folder)
    # The manifest is written last, so a folder that has one is complete.
    write_json(folder / MANIFEST, asdict(finished))
    # It was checked before the work too, but somebody may have put files there since.
    refuse_foreign(out)
    _move(folder, out)
    # After the renames, because a later attempt copies from the path in the note.
    if note := published_note(manifest.stage, manifest.fingerprint):
        note.write_text(str(out), encoding="utf-8")
    return finished


def make_readable_by_all(folder: Path) -> None:
    """Gives all files mode 0644: weights are saved as 0600, which another user on a shared volume could not read.

    A read-only file gets 0444: it may be a hard link to a file of another result.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644 & (file.stat().st_mode | 0o444))


def finish_interrupted_publish(out: Path, *, stage: str, fingerprint: str) -> None:
    """Puts the complete result of this work at `out` if an earlier process was killed just before or after publishing.

    There are two such moments: between the renames, and after publishing but before the runner recorded the result.
    In the second one the next attempt has another output path (Kubeflow gives it one), and the result is copied from
    the path in the note.
    """
    incoming, note = incoming_folder(out), published_note(stage, fingerprint)
    if note and note.is_file() and not is_finished(out, fingerprint=fingerprint):
        published = Path(note.read_text(encoding="utf-8"))
        if is_finished(published, fingerprint=fingerprint):
            out.parent.mkdir(parents=True, exist_ok=True)
            # A copy that was killed lies there. It may have read-only files, which cannot be written again.
            shutil.rmtree(incoming, ignore_errors=True)
            # A copy that is killed has no manifest yet, and `is_finished` below verifies every file before the rename.
            copy_listed_files(published, incoming, copy=shutil.copyfile)
    if is_finished(incoming, fingerprint=fingerprint):
        replace_folder(out, incoming)
        if note:
            # From now on this copy counts: the older one may be removed with its run.
            note.write_text(str(out), encoding="utf-8")


def copy_folder_atomically(folder: Path, out: Path) -> None:
    """Copies a folder to `out`, replacing what is there. The copy appears when it is complete."""
    incoming = incoming_folder(out)
    shutil.rmtree(incoming, ignore_errors=True)
    shutil.copytree(folder, incoming)
    replace_folder(out, incoming)


def replace_folder(out: Path, incoming: Path) -> None:
    """Renames `incoming`, a folder beside `out`, to `out`, and removes what was there."""
    outgoing = outgoing_folder(out)
    # A kill before the last line of an earlier publication left it. A rename onto it would fail.
    shutil.rmtree(outgoing, ignore_errors=True)
    # A folder cannot be renamed onto one with content, so the older result moves aside first.
    # A kill between the two renames leaves a complete `incoming`, which the next run of this work puts in place.
    if out.exists():
        out.rename(outgoing)
    incoming.rename(out)
    shutil.rmtree(outgoing, ignore_errors=True)


def _count_rows(file: Path) -> int | None:
    """The number of rows of a Parquet or JSON-lines file; None for other files."""
    if file.suffix == ".parquet":
        from pyarrow.parquet import read_metadata

        return read_metadata(file).num_rows
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            return sum(1 for _ in lines)
    return None


def _move(folder: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    incoming = incoming_folder(out)
    # What lies there is incomplete or of other work.
    # `finish_interrupted_publish` has moved a complete result of this work to its place before.
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        folder.rename(incoming)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(folder, incoming)  # $STAR_WORK is on another file system, where a rename is not possible
    replace_folder(out, incoming)
