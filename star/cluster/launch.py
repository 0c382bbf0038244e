"""A training where its task was placed: in this process, in several of this machine, or in the pods of a TrainJob.

STAR_PROCESSES and STAR_TRAIN_JOB in the environment say it. Whatever it is, the same command trains: `star <stage>`, under torchrun
where there are several processes.
"""

import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from star.cluster.torchrun import command_of, on_sigterm_exit, torchrun, write_settings
from star.config.cluster import Cluster
from star.config.experiment import Config
from star.folders.manifest import METRICS
from star.stages import Metrics, stage_named

PROCESSES = "STAR_PROCESSES"  # how many train on this machine
TRAIN_JOB = "STAR_TRAIN_JOB"  # the section `cluster` as JSON, by which the job is made


def train(stage: str, config: Config, *, out: Path, **inputs: Path) -> Metrics:
    """Runs a stage that trains, where and as often as the environment says.

    Raises:
        RuntimeError: a process or a pod of it failed; its own message is in the log.
        InputError: the settings do not suit that many processes, or the cluster cannot run the job.
        SystemExit: this process was told to end (SIGTERM), and has ended the others.
    """
    if described := os.environ.get(TRAIN_JOB):
        from star.cluster.train_job import run_train_job

        return run_train_job(stage, config, cluster=Cluster.model_validate_json(described), inputs=inputs, out=out)
    processes = int(os.environ.get(PROCESSES, "1"))
    if processes == 1:
        return stage_named(stage).function(config, out=out, **inputs)
    with TemporaryDirectory() as scratch:
        settings = write_settings(stage, config, Path(scratch))
        flags = ["--standalone", f"--nproc-per-node={processes}"]
        _run([*torchrun(*flags), *command_of(stage, settings=settings, inputs=inputs, out=out)], what=stage)
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def _run(command: list[str], *, what: str) -> None:
    process = subprocess.Popen(command)
    with on_sigterm_exit():
        try:
            status = process.wait()
        except SystemExit:
            process.terminate()  # torchrun passes it on and waits for the processes, which save first
            process.wait()
            raise
    if status:
        raise RuntimeError(f"a process of {what} failed: what it said is in the log above")
