"""Events wait on disk for a server that is down, and are sent when it is back: nothing is lost, nothing is doubled."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star.home import spools_folder
from star.tracking.runs import pipeline_run, stage_run
from star.tracking.sender import replay
from star.tracking.server import close_stale_runs, connect

CHILD = """
import os, signal, sys
from star.tracking.runs import stage_run
with stage_run("distill") as run:
    run.log_metrics({"loss": 0.5}, 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def runs_by_name() -> dict[str, object]:
    client = connect()
    found = client.search_runs([client.get_experiment_by_name("star").experiment_id])
    return {run.info.run_name: run for run in found}


def losses(run_id: str) -> list[tuple[int, float]]:
    return sorted((entry.step, entry.value) for entry in connect().get_metric_history(run_id, "loss"))


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_misses_nothing(
    local_server, home: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", local_server.uri)
    with stage_run("distill") as run:
        for step in range(30):
            if step == 5:
                local_server.stop()
            if step == 20:
                local_server.start()
            began = time.monotonic()
            run.log_metrics({"loss": 1 / (step + 1)}, step)
            assert time.monotonic() - began < 0.5  # training does not wait
    if list(spools_folder().iterdir()):  # the thread may have been in a pause when the run ended
        assert replay(spools_folder()) == (1, [])
    assert losses(run.run_id) == [(step, 1 / (step + 1)) for step in range(30)]
    assert connect().get_run(run.run_id).info.status == "FINISHED"
    assert list(spools_folder().iterdir()) == []


@pytest.mark.slow
def test_a_pipeline_without_a_server_is_there_afterwards(
    local_server, home: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", local_server.uri)
    local_server.stop()
    report = home / "report.md"
    report.write_text("# fine")
    with pipeline_run("nightly", params={"seed": 7}):
        with stage_run("rollout", params={"samples": 8}) as run:
            run.log_metrics({"loss": 0.25}, 3)
            run.log_artifact(report)
            report.unlink()
        with pytest.raises(ValueError, match="no rows"), stage_run("distill"):
            raise ValueError("no rows")
    done, left = replay(spools_folder())
    assert done == 0 and "Connection refused" in left[0]
    local_server.start()
    assert replay(spools_folder()) == (3, [])
    assert replay(spools_folder()) == (0, [])
    runs = runs_by_name()
    assert {name: run.info.status for name, run in runs.items()} == {
        "nightly": "FINISHED",
        "rollout": "FINISHED",
        "distill": "FAILED",
    }
    for stage in ("rollout", "distill"):
        assert runs[stage].data.tags["mlflow.parentRunId"] == runs["nightly"].info.run_id
    assert losses(runs["rollout"].info.run_id) == [(3, 0.25)]
    assert runs["rollout"].data.params == {"samples": "8"}
    assert [file.path for file in connect().list_artifacts(runs["rollout"].info.run_id)] == ["report.md"]
    assert runs["rollout"].info.end_time - runs["rollout"].info.start_time < 60_000  # when it was, not when it was sent


def test_a_killed_run_is_closed_and_keeps_what_it_said(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert replay(spools_folder()) == (1, [])
    run = runs_by_name()["distill"]
    assert (run.info.status, losses(run.info.run_id)) == ("KILLED", [(1, 0.5)])


def test_sending_twice_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from star.tracking.spool import Spool

    folder = spools_folder() / "twice"
    spool = Spool.open(
        folder, {"name": "twice", "run_id": None, "experiment": None, "parent": None, "tags": {}, "start": 1}
    )
    spool.append(kind="metrics", values={"loss": 0.5}, step=1)
    spool.append(kind="params", values={"a": "1"})
    spool.append(kind="end", status="FINISHED")
    from star.tracking.sender import send_events

    send_events(spool)
    (folder / "sent").unlink()  # the answers were lost, and so was the run's id
    spool.write_run({**spool.read_run(), "run_id": None})
    send_events(spool)
    spool.remove()
    [run] = runs_by_name().values()
    assert losses(run.info.run_id) == [(1, 0.5)]
    assert run.data.params == {"a": "1"}


def test_a_half_written_event_is_left_out(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    [folder] = spools_folder().iterdir()
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"at": 1, "kind": "metr')
    done, left = replay(spools_folder())
    assert done == 1 and left == []
    assert runs_by_name()["distill"].info.status == "KILLED"


def test_stages_of_one_dvc_repro_share_a_run(home: Path) -> None:
    program = home / "dvc"
    script = f"""
import os, subprocess, sys
for stage in ("rollout", "distill"):
    child = "from star.tracking.runs import stage_run\\nwith stage_run({{!r}}): pass".format(stage)
    subprocess.run([{sys.executable!r}, "-c", child], check=True, env={{**os.environ, "DVC_STAGE": stage}})
"""
    program.write_text(script)
    subprocess.run([sys.executable, str(program)], check=True)
    runs = runs_by_name()
    assert runs.keys() == {"dvc repro", "rollout", "distill"}
    parent = runs["dvc repro"]
    assert parent.info.status == "FINISHED"
    assert {runs[stage].data.tags["mlflow.parentRunId"] for stage in ("rollout", "distill")} == {parent.info.run_id}


def test_stale_runs_are_reaped(home: Path) -> None:
    client = connect()
    with stage_run("evaluate"):
        pass
    experiment = client.get_experiment_by_name("star").experiment_id
    long_ago = int((time.time() - 30 * 3600) * 1000)
    gone = client.create_run(experiment, start_time=long_ago, run_name="gone").info.run_id
    alive = client.create_run(experiment, start_time=long_ago, run_name="alive").info.run_id
    client.log_metric(alive, "loss", 1.0)
    [line] = close_stale_runs(24)
    assert line.startswith(f"gone ({gone})")
    assert client.get_run(gone).info.status == "KILLED"
    assert client.get_run(alive).info.status == "RUNNING"
    assert close_stale_runs(24) == []


def test_a_full_disk_is_one_warning(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    spools_folder().write_text("in the way")  # where a folder is needed
    with stage_run("distill") as run:
        run.log_metrics({"loss": 1.0})
    assert run.run_id is None
    assert len([record for record in caplog.records if record.name.startswith("star")]) == 1
    assert spools_folder().exists()
