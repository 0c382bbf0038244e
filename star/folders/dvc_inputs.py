"""Finds what a git repository tracks with DVC at a revision: its commit, its bytes, verified, and its object in the remote.

    take_tracked("data/tickets", repo="https://git.example.com/team-data", rev="v3", choose=...)

The commit decides. Its `.dvc` file or dvc.lock names the md5 of the content, DVC finds the content in the repository's
remote, and what arrives is compared with that md5. From then on its sha256 counts, as for every other input.

    <home>/inputs/0b6dd34c.../            the fetched content (star/folders/s3_inputs.py)
    <home>/inputs/seen/91b1....json       what a path is at a commit: its sha256, md5 and object. A commit never changes.

Whoever reads the object of a remote on S3 later, a pod for example, needs neither DVC nor git (star/folders/dvc_remote.py).
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from star.digest_cache import digest_of_file
from star.errors import InputError
from star.folders.dvc_digest import dvc_digest
from star.folders.dvc_remote import md5_of_object
from star.folders.owners import create_in_home, create_private, write_own_file
from star.folders.s3_client import S3Folder, check_key, is_s3_url
from star.folders.s3_inputs import FOLDER, SEEN, Choose, digest_of_files, fetched_place, names_in, only_one
from star.hashing import digest_of
from star.home import home
from star.progress import Bar

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

COMMIT = re.compile(r"[0-9a-f]{40}")
GIT_SECONDS = 60  # for an answer about the revision


@dataclass(frozen=True)
class Tracked:
    """What a path is at a commit.

    Attributes:
        md5: of the content, as DVC has it; for a folder that of its list, with `.dir` at the end.
        sha256: of the content, as `Input` in star/config/files.py has it.
        files: number of files that count in a folder; None for a file.
        url: the object in a remote on S3; empty for a remote of another kind.
    """

    commit: str
    md5: str
    sha256: str
    files: int | None
    url: str


def take_tracked(path: str, *, repo: str, rev: str, choose: Choose) -> Tracked:
    """Finds what a path is at a revision, and fetches it into the home unless it is there.

    Args:
        path: of a file or folder that DVC tracks, from the repository's root.
        choose: the files of a folder that count for its sha256.
        repo: address or folder of the git repository.
        rev: tag, branch or commit.

    Raises:
        InputError: DVC or git is missing, there is no such repository, revision or tracked path, or the remote does not have the
            content; the message says which.
    """
    what = f"{path} at {rev} of {repo}"
    check_key(path, source=f"`dvc: {path}`")  # the copy has its name
    # An option, or a command, as which git would run it.
    if rev.startswith("-") or repo.startswith("-") or "::" in repo:
        raise InputError(f"{repo!r} at {rev!r} is no git repository and revision: neither starts with - or has ::")
    create_in_home(FOLDER)  # refuses one of another user, whose notes and copies could vouch for each other
    commit = rev if COMMIT.fullmatch(rev) else _ask_for_commit(repo, rev)
    known = _read_note(path, repo, commit) if commit else None
    if known and _has_copy(known, name=PurePosixPath(path).name, choose=choose):
        os.utime(fetched_place(known.sha256))  # `star clean` counts from the last use
        return known
    with _opened(repo, rev, what) as fs, Bar(f"fetch {what}", 1) as bar:
        found = _fetch(fs, path, repo=repo, what=what, choose=choose)
        bar.advance()
    create_in_home(f"{FOLDER}/{SEEN}")
    write_own_file(_note(path, repo, found.commit), json.dumps(asdict(found)))
    return found


def copy_of(tracked: Tracked, *, name: str) -> Path:
    """Where the fetched content lies."""
    return fetched_place(tracked.sha256) / name if tracked.files is None else fetched_place(tracked.sha256)


def _has_copy(tracked: Tracked, *, name: str, choose: Choose) -> bool:
    copy = copy_of(tracked, name=name)
    return copy.exists() and _sha256_of(copy, choose) == (tracked.sha256, tracked.files)


def _sha256_of(content: Path, choose: Choose) -> tuple[str, int | None]:
    """The sha256 of a file and None, or that of a folder and the number of its files that count."""
    if content.is_file():
        return digest_of_file(content), None
    names = choose(names_in(content), lambda name: (content / name).read_bytes())
    return digest_of_files(content, names, trust="own"), len(names)


def _ask_for_commit(repo: str, rev: str) -> str | None:
    """Asks the repository which commit a tag or branch is; None for anything else, such as a part of a commit's number."""
    patterns = [f"refs/tags/{rev}^{{}}", f"refs/tags/{rev}", f"refs/heads/{rev}"]  # an annotated tag is not its commit
    command = ["git", "ls-remote", "--", repo, *patterns]
    # A question for a password would wait for an answer where nobody sees it.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS, env=environment
        )
    except FileNotFoundError:
        raise InputError("git is missing, which reads the repository of a DVC set: install it") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{repo} does not answer within {GIT_SECONDS} s: check the address and the network") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or "").strip().splitlines() or ["no reason given"]
        raise InputError(
            f"{repo} cannot be read by git ({reason[0]}): check `repo`, and that this user may read it without being asked"
        ) from None
    commits = {name: commit for commit, _, name in (line.partition("\t") for line in answer.stdout.splitlines())}
    return next((commits[pattern] for pattern in patterns if pattern in commits), None)


@contextmanager
def _opened(repo: str, rev: str, what: str) -> "Iterator[DVCFileSystem]":
    """DVC's view of the repository at the revision; inside the block its errors become an InputError with the cure."""
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import OutputNotFoundError
        from dvc.repo.open_repo import clean_repos
        from dvc.scm import CloneError, RevError
    except ImportError as error:
        raise InputError(f"{what} needs DVC, which is not installed: pip install 'star-distill[dvc]'") from error
    try:
        with _own_environment():
            yield DVCFileSystem(repo, rev=rev, subrepos=True)
    except InputError:
        raise
    except RevError as error:
        raise InputError(f"{repo} has no revision {rev}: give a tag, a branch or a commit as `rev`") from error
    except CloneError as error:
        raise InputError(
            f"{repo} cannot be cloned ({_reason(error)}): check `repo` and the right to read it"
        ) from error
    except OutputNotFoundError as error:
        raise InputError(f"{what}: DVC tracks no such path there: check `dvc`, and run `dvc add` there") from error
    # Git's, the store's and the system's own errors pass through DVC as they are.
    except Exception as error:
        raise InputError(
            f"{what} cannot be fetched ({type(error).__name__}: {_reason(error)}): check `repo`, the keys of its DVC remote, and "
            "that whoever made this revision ran `dvc push`"
        ) from error
    finally:
        # DVC keeps its clones in the folder for temporary files until it is asked to remove them.
        clean_repos()


@contextmanager
def _own_environment() -> Iterator[None]:
    """Inside the block no repository decides which files of this machine are read as a configuration of AWS or as DVC's own notes.

    Its `.dvc/config` may name both. A configuration of AWS can name a program to be run, and the notes are pickles.
    """
    before = dict(os.environ)
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    os.environ["GIT_TERMINAL_PROMPT"] = "0"  # DVC's git client asks for a user and password, too
    # DVC takes a repository's files only where these are not set, and would leave them set.
    os.environ.setdefault("AWS_CONFIG_FILE", str(Path("~/.aws/config").expanduser()))
    os.environ.setdefault("AWS_SHARED_CREDENTIALS_FILE", str(Path("~/.aws/credentials").expanduser()))
    with TemporaryDirectory(prefix="star-dvc-") as notes:
        os.environ["DVC_SITE_CACHE_DIR"] = notes
        try:
            yield
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)


def _fetch(fs: "DVCFileSystem", path: str, *, repo: str, what: str, choose: Choose) -> Tracked:
    """Fetches the content into the home and compares it with DVC's md5."""
    md5, name = _md5_at(fs, path, what), PurePosixPath(path).name
    key = digest_of(["dvc", md5, name])
    with only_one(key), _emptied(home() / FOLDER / f".{key}.partial") as partial:
        fetched = partial / name
        fs.get(path, str(fetched), recursive=md5.endswith(".dir"))
        if dvc_digest(fetched) != md5:
            raise InputError(
                f"{what} arrived with other bytes than DVC's md5 says: the remote is damaged, push it again"
            )
        commit = str(fs.repo.get_rev())
        found = Tracked(commit, md5, *_sha256_of(fetched, choose), _url(path, repo, commit))
        if not _has_copy(found, name=name, choose=choose):
            target = copy_of(found, name=name)
            create_private(target.parent)
            if target.is_dir():
                shutil.rmtree(target)
            fetched.replace(target)
    return found


def _md5_at(fs: "DVCFileSystem", path: str, what: str) -> str:
    """DVC's md5 of a path, from the `.dvc` file or dvc.lock of the commit."""
    try:
        entry = fs.info(path).get("dvc_info", {}).get("entry")
    except FileNotFoundError:
        raise InputError(f"{what}: there is no such path: check `dvc`, which starts at the repository's root") from None
    if entry is None:
        raise InputError(
            f"{what} is not tracked by DVC: run `dvc add` there, or clone the repository and give the path of your copy"
        )
    if entry.hash_info is None or entry.hash_info.name != "md5":
        raise InputError(
            f"{what} has no md5 of DVC 3, by which it is verified: run `dvc add` again with DVC 3, and push"
        )
    return str(entry.hash_info.value)


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """An empty folder, which is removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _url(path: str, repo: str, commit: str) -> str:
    """The object in the repository's default remote, if that is one on S3 in which objects have their md5 as their name."""
    from dvc.api import get_url
    from dvc.config import NoRemoteError

    with suppress(NoRemoteError):  # the content came from the repository's own cache
        # At the commit, which the clone has: for a tag or branch DVC would ask the repository once more.
        url = get_url(path, repo=repo, rev=commit)
        if is_s3_url(url) and md5_of_object(S3Folder.parse(url)):
            return url
    return ""


def _note(path: str, repo: str, commit: str) -> Path:
    return home() / FOLDER / SEEN / f"{digest_of(['dvc', repo, commit, path])}.json"


def _read_note(path: str, repo: str, commit: str) -> Tracked | None:
    try:
        return Tracked(**json.loads(_note(path, repo, commit).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
