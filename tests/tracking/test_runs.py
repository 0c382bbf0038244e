"""Runs as MLflow shows them afterwards, and work that goes on when MLflow does not answer."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star.errors import InputError
from star.folders.dvc_digest import dvc_digest
from star.folders.manifest import Manifest
from star.folders.publish import publish
from star.registry.lineage import input_datasets
from star.tracking import system_metrics
from star.tracking.parent_run import PARENT_VARIABLE
from star.tracking.runs import child_run, pipeline_run, stage_run
from star.tracking.server import connect, tracking_uri


def run_of(run_id: str):
    return connect().get_run(run_id)


def runs_by_stage() -> dict[str, object]:
    client = connect()
    found = client.search_runs([client.get_experiment_by_name("star").experiment_id])
    return {run.data.tags.get("star.stage", "pipeline"): run for run in found}


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_stages_are_children_of_the_pipeline(home: Path) -> None:
    with pipeline_run("nightly", params={"seed": 7}) as pipeline:
        for stage in ("rollout", "distill"):
            with stage_run(stage, params={"steps": 3}, tags={"code": "abc"}) as run:
                run.log_metrics({"pass@8": 0.75, "loss": 1.5}, step=2)
    assert PARENT_VARIABLE not in os.environ
    runs = runs_by_stage()
    assert runs.keys() == {"pipeline", "rollout", "distill"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["kfp.pipeline_run_id"] for run in runs.values()} == {pipeline.run_id}
    assert "mlflow.parentRunId" not in runs["pipeline"].data.tags
    assert runs["pipeline"].data.params == {"seed": "7"}
    child = runs["distill"]
    assert child.data.tags["mlflow.parentRunId"] == pipeline.run_id
    assert child.data.tags["code"] == "abc"
    assert child.info.run_name == "distill"
    assert child.data.params == {"steps": "3"}
    assert child.data.metrics == {"pass_8": 0.75, "loss": 1.5}
    assert connect().get_metric_history(child.info.run_id, "loss")[0].step == 2


def test_a_child_process_joins_its_pipeline_and_an_orphan_is_closed(home: Path) -> None:
    script = """
import os, signal, sys
from star.tracking.runs import stage_run
with stage_run(sys.argv[1]):
    os.kill(os.getpid(), int(sys.argv[2]))
"""
    codes = {}
    with pytest.raises(RuntimeError, match="stages failed"), pipeline_run("nightly") as pipeline:  # noqa: PT012 - the children join it
        children = {
            name: subprocess.Popen([sys.executable, "-c", script, name, str(int(number))])
            for name, number in (("asked", signal.SIGTERM), ("shot", signal.SIGKILL))
        }
        codes = {name: child.wait() for name, child in children.items()}
        raise RuntimeError("stages failed")
    assert codes == {"asked": 143, "shot": -signal.SIGKILL}
    runs = runs_by_stage()
    assert {name: run.info.status for name, run in runs.items()} == {
        "pipeline": "FAILED",
        "asked": "KILLED",
        "shot": "KILLED",
    }
    assert runs["shot"].data.tags["mlflow.parentRunId"] == pipeline.run_id


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_failing_stage_says_so_and_its_error_goes_on(home: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), stage_run("distill") as run:
        raise error()
    assert run_of(run.run_id).info.status == status


def test_a_lent_run_is_used_and_neither_renamed_nor_ended(home: Path) -> None:
    client = connect()
    lent = client.create_run(client.create_experiment("KFP-Default"), run_name="distill-task").info.run_id
    os.environ["MLFLOW_RUN_ID"] = lent
    for _ in range(2):  # a second stage in the same process finds it too
        with stage_run("distill") as run:
            assert "MLFLOW_RUN_ID" not in os.environ
            run.log_metrics({"loss": 1.0})
        assert os.environ["MLFLOW_RUN_ID"] == lent == run.run_id
    info = run_of(lent).info
    assert (info.status, info.run_name) == ("RUNNING", "distill-task")
    with pytest.raises(ValueError, match="no rows"), stage_run("distill"):
        raise ValueError("no rows")
    assert run_of(lent).info.status == "FAILED"


def test_the_data_is_logged_as_a_dataset_by_its_dvc_digest(home: Path, tmp_path: Path) -> None:
    rows, data = tmp_path / "rows", tmp_path / "data"
    rows.mkdir()
    (rows / "train.jsonl").write_text("{}\n")
    publish(rows, out=data, manifest=Manifest("synthesize", "f", "c", "d", "v", {}))
    with stage_run("distill") as run:
        run.log_inputs(input_datasets({"data": data}))
    [used] = run_of(run.run_id).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("data", dvc_digest(data))
    assert used.dataset.digest.endswith(".dir")


def test_artifacts_lie_beside_the_database(home: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    report.write_text("# fine")
    with stage_run("evaluate") as run:
        run.log_artifact(report)
    assert [path.read_text() for path in (home / "mlartifacts").rglob("report.md")] == ["# fine"]
    assert run.url is None


def test_many_params_and_long_ones(home: Path) -> None:
    with stage_run("distill", params={f"p{i}": i for i in range(150)} | {"long": "x" * 9000}) as run:
        pass
    assert len(run_of(run.run_id).data.params) == 151


def test_a_learning_curve_keeps_its_steps(home: Path) -> None:
    with stage_run("distill") as run:
        for step in (1, 2, 3):
            run.log_metrics({"loss": 1.0 / step}, step)
        run.log_metrics({"exact_match": 0.5})
    assert [entry.step for entry in connect().get_metric_history(run.run_id, "loss")] == [1, 2, 3]
    finished = run_of(run.run_id)
    assert finished.info.status == "FINISHED"
    assert finished.data.metrics["exact_match"] == 0.5


def test_only_the_first_training_process_reports(home: Path) -> None:
    os.environ["RANK"] = "1"
    with stage_run("distill") as run:
        run.log_metrics({"loss": 1.0})
    assert run.run_id is None


def test_a_server_that_does_not_answer_costs_seconds_and_one_line(
    environment: pytest.MonkeyPatch, closed_port: int, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{closed_port}")
    report = tmp_path / "report.md"
    report.write_text("# fine")
    start, results = time.monotonic(), []
    with pipeline_run("nightly"):
        for stage in ("rollout", "distill"):
            with stage_run(stage, params={"steps": 3}) as run:
                run.log_metrics({"loss": 1.0})
                run.log_artifact(report)
                results.append(run.run_id)
    assert results == [None, None]
    assert time.monotonic() - start < 12
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("star")]
    assert len(warnings) == 2  # once at the beginning, once at the end, whatever the number of stages
    assert "nightly is not tracked yet" in warnings[0] and str(closed_port) in warnings[0]
    assert warnings[0].endswith("([Errno 111] Connection refused)")
    assert "star tracking replay" in warnings[1]
    assert "secret" not in caplog.text
    with pytest.raises(InputError, match="cannot be used"):
        connect()


@pytest.mark.parametrize("uri", ["nonsense://x", "ftp://127.0.0.1/mlflow"])
def test_an_address_that_mlflow_cannot_use_is_one_line(environment: pytest.MonkeyPatch, uri: str) -> None:
    environment.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match="cannot be used: start the server or correct MLFLOW_TRACKING_URI"):
        connect()
    with stage_run("distill") as run:
        run.log_metrics({"loss": 1.0})
    assert run.run_id is None


def test_a_file_that_cannot_be_logged_is_one_line_and_the_rest_goes_on(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stage_run("distill") as run:
        run.log_artifact(home / "no-such-file")
        run.log_metrics({"loss": 1.0})
    assert len([record for record in caplog.records if record.name.startswith("star")]) == 1
    finished = run_of(run.run_id)
    assert (finished.info.status, finished.data.metrics) == ("FINISHED", {"loss": 1.0})


def test_what_the_server_refuses_is_one_line_and_the_rest_goes_on(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with stage_run("distill", params={"steps": 3}) as run:
        run.log_params({"steps": 4})  # MLflow does not change a parameter
        run.log_metrics({"loss": 1.0})
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("star")]
    assert len(lines) == 1 and "does not accept the params" in lines[0]
    finished = run_of(run.run_id)
    assert (finished.data.params, finished.data.metrics) == ({"steps": "3"}, {"loss": 1.0})


def test_the_environment_names_the_place(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    environment.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri() == "http://mlflow:5000"
    environment.delenv("MLFLOW_TRACKING_URI")
    environment.delenv("STAR_HOME")
    environment.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_the_experiment_is_named_by_the_environment(home: Path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with stage_run("distill") as run:
        pass
    assert run_of(run.run_id).info.experiment_id == connect().get_experiment_by_name("mine").experiment_id


def test_importing_is_quick() -> None:
    script = (
        "import json, sys; import star.registry.promotion.promote_and_rollback; print(json.dumps(sorted(sys.modules)))"
    )
    loaded = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert not {"mlflow", "torch", "transformers"} & set(loaded)


def test_grandchildren_and_what_was_read(home: Path) -> None:
    with pipeline_run("nightly"), stage_run("evaluate") as stage:
        stage.log_inputs({"data": ("0123.dir", "runs/dvc/data", "dvc")})
        with child_run("seed 7", tags={"star.suite": "heldout"}) as seed:
            seed.log_metrics({"exact_match": 0.5})
    assert run_of(seed.run_id).data.tags["mlflow.parentRunId"] == stage.run_id
    assert run_of(seed.run_id).data.metrics == {"exact_match": 0.5}
    [read] = run_of(stage.run_id).inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest, read.dataset.source_type) == ("data", "0123.dir", "dvc")
    with child_run("alone") as nothing:
        nothing.log_metrics({"loss": 1.0})
    assert nothing.run_id is None


def test_the_machine_is_measured_while_a_stage_works(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_metrics, "SAMPLE_SECONDS", 0.1)
    with stage_run("distill") as run, system_metrics.log_system_metrics(run.log_metrics):
        time.sleep(1)
    measured = run_of(run.run_id).data.metrics
    assert 0 <= measured["system/cpu_utilization_percentage"] <= 100
    assert measured["system/system_memory_usage_percentage"] > 0
