"""The commands of docs/data.md on versions of a set, run as they stand there, on a real S3 server and by two people."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from star.cli.main import app
from star.config.load import load_config
from star.folders.dvc_digest import dvc_digest
from star.folders.manifest import read_manifest
from star.registry.promotion.promote_and_rollback import promote
from star.stages import synthesize
from tests.clean.conftest import CHAIN, make_result, register_run
from tests.team_data import use_server, write_rows

pytestmark = pytest.mark.slow
pytest.importorskip("dvc", reason="needs dvc: pip install 'star-distill[dvc]'")
ROOT = Path(__file__).resolve().parents[2]
SMALL = {"generated_rows": 30, "heldout_rows": 4}


def blocks(language: str) -> list[str]:
    """The blocks of the page's section, in their order."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("## Versions that a team shares")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


class Person:
    """Somebody with a machine: a home, and a shell in which the address of the page leads to a folder."""

    def __init__(self, home: Path, hub: Path, server: dict[str, str]) -> None:
        self.home, self.here = home, home
        (home / "star").mkdir(parents=True)
        shutil.copy(ROOT / "dvc.yaml", home / "star")
        settings = [
            '[url "{hub}/"]',
            "insteadOf = https://git.example.com/",
            "[user]",
            "name = Ann",
            "email = ann@example.com",
        ]
        (home / ".gitconfig").write_text("\n".join([*settings, "[init]", "defaultBranch = main", ""]).format(hub=hub))
        self.environment = {
            **os.environ,
            **server,
            "HOME": str(home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "DVC_NO_ANALYTICS": "1",
            "COLUMNS": "300",
        }

    def run(self, commands: str) -> str:
        """Runs a block in the folder in which the last one ended."""
        script = f"set -e\n{commands}\npwd > {self.home}/here\n"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.here, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        self.here = Path((self.home / "here").read_text().strip())
        return done.stdout + done.stderr


def train(profile: Path, home: Path) -> None:
    """In place of `star run`, which takes minutes: its data set, and a champion of small files whose lineage leads to it."""
    folders = {"synthesize": home / "latest" / "synthesize"}
    synthesize(load_config(profile), out=folders["synthesize"])
    for stage, sources in list(CHAIN.items())[1:]:
        inputs = {source: folders[source] for source in sources}
        folders[stage] = make_result(stage, home / "latest" / stage, content="x", inputs=inputs)
    number = register_run(folders, home / "publish")
    promote("star", number)


def star(command: str) -> str:
    """Runs a line of the page, `star ...`, and returns what it prints."""
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_page_from_a_first_version_to_a_restored_set(
    s3_server: dict[str, str],
    home: Path,
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use_server(environment, s3_server)
    add, get, run, compile_, back, share, take = blocks("bash")
    hub = tmp_path / "hub"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(hub / "team-data")], check=True)
    ann, bob = (Person(tmp_path / name, hub, s3_server) for name in ("ann", "bob"))
    write_rows(ann.home / "tickets" / "open.jsonl", range(20))
    write_rows(ann.home / "tickets" / "old" / "closed.jsonl", range(100, 103))
    ann.run(add)
    bob.run(get)
    commit = bob.run("git rev-parse v1").split()[0]
    assert dvc_digest(bob.here / "data" / "tickets") == dvc_digest(ann.home / "tickets")

    # The page's profile, with fewer rows.
    [written] = blocks("yaml")
    profile = yaml.safe_load(written)
    profile["data"] |= SMALL
    (ann.here / "tickets.yaml").write_text(json.dumps(profile))
    ann.environment["STAR_HOME"] = str(home)
    environment.setenv("GIT_CONFIG_GLOBAL", str(ann.home / ".gitconfig"))
    assert run == "star run --config tickets.yaml\n"
    train(ann.here / "tickets.yaml", home)
    made = read_manifest(home / "latest" / "synthesize")
    seed = made.origin["inputs"]["data.seed_data"]
    assert (seed["dvc"]["rev"], seed["dvc"]["commit"]) == ("v1", commit)
    ann.run(compile_)
    assert seed["path"] in (ann.here / "tickets-pipeline.yaml").read_text()

    # Anybody who reaches the registry and the store. In this process, which has MLflow loaded.
    shutil.rmtree(home / "inputs")
    environment.chdir(bob.here)
    environment.setenv("COLUMNS", "300")
    said = "".join(star(line) for line in back.splitlines())
    source = f"data/tickets of https://git.example.com/team-data at v1, commit {commit[:12]}"
    assert f"data.seed_data {seed['sha256'][:12]} not checked {source}; no copy here" in said
    assert f"data.seed_data: back/tickets, sha256 {seed['sha256'][:12]}, from {source}" in said
    assert dvc_digest(bob.here / "back" / "tickets") == dvc_digest(ann.home / "tickets")

    ann.run(share)
    bob.environment["STAR_HOME"] = str(bob.here / "runs")
    assert "synthesize: already done, in runs/dvc/data" in bob.run(take)
    assert read_manifest(bob.here / "runs" / "dvc" / "data").digest == made.digest
