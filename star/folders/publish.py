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
import stat
from dataclasses import asdict
from pathlib import Path

from star.digest_cache import digests_of, remember_moved
from star.folders.manifest import MANIFEST, FileEntry, Manifest, copy_listed_files, is_finished, refuse_foreign
from star.folders.owners import create_folder, refuse_other_owner, refuse_others, refuse_others_below, shared_with
from star.folders.published_note import read_note, write_note
from star.folders.working_paths import incoming_folder, outgoing_folder, published_note
from star.json_file import write_json


def publish(folder: Path, *, out: Path, manifest: Manifest) -> Manifest:
    """Lists the files of `folder` in its manifest and renames it to `out`, replacing an older result.

    Args:
        manifest: everything but the list of files.

    Returns:
        The manifest as it was written.

    Raises:
        InputError: `out` has content that STAR did not write; it is left as it is. Or the folder has a link, or a file of
            somebody else.
    """
    # Otherwise the content behind a link would be published, and `chmod` would open the file it leads to.
    refuse_others_below(folder)
    # Before the files are hashed, because a change of the mode would count as a change of the file.
    make_readable_by_all(folder)
    listed = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / MANIFEST]
    digests = digests_of(listed)
    files = [
        FileEntry(file.relative_to(folder).as_posix(), file.stat().st_size, digests[file], _count_rows(file))
        for file in listed
    ]
    finished = Manifest(**{**vars(manifest), "files": files})
    # The manifest is written last, so a folder that has one is complete.
    write_json(folder / MANIFEST, asdict(finished))
    # It was checked before the work too, but somebody may have put files there since.
    refuse_foreign(out)
    _move(folder, out)
    remember_moved(folder, out)
    # After the renames, because a later attempt copies from the path in the note.
    if note := published_note(manifest.stage, manifest.fingerprint):
        write_note(note, out, fingerprint=manifest.fingerprint)
    return finished


def make_readable_by_all(folder: Path) -> None:
    """Gives all files mode 0644: weights are saved as 0600, which another user on a shared volume could not read.

    A read-only file gets 0444: it may be a hard link to a file of another result. Nobody else may write to a folder that
    is published, also where others share the unfinished work.
    """
    for path in (folder, *folder.rglob("*")):
        if path.is_file():
            mode = path.stat().st_mode
            if stat.S_IMODE(mode) != (readable := 0o644 & (mode | 0o444)):
                path.chmod(readable)
        elif shared_with() != "nobody":
            path.chmod(0o755 & path.stat().st_mode)


def finish_interrupted_publish(out: Path, *, stage: str, fingerprint: str) -> None:
    """Puts the complete result of this work at `out` if an earlier process was killed just before or after publishing.

    There are two such moments: between the renames, and after publishing but before the runner recorded the result.
    In the second one the next attempt has another output path (Kubeflow gives it one), and the result is copied from
    the path in the note.

    Raises:
        InputError: the note, or a folder on its way to or from `out`, is a link or belongs to somebody else.
    """
    incoming, note = incoming_folder(out), published_note(stage, fingerprint)
    refuse_others(incoming)
    refuse_other_owner(outgoing_folder(out))
    if note and note.is_file() and not is_finished(out, fingerprint=fingerprint):
        published = read_note(note, fingerprint=fingerprint)
        if published and is_finished(published, fingerprint=fingerprint):
            make_incoming(incoming)
            # A copy that is killed has no manifest yet, and `is_finished` below verifies every file before the rename.
            copy_listed_files(published, incoming, copy=shutil.copyfile)
    if is_finished(incoming, fingerprint=fingerprint):
        replace_folder(out, incoming)
        if note:
            # From now on this copy counts: the older one may be removed with its run.
            write_note(note, out, fingerprint=fingerprint)


def make_incoming(incoming: Path) -> None:
    """Makes the folder anew for a copy that will be renamed to its place. What a killed copy left is removed.

    Raises:
        InputError: what is there is a link or belongs to somebody else.
    """
    create_folder(incoming.parent)
    refuse_others(incoming)
    # It may have read-only files, which cannot be written again.
    shutil.rmtree(incoming, ignore_errors=True)
    # Fails if another user was quicker. With the mode of the umask, because it is about to be read by others.
    incoming.mkdir()


def copy_folder_atomically(folder: Path, out: Path) -> None:
    """Copies a folder to `out`, replacing what is there. The copy appears when it is complete."""
    incoming = incoming_folder(out)
    make_incoming(incoming)
    shutil.copytree(folder, incoming, dirs_exist_ok=True)
    replace_folder(out, incoming)


def replace_folder(out: Path, incoming: Path) -> None:
    """Renames `incoming`, a folder beside `out`, to `out`, and removes what was there."""
    outgoing = outgoing_folder(out)
    refuse_other_owner(outgoing)
    # A kill before the last line of an earlier publication left it. A rename onto it would fail.
    _remove(outgoing)
    # A folder cannot be renamed onto one with content, so the older result moves aside first.
    # A kill between the two renames leaves a complete `incoming`, which the next run of this work puts in place.
    if out.exists():
        out.rename(outgoing)
    incoming.rename(out)
    remember_moved(incoming, out)
    _remove(outgoing)


def _remove(folder: Path) -> None:
    # The user's `out` may have been a link. The folder that it leads to stays.
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _count_rows(file: Path) -> int | None:
    """The number of rows of a Parquet, Arrow or JSON-lines file; None for other files."""
    if file.suffix == ".parquet":
        from pyarrow.parquet import read_metadata

        return read_metadata(file).num_rows
    if file.suffix == ".arrow":
        import pyarrow as pa

        # Mapped into memory, so that the numbers of rows are read and not the rows.
        with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
            return sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
    if file.suffix == ".jsonl":
        with file.open("rb") as lines:
            return sum(1 for _ in lines)
    return None


def _move(folder: Path, out: Path) -> None:
    create_folder(out.parent)
    incoming = incoming_folder(out)
    # What lies there is incomplete or of other work.
    # `finish_interrupted_publish` has moved a complete result of this work to its place before.
    refuse_others(incoming)
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        folder.rename(incoming)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # $STAR_WORK is on another file system, where a rename is not possible.
        make_incoming(incoming)
        shutil.copytree(folder, incoming, dirs_exist_ok=True)
    replace_folder(out, incoming)
