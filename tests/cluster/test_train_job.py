"""A training as a TrainJob, against the controllers of trainer_server.py whose pods are real processes configured by PET_ variables."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star.cluster.torchrun import torchrun_command
from star.cluster.train_job_manifest import TORCHRUN_FLAGS
from star.config.cluster import Cluster, TrainJob
from star.config.experiment import Config
from star.folders.manifest import open_input
from star.stages import stage_named
from tests.cluster.trainer_server import RUNTIME, Kubernetes

# What KFP's executor does with the component of a training, in a process that can receive SIGTERM.
CALL = """
import json, sys
from pathlib import Path
from star.cluster import train_job, train_job_watch
from star.cluster.failure import ends_in_a_sentence
from star.config.cluster import Cluster
from star.config.experiment import Config
train_job_watch.POLL_SECONDS = 0.2
stage, config, cluster, out, inputs = sys.argv[1:]
config, cluster = Config.from_json(config), Cluster.model_validate_json(cluster)
inputs = {key: Path(path) for key, path in json.loads(inputs).items()}
with ends_in_a_sentence():
    print(json.dumps(train_job.run_train_job(stage, config, cluster=cluster, inputs=inputs, out=Path(out))))
"""


CLUSTER = Cluster.model_validate(
    {
        "train_jobs": {"distill": {"nodes": 2}},
        "work_claim": "star-work",
        "secrets": {"star-s3": {"AWS_ACCESS_KEY_ID": "access-key"}},
        "environment": {"TELLTALE": "from the profile", "OMP_NUM_THREADS": "1"},
        "retry": {"attempts": 2, "backoff_seconds": 0},
    }
)


def task(
    kubernetes: Kubernetes, config: Config, finished: dict[str, Path], out: Path, *, nodes: int = 2
) -> subprocess.Popen:
    """Starts the KFP task of distill as a process."""
    inputs = {key: str(finished[source]) for key, source in stage_named("distill").inputs.items()}
    settings = config.slice(stage_named("distill").sections)
    environment = {
        "STAR_IMAGE": "registry.example.com/star-python:1",
        "STAR_WORK": str(kubernetes.folder / "volume" / "work"),
        "STAR_HOME": str(kubernetes.folder / "volume" / "home"),
        "KUBECONFIG": str(kubernetes.kubeconfig()),
        "KFP_RUN_ID": "r-1",
    }
    jobs = {"distill": TrainJob(nodes=nodes)}
    cluster = CLUSTER.model_copy(update={"train_jobs": jobs}).model_dump_json(exclude_defaults=True)
    command = [sys.executable, "-c", CALL, "distill", settings, cluster, str(out), json.dumps(inputs)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | environment, **pipes)


def work_folder_has(kubernetes: Kubernetes, pattern: str) -> bool:
    return any((kubernetes.folder / "volume" / "work").glob(f"distill-*/state/{pattern}"))


def newest_checkpoint(kubernetes: Kubernetes) -> int:
    marks = (kubernetes.folder / "volume" / "work").glob("distill-*/state/ckd/checkpoint-*/complete")
    return max((int(mark.parent.name.split("-")[1]) for mark in marks), default=0)


def wait_until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_two_nodes_write_the_result_of_two_processes(
    kubernetes: Kubernetes, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    kubernetes.faults = [404, 503]
    kubernetes.unreadable_logs = 2
    out = tmp_path / "out"
    process = task(kubernetes, micro, finished, out)
    printed, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-3000:] + "".join(file.read_text()[-2000:] for file in tmp_path.glob("*.log"))
    assert json.loads(printed)["ckd_loss"] > 0
    # The same as two processes of one machine write; nothing is left in the cluster.
    alone = tmp_path / "alone"
    inputs = [f"--{key}={finished[source]}" for key, source in stage_named("distill").inputs.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "star.cli", "distill", "--config", str(Path(__file__).parents[1] / "micro.yaml")]
    subprocess.run([*command, *inputs, f"--out={alone}"], check=True, capture_output=True, timeout=300)
    assert open_input(out, stage="distill").digest == open_input(alone, stage="distill").digest
    assert kubernetes.jobs == {}
    assert log.count("distil the student (CKD): 6/6") == 1
    # The result is kept for a retry until the exit handler runs; the copies of the inputs are not.
    [exchange] = (tmp_path / "volume" / "work" / "jobs" / "r-1").iterdir()
    assert {path.name for path in exchange.iterdir()} == {"settings.json", "out", "failures"}
    again = task(kubernetes, micro, finished, tmp_path / "again")
    assert again.wait(timeout=120) == 0, again.stderr.read()[-3000:]
    assert open_input(tmp_path / "again", stage="distill").digest == open_input(out, stage="distill").digest
    assert len(kubernetes.created()) == 1


@pytest.mark.slow
def test_a_task_that_dies_leaves_its_job_to_the_next_attempt(
    kubernetes: Kubernetes, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    # Long enough for the second attempt to find the job still running, however slowly that attempt starts.
    distill = micro.distill.model_copy(update={"steps": 240, "save_steps": 60})
    longer = micro.model_copy(update={"distill": distill})
    lost = task(kubernetes, longer, finished, tmp_path / "out")
    wait_until(lambda: work_folder_has(kubernetes, "*"), lost)
    lost.kill()
    lost.wait()
    again = task(kubernetes, longer, finished, tmp_path / "out")
    _, log = again.communicate(timeout=300)
    assert again.returncode == 0, log[-3000:]
    assert "going on with TrainJob star-distill-" in log
    assert len(kubernetes.created()) == 1


@pytest.mark.slow
def test_sigterm_deletes_the_job_and_a_failed_job_is_followed_by_the_next(
    kubernetes: Kubernetes, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    distill = micro.distill.model_copy(update={"steps": 200, "save_steps": 2})
    config = micro.model_copy(update={"distill": distill})
    interrupted = task(kubernetes, config, finished, tmp_path / "out")
    wait_until(lambda: work_folder_has(kubernetes, "ckd/checkpoint-2/complete"), interrupted)
    interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(timeout=60) == 143 and kubernetes.jobs == {}

    # What the deleted pods still write would be taken for the next job's.
    for pod in list(kubernetes.pods.values()):
        pod.process.wait(timeout=60)
    left = newest_checkpoint(kubernetes)
    failing = task(kubernetes, config, finished, tmp_path / "out")
    wait_until(lambda: kubernetes.jobs and newest_checkpoint(kubernetes) > left, failing)
    # A whole container is killed, as for its memory: nothing in it can report why.
    [second] = [pod for pod in kubernetes.pods.values() if pod.rank == 1 and pod.deleted is None]
    saved = newest_checkpoint(kubernetes)
    os.killpg(second.process.pid, signal.SIGKILL)
    _, log = failing.communicate(timeout=300)
    assert failing.returncode == 0, log[-3000:]
    assert f"pod {second.name} (node 1) ended with exit code 137" in log
    assert "attempt 1 of 3 (distill) ended after " in log and " s: killed, next in 0 s: pod star-distill-" in log
    # The next job went on from the last checkpoint. At the end none is left, nor a process of them.
    steps = re.findall(r"CKD\): (\d+)/200", log.partition("next in")[2])
    assert int(steps[0]) >= saved
    names = [name.rpartition("-")[2] for name in kubernetes.created()]
    assert names == ["0", "0", "1"] and kubernetes.jobs == {}
    assert open_input(tmp_path / "out", stage="distill")


@pytest.mark.slow
def test_the_reason_that_a_process_of_a_pod_reports_ends_the_task(
    kubernetes: Kubernetes, micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    # torchrun's own exit status is 1 for all that can happen.
    kubernetes.command = lambda job, rank, command: [word.replace("/topk", "/none") for word in command]
    process = task(kubernetes, micro, finished, tmp_path / "out", nodes=1)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 2, log[-3000:]
    assert "attempt 1 of 3 (distill) ended after " in log and " s: input, no other attempt" in log
    last = log.strip().splitlines()[-1]
    assert last.startswith("star: TrainJob star-distill-") and "-0 failed: no folder at " in last and "/none" in last
    assert len(kubernetes.created()) == 1


@pytest.mark.slow
def test_a_pod_in_the_rendezvous_ends_at_once_on_sigterm(kubernetes: Kubernetes, tmp_path: Path) -> None:
    """It is not process 1 of its container (shareProcessNamespace), for which the kernel ignores SIGTERM."""
    assert RUNTIME["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "shareProcessNamespace"
    ]
    command = [*torchrun_command(*TORCHRUN_FLAGS), "-m", "star.cli", "--help"]
    node = {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": "9",
    }
    pod = subprocess.Popen(command, env=os.environ | node, stderr=subprocess.DEVNULL)
    time.sleep(10)  # it has long imported torch, and asks for the first node, which is not there
    assert pod.poll() is None
    pod.terminate()
    assert pod.wait(timeout=10) == -signal.SIGTERM
