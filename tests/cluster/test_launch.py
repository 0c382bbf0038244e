"""A KFP task that trains in several processes of its pod: the component starts them, and their result is that of one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from star.cluster.supervisor import ATTEMPT_LINE
from star.cluster.task_config import VARIABLE, config_for_environment, digest_for_task
from star.config.cluster import Retry
from star.config.experiment import Config
from star.folders.code_digest import code_digest
from star.folders.manifest import open_input
from star.stages import stage_named

# What KFP's executor does with a component, without KFP: call its function.
CALL = """
import json, sys
from types import SimpleNamespace
from star.components.{module} import {module} as component
given = json.loads(sys.argv[1])
folders = {{key: SimpleNamespace(path=path) for key, path in given["folders"].items()}}
metrics = SimpleNamespace(path=given["metrics"], log_metric=lambda key, value: None)
component.python_func(config_digest=given["config_digest"], code=given["code"], metrics=metrics, **folders)
"""


def component(
    stage: str, config: Config, out: Path, *, inputs: dict[str, Path], environment: dict[str, str]
) -> subprocess.Popen:
    """A process that runs the stage's KFP component."""
    output = {"refine-teacher": "teacher", "distill": "distilled", "refine": "refined"}[stage]
    sections = config_for_environment(config.slice(stage_named(stage).sections))
    given = {
        "config_digest": digest_for_task(sections),
        "code": code_digest(stage_named(stage).function),
        "folders": {**{key: str(folder) for key, folder in inputs.items()}, output: str(out)},
        "metrics": str(out.with_name("metrics.txt")),
    }
    command = [sys.executable, "-c", CALL.format(module=stage.replace("-", "_")), json.dumps(given)]
    environment = {"OMP_NUM_THREADS": "1", VARIABLE: sections} | environment
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def inputs_of(stage: str, finished: dict[str, Path]) -> dict[str, Path]:
    return {key: finished[source] for key, source in stage_named(stage).inputs.items()}


def curve(folder: Path, phase: str) -> list[dict]:
    return json.loads((folder / f"{phase}_curve.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_teacher_is_trained_by_all_processes_of_its_pod(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    inputs = inputs_of("refine-teacher", finished)
    process = component("refine-teacher", micro, out, inputs=inputs, environment={"STAR_PROCESSES": "2"})
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-3000:]
    assert open_input(out, stage="refine-teacher")
    assert json.loads((tmp_path / "metrics.txt").read_text())["prompts"] > 0
    # The few steps of the warm-up are those of one process to the last digits; the many after it drift apart.
    for two, one in zip(curve(out, "warmup"), curve(finished["refine-teacher"], "warmup"), strict=True):
        assert two["step"] == one["step"] and two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert curve(out, "sft")[-1]["loss"] == pytest.approx(curve(finished["refine-teacher"], "sft")[-1]["loss"], abs=0.3)


@pytest.mark.slow
def test_processes_that_got_sigterm_and_a_rank_that_is_killed_change_no_weight(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    distill = micro.distill.model_copy(update={"steps": 100, "save_steps": 100})
    config = micro.model_copy(update={"distill": distill})
    inputs, environment = inputs_of("distill", finished), {"STAR_PROCESSES": "2"}

    whole = component("distill", config, tmp_path / "whole" / "out", inputs=inputs, environment=environment)
    assert whole.wait(timeout=300) == 0, whole.stderr.read()[-3000:]

    interrupted = component("distill", config, tmp_path / "interrupted" / "out", inputs=inputs, environment=environment)
    began = next(line for line in interrupted.stderr if "distil the student (CKD): 0/100" in line)
    assert began
    interrupted.send_signal(signal.SIGTERM)
    _, log = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 143
    assert "attempt" not in log and "Traceback" not in log
    state = tmp_path / "interrupted" / ".out.partial" / "state"
    saved = [int(mark.parent.name.split("-")[1]) for mark in state.glob("ckd/checkpoint-*/complete")]
    assert saved and max(saved) < 100, log[-3000:]

    # The next pod goes on from there, and its supervisor after the loss of a rank.
    environment["STAR_RETRY"] = Retry(attempts=1, backoff_seconds=0).model_dump_json()
    resumed = component("distill", config, tmp_path / "interrupted" / "out", inputs=inputs, environment=environment)
    began = next(line for line in resumed.stderr if "distil the student (CKD):" in line)
    assert f"{max(saved)}/100" in began
    ranks = [child for child in psutil.Process(resumed.pid).children(recursive=True) if "star.cli" in child.cmdline()]
    next(rank for rank in ranks if rank.environ().get("RANK") == "1").kill()
    _, log = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, log[-3000:]
    ends = [(end["kind"], end["reason"]) for line in log.splitlines() if (end := ATTEMPT_LINE.fullmatch(line))]
    assert [kind for kind, _ in ends] == ["killed", "done"]
    assert ends[0][1].startswith("rank 1 was ended by SIGKILL")
    digests = {open_input(tmp_path / name / "out", stage="distill").digest for name in ("whole", "interrupted")}
    assert len(digests) == 1


def test_the_log_of_a_task_whose_rank_failed_ends_with_its_reason(micro: Config, tmp_path: Path) -> None:
    process = component(
        "distill", micro, tmp_path / "out", inputs={"topk": tmp_path / "none"}, environment={"STAR_PROCESSES": "2"}
    )
    _, log = process.communicate(timeout=120)
    assert process.returncode == 2
    *_, attempt, reason = log.splitlines()
    assert "attempt 1 of 1 (distill) ended after " in attempt and attempt.endswith(": input, no other attempt")
    assert reason.startswith(f"star: no folder at {tmp_path / 'none'}")
    assert "Traceback" not in log
