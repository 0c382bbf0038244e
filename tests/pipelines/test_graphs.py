"""The three runners have the same graph: star.stages.STAGES, the compiled KFP pipeline, dvc.yaml."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from star.cluster.task_config import VARIABLE, digest_for_task
from star.config.load import load_config
from star.folders.code_digest import code_digest
from star.pipelines.star_pipeline import compile_pipeline
from star.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
INPUTS = {stage.name: stage.inputs for stage in STAGES}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict:
    file = tmp_path_factory.mktemp("compiled") / "star.yaml"
    compile_pipeline(load_config("tiny"), file, image="registry.example/star-python:1")
    return next(yaml.safe_load_all(file.read_text()))


@pytest.fixture(scope="module")
def tasks(compiled: dict) -> dict[str, dict]:
    """The tasks of the stages. test_compiled.py checks the other tasks that a cluster has."""
    return {
        name: task
        for name, task in compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"].items()
        if name in INPUTS
    }


@pytest.fixture(scope="module")
def dvc() -> dict:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


def test_kfp_has_the_same_stages_and_inputs(tasks: dict) -> None:
    graph = {}
    for name, task in tasks.items():
        artifacts = task.get("inputs", {}).get("artifacts", {})
        graph[name] = {key: source["taskOutputArtifact"]["producerTask"] for key, source in artifacts.items()}
    assert graph == INPUTS


def test_kfp_passes_every_stage_its_own_sections_and_code_digest(tasks: dict, compiled: dict) -> None:
    """The sections by the environment; in the arguments, which a command line shows, are digests only."""
    config = load_config("tiny")
    for stage in STAGES:
        parameters = tasks[stage.name]["inputs"]["parameters"]
        given = {name: value["runtimeValue"]["constant"] for name, value in parameters.items()}
        executor = compiled["components"][tasks[stage.name]["componentRef"]["name"]]["executorLabel"]
        variables = compiled["deploymentSpec"]["executors"][executor]["container"]["env"]
        [sections] = [entry["value"] for entry in variables if entry["name"] == VARIABLE]
        assert json.loads(sections) == json.loads(config.with_places(stage.sections))
        assert set(json.loads(sections)) == set(stage.sections)
        assert given == {"config_digest": digest_for_task(sections), "code": code_digest(stage.function)}


def test_kfp_shows_the_report_and_the_gate(compiled: dict) -> None:
    shown = {
        name: {artifact["artifactType"]["schemaTitle"] for artifact in part["outputDefinitions"]["artifacts"].values()}
        for name, part in compiled["components"].items()
        if "artifacts" in part.get("outputDefinitions", {})
    }
    assert {"system.HTML", "system.Markdown", "system.Metrics"} <= shown["comp-evaluate"]
    assert {"system.Markdown", "system.Metrics"} <= shown["comp-register"]


def test_dvc_has_the_same_stages_and_inputs(dvc: dict) -> None:
    producer = {next(iter(stage["outs"][0])): name for name, stage in dvc["stages"].items()}
    graph = {}
    for name, stage in dvc["stages"].items():
        words = shlex.split(stage["cmd"])
        assert words[:2] == ["star", name]
        options = dict(zip(words[2::2], words[3::2], strict=True))
        assert options.pop("--out") in stage["outs"][0]
        assert options.pop("--config") == "${config}"
        graph[name] = {option.removeprefix("--"): producer[folder] for option, folder in options.items()}
        assert set(options.values()) == set(stage.get("deps", []))
    assert graph == INPUTS


def test_dvc_starts_every_stage_and_keeps_outputs_for_it(dvc: dict) -> None:
    for stage in dvc["stages"].values():
        assert stage["always_changed"] is True
        assert all(options == {"persist": True} for out in stage["outs"] for options in out.values())


def test_compiled_yaml_contains_no_secret_and_no_local_path(compiled: dict) -> None:
    text = json.dumps(compiled)
    assert str(ROOT) not in text
    assert not re.search(r"(?i)password|secret_key|token\"\s*:", text)
