"""Closes the home and unfinished work to other users, and refuses links and files of others in their place.

STAR_HOME, STAR_WORK and the folder that `--out` lies in may be open to others, such as /tmp or a volume of a team. The
names of unfinished work can be guessed, because a killed run must find it again, so somebody can put a link or a folder
there first. STAR_SHARED_WITH says who may go on with the work of this user:

    STAR_SHARED_WITH    new folders have mode    what is taken
    nobody (default)    0700                     what belongs to this user
    group               2770                     also what belongs to a group of this user
    everyone            0777                     also what belongs to anybody

A link is refused in each case. Published folders have the mode of the umask: their readers verify them by their manifest.

Some file systems (CIFS, FUSE, NFS with all_squash) show one owner for all files. There a new file of this process shows
that owner too, and nothing is refused.
"""

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp, mkstemp

from star.errors import InputError
from star.home import home

VARIABLE = "STAR_SHARED_WITH"
FOLDER_MODES = {"nobody": 0o700, "group": 0o2770, "everyone": 0o777}


def shared_with() -> str:
    """Returns nobody, group or everyone: who may go on with the work of this user.

    Raises:
        InputError: STAR_SHARED_WITH has another value.
    """
    value = os.environ.get(VARIABLE) or "nobody"
    if value not in FOLDER_MODES:
        raise InputError(f"{VARIABLE} is {value[:40]!r}: set it to one of {', '.join(FOLDER_MODES)}, or unset it")
    return value


def file_mode() -> int:
    """The mode of a file that those may use who share the work, such as a lock: 0600, 0660 or 0666."""
    return FOLDER_MODES[shared_with()] & 0o666


@contextlib.contextmanager
def umask_for_sharing() -> Iterator[None]:
    """Inside the block new files have the mode that those need who share the work. Without sharing nothing changes."""
    mode = FOLDER_MODES[shared_with()]
    if shared_with() == "nobody":
        yield
        return
    before = os.umask(0o077)  # the old one is only known by setting another
    os.umask(before & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def create_folder(folder: Path) -> None:
    """Creates a folder and its parents with the mode of the umask. The home among them is closed to others."""
    if folder.resolve().is_relative_to(home()):
        create_home()
    folder.mkdir(parents=True, exist_ok=True)


def create_home() -> None:
    """Creates the home, closed to those who do not share the work. One that exists keeps its mode.

    Raises:
        InputError: it belongs to another user. Root's is taken, because a mounted volume often belongs to root.
    """
    _make(home())
    status = home().stat()
    if status.st_uid:
        _refuse_owner(status, home())


def create_private(folder: Path) -> None:
    """Creates a folder and its parents, which only those may enter who share the work. What exists keeps its mode.

    Raises:
        InputError: what is there is a link or belongs to somebody else.
    """
    if folder.resolve().is_relative_to(home()):
        create_home()
    for missing in reversed([path for path in (folder, *folder.parents) if not path.is_dir()]):
        _make(missing)
    refuse_others(folder)


def create_in_home(name: str) -> Path:
    """Creates a folder of the home with `create_private` and returns it. The home may be older and open to others."""
    folder = home() / name
    create_private(folder)
    return folder


def create_private_file(file: Path) -> None:
    """Creates an empty file that only those may read who share the work. A file that exists is left as it is."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, file_mode()))


def close_to_others(folder: Path) -> None:
    """Takes away the rights of others on a folder of this user that an older version or another umask left open."""
    status = folder.lstat()
    if shared_with() == "nobody" and status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
        folder.chmod(0o700)


def is_own(path: Path) -> bool:
    """Whether the path exists, is no link, and belongs to this user or to those who share the work."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(status.st_mode) and _is_trusted(status, path)


def refuse_others(path: Path) -> None:
    """Raises InputError if the path is a link or belongs to somebody who does not share the work. Nothing may be there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        raise InputError(f"{path} is a link, made by {_name_of(status.st_uid)}, where STAR makes none: remove it")
    _refuse_owner(status, path)


def refuse_other_owner(folder: Path) -> None:
    """`refuse_others` for a folder that the user named: it may be a link that belongs to this user."""
    for read in (folder.lstat, folder.stat):
        try:
            _refuse_owner(read(), folder)
        except FileNotFoundError:
            return


def refuse_others_below(folder: Path) -> None:
    """`refuse_others` for a folder and all that lies in it. Devices, sockets and pipes are refused too.

    Raises:
        InputError: it names the first such path.
    """
    refuse_others(folder)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            refuse_others(path)
            # Reading a pipe would wait for ever.
            if not (path.is_file() or path.is_dir()):
                raise InputError(f"{path} is neither a file nor a folder, and STAR made no such thing: remove it")


def read_own_file(file: Path) -> str | None:
    """Reads a file of a folder that others may write to; None if there is none.

    Raises:
        InputError: it is a link, no file, or belongs to somebody else.
    """
    refuse_others(file)
    try:
        # Another process may put a link or a pipe there after the check.
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as content:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{file} is no file: remove it")
        _refuse_owner(status, file)
        return content.read()


def write_own_file(file: Path, text: str) -> None:
    """Writes a file completely or not at all. A link that lies there is replaced, and not followed."""
    descriptor, temporary = mkstemp(prefix=f".{file.name}-", dir=file.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as content:
        os.fchmod(descriptor, file_mode())
        content.write(text)
    Path(temporary).replace(file)


def own_part_of(root: Path) -> Path:
    """Returns `root`, or a folder of this user in it if others can write to `root` and nobody shares the work.

    Two users of one folder would otherwise find each other's unfinished work under the same name, because equal work
    has equal names. The folder is `user-<uid>`; if somebody else took that name, `user-<uid>-` and random characters.
    """
    if shared_with() != "nobody" or not root.is_dir() or not _others_can_write(root):
        return root
    first = root / f"user-{os.geteuid()}"
    try:
        first.mkdir(0o700)
    except FileExistsError:
        pass
    except OSError:
        return root  # nothing can be written there; the caller's error says so
    for folder in (first, *sorted(root.glob(f"{first.name}-*"))):
        if folder.is_dir() and is_own(folder):
            return folder
    return Path(mkdtemp(prefix=f"{first.name}-", dir=root))


def _others_can_write(root: Path) -> bool:
    status = root.stat()
    return not _is_trusted(status, root) or bool(stat.S_IMODE(status.st_mode) & 0o022)


def _make(folder: Path) -> None:
    mode = FOLDER_MODES[shared_with()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Fails if anything is there, also a link to nowhere.
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode & 0o777)
        if mode != 0o700:
            folder.chmod(mode)  # mkdir takes away what the umask says


def _is_trusted(status: os.stat_result, path: Path) -> bool:
    if status.st_uid == os.geteuid():
        return True
    sharing = shared_with()
    if sharing == "group":
        return status.st_gid in (os.getegid(), *os.getgroups())
    return sharing == "everyone" or status.st_uid == _owner_of_new_files(path.parent)


def _owner_of_new_files(folder: Path) -> int:
    """The owner that the folder's file system shows for a new file of this process."""
    try:
        # By its descriptor: another user may put something else at the name.
        with TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return os.geteuid()


def _refuse_owner(status: os.stat_result, path: Path) -> None:
    if not _is_trusted(status, path):
        raise InputError(
            f"{path} belongs to {_name_of(status.st_uid)}, and this is {_name_of(os.geteuid())}: move it away, or choose a folder "
            f"that only you can write to (--out, STAR_HOME, STAR_WORK); {VARIABLE} says who may share unfinished work"
        )


def _name_of(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
