"""Resolves an input that a team tracks with DVC in a git repository: `{dvc: PATH, repo: URL, rev: REV}`.

    seed_data: {dvc: data/tickets, repo: https://git.example.com/team-data, rev: v3}

becomes, when the configuration is loaded, what every other input is, with the commit that `v3` was then:

    {"path": "s3://team/store/files/md5/14/6f2f69cf....dir", "sha256": "0b6dd34c...", "files": 2,
     "dvc": {"path": "data/tickets", "repo": "https://git.example.com/team-data", "rev": "v3", "commit": "cb1c815b...",
             "md5": "146f2f69cf....dir"}}

The path is the object in the repository's remote, if that is on S3: pods read it, with neither DVC nor git. From a remote of
another kind the path is the copy in this home.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, TypeGuard

from pydantic import Field

from star.config.base import Section
from star.errors import InputError
from star.folders.s3_inputs import Choose

KEYS = ("dvc", "repo", "rev")


class DvcSource(Section):
    """Where an input came from: a path at a commit of a repository that DVC tracks.

    Attributes:
        path: from the repository's root.
        repo: address or folder of the git repository.
        rev: what the configuration names: a tag, a branch or a commit.
        commit: what `rev` was when the configuration was loaded.
        md5: DVC's, of the content; of a folder with `.dir` at the end.
    """

    path: str
    repo: str
    rev: str
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    md5: str = Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")

    def __str__(self) -> str:
        named = "" if self.rev == self.commit else f"{self.rev}, "
        return f"{self.path} of {self.repo} at {named}commit {self.commit[:12]}"


def names_dvc(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a setting is written as {dvc: ..., repo: ..., rev: ...}."""
    return isinstance(value, Mapping) and isinstance(value.get("dvc"), str)


def resolve_dvc(value: Mapping[str, Any], *, choose: Choose) -> dict[str, Any]:
    """Resolves the setting, fetches its content into the home, and returns the fields of an input.

    A folder has the field `files`, a file the field `name`.

    Raises:
        InputError: a key is missing or unknown, or the content cannot be had; the message says why.
    """
    from star.folders.dvc_inputs import copy_of, take_tracked

    if set(value) != set(KEYS) or not all(isinstance(text, str) and text for text in value.values()):
        raise InputError(
            "a DVC set has exactly the keys dvc (path in the repository), repo and rev (tag, branch or commit)"
        )
    path, repo, rev = (value[key] for key in KEYS)
    name = PurePosixPath(path).name
    tracked = take_tracked(path, repo=repo, rev=rev, choose=choose)
    source = DvcSource(path=path, repo=repo, rev=rev, commit=tracked.commit, md5=tracked.md5)
    kind = {"name": name} if tracked.files is None else {"files": tracked.files}
    place = tracked.url or str(copy_of(tracked, name=name))
    return {"path": place, "sha256": tracked.sha256, **kind, "dvc": source.model_dump()}
