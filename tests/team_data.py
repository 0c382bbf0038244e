"""Makes a team's repository: a git repository whose data sets DVC tracks, with its remote on an S3 server."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.s3_server import KEYS

AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Ann"), ("EMAIL", "ann@example.com"))
}


def row(number: int) -> dict:
    """A row of somebody's own: one request, and the call that answers it."""
    tool = {
        "name": "close_ticket",
        "description": "Close a ticket",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    }
    call = {"name": "close_ticket", "arguments": {"number": number}}
    messages = [
        {"role": "user", "content": f"Please close the ticket {number}"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    return {"id": f"ticket-{number}", "messages": messages, "tools": [tool], "licence": "own"}


def write_rows(file: Path, numbers: range) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row(number))}\n" for number in numbers))


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **AUTHOR}
    done = subprocess.run(["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> None:
    """Runs a command of DVC in this process, which saves a second each time."""
    from dvc.cli import main
    from dvc.repo.open_repo import clean_repos

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_NO_ANALYTICS", "1")
        try:
            assert main([*arguments, "--quiet"]) == 0
        finally:
            clean_repos()


def make_repository(folder: Path, *, remote: str, server: dict[str, str]) -> Path:
    """A repository with two revisions of data/tickets and of data/rows.jsonl, tagged v1 and v2, pushed to the remote.

    A third commit, tagged v3, was not pushed.
    """
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    dvc(folder, "init")
    dvc(folder, "remote", "add", "--default", "store", remote)
    if remote.startswith("s3:"):
        dvc(folder, "remote", "modify", "store", "endpointurl", server["AWS_ENDPOINT_URL"])
    (folder / "notes.txt").write_text("in git\n")
    for number in (1, 2, 3):
        write_rows(folder / "data" / "tickets" / "open.jsonl", range(number * 10))
        write_rows(folder / "data" / "tickets" / "old" / "closed.jsonl", range(100, 100 + number))
        write_rows(folder / "data" / "rows.jsonl", range(200, 200 + number * 10))
        dvc(folder, "add", "data/tickets", "data/rows.jsonl")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", f"Version {number}")
        git(folder, "tag", "--annotate", f"v{number}", "--message", f"Version {number}")
        if number < 3:
            dvc(folder, "push")
    return folder


def use_server(patch: pytest.MonkeyPatch, server: dict[str, str]) -> None:
    """Lets this process and those that it starts reach the server."""
    for name, value in {**KEYS, **server}.items():
        patch.setenv(name, value)
