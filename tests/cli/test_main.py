"""The command line as a user meets it: exit status, one clear line, help."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from star.cli.main import app
from star.stages import STAGES

MICRO = Path(__file__).parents[1] / "micro.yaml"


def star(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "star.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)


def test_help_names_every_stage_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = star("--help", cwd=tmp_path)
    assert done.returncode == 0
    for stage in STAGES:
        assert stage.name in done.stdout
    code = "import sys, star.cli.main; print([name for name in ('torch', 'transformers', 'mlflow', 'kfp') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES] + ["run", "call", "promote", "compare"])
def test_every_command_shows_an_example(stage: str, tmp_path: Path) -> None:
    assert f"star {stage}" in star(stage, "--help", cwd=tmp_path, TERMINAL_WIDTH="200", COLUMNS="200").stdout


def commands(group: Any, path: str) -> Iterator[tuple[str, str]]:
    """(name as the user types it, help) of every command below a group."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command.help


def test_every_command_has_an_example_of_itself() -> None:
    without = [name for name, text in commands(typer.main.get_command(app), "star") if f"`{name}" not in text]
    assert without == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("run", "--config", "nothing.yaml"), "nothing.yaml"),
        (("run", "--config", "wrong.yaml"), "distil"),
        (("run", "--seed-data", "nothing.jsonl"), "nothing.jsonl"),
        (("synthesize", "--config", MICRO, "--out", "foreign"), "foreign"),
        (("rollout", "--config", MICRO, "--data", "foreign", "--teacher", "foreign", "--out", "new"), "foreign"),
        (("call", "hello", "--tools", "nothing.json"), "nothing.json"),
        (("call", "hello", "--tools", "tools.json", "--model", "no/where"), "no/where"),
        (("call", "hello", "--tools", "tools.json"), "star run"),
        (("models",), "star run"),
        (("promote", "3"), "star run"),
        (("evaluate", "--out", "new"), "--teacher"),
        (("evaluate", "--model", "./foreign", "--suite", "heldout"), "--data"),
        (("evaluate", "--model", "foreign", "--suite", "poetry"), "--suite"),
        (("evaluate", "--model", "foreign", "--shard", "1/3"), "--shard is of the stage"),
        (("evaluate", "--model", "foreign", "--suite", "acebench"), "checkout of ACEBench"),
        (("evaluate", "--model", "no/such/folder", "--suite", "bfcl"), "no/such/folder"),
        (("compare", "foreign", "nothing"), "foreign"),
        (("pipeline", "compile", "--config", "nothing.yaml", "--output", "x.yaml"), "nothing.yaml"),
    ],
)
def test_a_fault_of_the_user_is_one_line_and_exit_2(arguments: tuple, named: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("distil: {steps: 3}\n")
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "ping", "description": "", "parameters": {}}]))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    done = star(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("star: ")]
    assert named in line
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.txt"]


def test_call_answers_from_a_model_folder(finished: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "ping", "description": "", "parameters": {}}]))
    done = star("call", "ping", "--tools", "tools.json", "--model", finished["refine-teacher"], cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    if done.returncode == 1:
        assert "breaks the format" in done.stderr
    else:
        assert done.stdout.strip()


def test_doctor_checks_this_machine(tmp_path: Path) -> None:
    done = star("doctor", "--config", "tiny", cwd=tmp_path)
    assert "MLflow" in done.stdout
    assert done.returncode in (0, 2)
    assert ("FAIL" in done.stdout) == (done.returncode == 2)


@pytest.mark.parametrize("profile", ["tiny", "qwen3-0.6b"])
def test_profiles_compile(profile: str, tmp_path: Path) -> None:
    done = star("pipeline", "compile", "--config", profile, "--output", "star.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "star.yaml").read_text()
    assert ("nvidia.com/gpu" in text) == (profile != "tiny")


def test_a_compiled_pipeline_says_what_it_cannot_hold(tmp_path: Path) -> None:
    """The account of its runs, and an image where none was named. A submitted one needs its image."""
    from typer.testing import CliRunner

    profile = tmp_path / "mine.yaml"
    profile.write_text("extends: tiny\ncluster: {service_account: team}\n")
    output = str(tmp_path / "star.yaml")
    done = CliRunner().invoke(app, ["pipeline", "compile", "--config", str(profile), "--output", output])
    assert "star-python:latest, a placeholder that no node can pull" in done.stderr
    assert "chooses the service account: give team" in done.stderr
    refused = CliRunner().invoke(app, ["pipeline", "submit", "--config", str(profile)])
    assert refused.exit_code == 2 and "Missing option '--image'" in refused.stderr
