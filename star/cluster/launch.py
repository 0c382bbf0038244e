"""Launches a training: in this process, under torchrun on this machine, or as a TrainJob on several nodes.

Two environment variables of the task choose, and star/pipelines/resources.py sets them when the pipeline is compiled:

| STAR_TRAIN_JOB | STAR_PROCESSES | the training runs |
|---|---|---|
| not set | not set or 1 | in this process |
| not set | n > 1 | in n processes of this pod, under torchrun |
| the section `cluster` as JSON | ignored | in the pods of a TrainJob (star/cluster/train_job.py) |

All three run the same code: `star <stage>`, once per process.
"""

import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from star.cluster.torchrun import stage_command, torchrun_command, write_settings
from star.config.cluster import Cluster, TrainingStage
from star.config.experiment import Config
from star.folders.manifest import METRICS
from star.sigterm import sigterm_raises_system_exit
from star.stages import Metrics, stage_named

PROCESSES_VARIABLE = "STAR_PROCESSES"
TRAIN_JOB_VARIABLE = "STAR_TRAIN_JOB"


def train(stage: TrainingStage, config: Config, *, out: Path, **inputs: Path) -> Metrics:
    """Runs a training stage in as many processes, and on as many nodes, as the environment says.

    Raises:
        RuntimeError: a process or a pod failed; its own message is in the log.
        InputError: the settings do not suit that number of processes, or the cluster cannot run the TrainJob.
        SystemExit: this process received SIGTERM and has ended the processes or the job it started.
    """
    if cluster_json := os.environ.get(TRAIN_JOB_VARIABLE):
        from star.cluster.train_job import run_train_job

        return run_train_job(stage, config, cluster=Cluster.model_validate_json(cluster_json), inputs=inputs, out=out)
    processes = int(os.environ.get(PROCESSES_VARIABLE, "1"))
    if processes == 1:
        return stage_named(stage).function(config, out=out, **inputs)
    with TemporaryDirectory() as scratch:
        settings = write_settings(stage, config, Path(scratch))
        flags = ["--standalone", f"--nproc-per-node={processes}"]
        command = [*torchrun_command(*flags), *stage_command(stage, settings=settings, inputs=inputs, out=out)]
        _run_torchrun(command, stage=stage)
    # The stage ran in other processes, which return nothing: the published folder is all that comes back.
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def _run_torchrun(command: list[str], *, stage: str) -> None:
    process = subprocess.Popen(command)
    # A second SIGTERM must not interrupt the wait for processes that are saving a checkpoint.
    with sigterm_raises_system_exit(ignore_repeats=True):
        try:
            status = process.wait()
        except SystemExit:
            # torchrun forwards SIGTERM to its processes and waits for them; they save a checkpoint before they end.
            process.terminate()
            process.wait()
            raise
    if status:
        raise RuntimeError(f"a process of {stage} failed: its message is in the log above")
