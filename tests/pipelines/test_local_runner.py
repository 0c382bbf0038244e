"""`star run` from end to end with real parts: killed, resumed, cached, changed. `dvc repro` gives the same metrics."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from star.folders.manifest import read_manifest
from star.stages import STAGES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "tests" / "micro.yaml"
DVC_FOLDERS = ("data", "teacher", "rollouts", "topk", "distilled", "refined", "evaluation", "registration")
TIMED = ("seconds", "tokens_per_second", "latency")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "STAR_HOME": str(place / "runs"), "COLUMNS": "120"}


def star(place: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "star.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True)


def ran(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("time ")]
    return line.split("stages run: ")[1].split(", ")


def metrics(folder: Path) -> dict[str, float]:
    values = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in values.items() if not key.endswith(TIMED)}


def started(place: Path, *, until: str) -> subprocess.Popen:
    """Starts a run of the micro profile and returns once a file matches the pattern."""
    command = [sys.executable, "-m", "star.cli", "run", "--config", str(MICRO)]
    process = subprocess.Popen(
        command, cwd=place, env=environment(place), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 600
    while not list((place / "runs").glob(until)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def test_sigterm_ends_the_run_and_its_stage(place: Path) -> None:
    process = started(place, until="work/refine-teacher-*/state/warmup/checkpoint-2/complete")
    [stage] = psutil.Process(process.pid).children()
    # Others can read the arguments of a process, so no setting is among them.
    assert not [one for one in (stage, *stage.children(recursive=True)) if "vocab_size" in " ".join(one.cmdline())]
    assert "vocab_size" in stage.environ()["STAR_CONFIG"]
    process.terminate()
    assert process.wait(timeout=30) == 143
    assert not stage.is_running()


def test_a_killed_run_resumes(place: Path, finished: dict[str, Path]) -> None:
    process = started(place, until="work/distill-*/state/ckd/checkpoint-2/complete")
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = star(place, "run", "--config", MICRO)
    # The killed stage may just have finished. The stages before it do not run again.
    assert ran(done) in (["distill", "refine", "evaluate", "register"], ["refine", "evaluate", "register"])
    for stage in STAGES[:6]:
        assert (
            read_manifest(place / "runs" / "latest" / stage.name).digest == read_manifest(finished[stage.name]).digest
        )
    assert "is the champion" in done.stdout
    assert {path.suffix for path in (place / "runs" / "work").iterdir()} == {".done"}


def test_a_second_run_recomputes_nothing(place: Path) -> None:
    began = time.monotonic()
    done = star(place, "run", "--config", MICRO)
    assert ran(done) == ["none"]
    assert all(f"{stage.name:<16} already done" in done.stderr for stage in STAGES)
    assert "log  " not in done.stdout  # no process was started, so none wrote one
    assert time.monotonic() - began < 60
    listed = star(place, "models")
    assert listed.returncode == 0 and "champion" in listed.stdout


def dvc_clone(folder: Path) -> Callable[..., str]:
    """Makes the folder a checkout with the micro profile; returns a function that runs dvc there and returns its output."""
    dvc = Path(sys.executable).with_name("dvc")
    if not dvc.exists():
        pytest.skip("needs dvc: pip install 'star-distill[dvc]'")
    shutil.copy(ROOT / "dvc.yaml", folder)
    for name in ("configs", "star"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    micro = MICRO.read_text().replace("../configs/tiny.yaml", "tiny.yaml")
    (folder / "configs" / "micro.yaml").write_text(micro)
    (folder / "params.yaml").write_text("config: configs/micro.yaml\n")
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache"))
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    path = f"{dvc.parent}{os.pathsep}{os.environ['PATH']}"
    bin_first = {**environment(folder), "PATH": path, "DVC_NO_ANALYTICS": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run([dvc, *arguments], cwd=folder, env=bin_first, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_dvc_and_the_runner_take_each_others_results(place: Path) -> None:
    dvc = dvc_clone(place)
    assert dvc("repro").count("already done, taken from runs/pipeline/") == len(STAGES)
    of_runner = [read_manifest(place / "runs" / "latest" / stage.name) for stage in STAGES]
    assert [read_manifest(place / "runs" / "dvc" / folder) for folder in DVC_FOLDERS] == of_runner
    lock = (place / "dvc.lock").read_bytes()
    assert dvc("repro").count("already done, in runs/dvc/") == len(STAGES)
    assert (place / "dvc.lock").read_bytes() == lock
    assert "refined_exact_match" in dvc("metrics", "show")
    # The other way round: as if the local runner had never run here.
    for name in ("pipeline", "cache", "latest", "work"):
        shutil.rmtree(place / "runs" / name)
    done = star(place, "run", "--config", MICRO)
    assert ran(done) == ["none"]
    assert done.stderr.count("already done, taken from runs/dvc/") == len(STAGES)
    assert [read_manifest(place / "runs" / "latest" / stage.name) for stage in STAGES] == of_runner


def test_a_changed_setting_reruns_its_stage_and_the_following_ones(place: Path) -> None:
    changed = place / "changed.yaml"
    changed.write_text(f"extends: {MICRO}\nevaluate: {{samples: 4}}\n")
    assert ran(star(place, "run", "--config", changed)) == ["evaluate", "register"]
    evaluation = json.loads((place / "runs" / "latest" / "evaluate" / "evaluation.json").read_text())
    assert "pass_at_8" not in evaluation["models"][0]["scores"]


def test_a_damaged_result_is_reported_and_computed_again(place: Path) -> None:
    changed = place / "once_more.yaml"
    changed.write_text(f"extends: {MICRO}\nevaluate: {{samples: 2}}\n")
    folder = (place / "runs" / "latest" / "distill").resolve()
    weights = folder / "model.safetensors"
    before = read_manifest(folder).digest
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    done = star(place, "run", "--config", changed)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"star: evaluate: {weights} is missing or was changed since `star distill` wrote it" in done.stderr
    assert f"delete {folder} and run the stage again" in done.stderr
    # With the copies that DVC or another run has, of which the stage would take one.
    for copy in list((place / "runs").rglob("distilled")):
        shutil.rmtree(copy)
    assert "distill" in ran(star(place, "run", "--config", changed))
    assert read_manifest(place / "runs" / "latest" / "distill").digest == before


def test_a_failed_stage_is_reported_in_one_line(place: Path) -> None:
    broken = place / "broken.yaml"
    broken.write_text(f"extends: {MICRO}\nmax_prompt_tokens: 16\n")
    done = star(place, "run", "--config", broken)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "star: refine-teacher: all 108 prompts are longer than max_prompt_tokens = 16: raise it" in done.stderr


def test_dvc_asks_the_stage_whether_a_named_file_changed(tmp_path: Path) -> None:
    dvc, tools = dvc_clone(tmp_path), tmp_path / "elsewhere" / "tools.json"
    tools.parent.mkdir()
    shutil.copy(ROOT / "configs" / "travel.json", tools)
    profile = tmp_path / "configs" / "micro.yaml"
    profile.write_text(f"extends: tiny.yaml\ndata: {{generated_rows: 40, heldout_rows: 4, tools: {tools}}}\n")
    dvc("repro", "synthesize")
    rows = tmp_path / "runs" / "dvc" / "data" / "train.jsonl"
    assert "book_hotel" in rows.read_text()
    tools.write_text(tools.read_text().replace("book_hotel", "reserve_room"))
    dvc("repro", "synthesize")
    assert "reserve_room" in rows.read_text()
    # An edit during the run: DVC records the profile as it is at the end, the stage as it was at its start.
    profile.write_text(profile.read_text().replace("generated_rows: 40", "generated_rows: 60"))
    dvc("commit", "--force", "synthesize")
    dvc("repro", "synthesize")
    made = (file.read_text().splitlines() for file in rows.parent.glob("*.jsonl"))
    assert sum(map(len, made)) == 60


def test_dvc_gives_the_same_metrics(tmp_path: Path, finished: dict[str, Path]) -> None:
    dvc = dvc_clone(tmp_path)
    dvc("repro")
    for stage, folder in zip(STAGES, DVC_FOLDERS, strict=True):
        if stage.name in ("refine-teacher", "distill", "refine", "evaluate"):
            assert metrics(tmp_path / "runs" / "dvc" / folder) == metrics(finished[stage.name])
    shown, _ = json.JSONDecoder().raw_decode(dvc("plots", "show", "--json"))
    assert {"training of the teacher", "Sim-RL reward", "distillation"} <= set(shown["data"])
