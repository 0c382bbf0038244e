"""Makes the Python environment of the Berkeley harness on first use.

It is kept in the user's cache, under the digest of its requirements.

`python -m star.evaluation.bfcl.environment` makes it ahead of time (for an image, or a machine that will be offline)
and prints the path of its python.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from star.errors import InputError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
NEWEST_PYTHON = (3, 12)  # the harness pins numpy 1.26.4, which has no build for a newer one


def harness_python() -> Path:
    """The path of the harness's python. Makes its environment if it does not exist.

    Raises:
        InputError: the environment could not be made, because there is no suitable python or no package index.
    """
    from filelock import FileLock

    folder = _folder()
    python = folder / "bin" / "python"
    if _is_complete(folder):
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        # Another process may have made it while this one waited for the lock.
        if not _is_complete(folder):
            _make_environment(folder)
    return python


def find_environment() -> Path | None:
    """The folder of the harness's environment, if it was made."""
    folder = _folder()
    return folder if _is_complete(folder) else None


def _folder() -> Path:
    # In the folder's name, so that changed requirements get a new environment.
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    return cache_folder() / f"bfcl-{digest}"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/star, else ~/.cache/star."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "star"


def _is_complete(folder: Path) -> bool:
    return (folder / "complete").is_file() and (folder / "bin" / "python").exists()


def _make_environment(folder: Path) -> None:
    print(f"bfcl: making the harness's environment in {folder} (once, about 200 MB)", file=sys.stderr, flush=True)
    # What a killed attempt left: without the file `complete`, nothing of it can be trusted.
    shutil.rmtree(folder, ignore_errors=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    limits = ["--require-hashes", "--retries=1", "--timeout=20", "--requirement", str(REQUIREMENTS)]
    _run([_base_python(), "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "python"), *install, *limits])
    # Written last, so that a killed installation is made anew.
    (folder / "complete").touch()


def _base_python() -> str:
    if sys.version_info[:2] <= NEWEST_PYTHON:
        return sys.executable
    for name in ("python3.12", "python3.11"):
        if found := shutil.which(name):
            return found
    raise InputError(
        "the BFCL harness needs python 3.11 or 3.12 beside this one: install one of them, or leave out the suite bfcl"
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise InputError(
            f"the BFCL harness's environment could not be made ({reason}): it needs the package index once; "
            "connect and run again, or leave out the suite bfcl"
        )


if __name__ == "__main__":
    print(harness_python())
