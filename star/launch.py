"""A training where its task was placed: in this process, in several of this machine, or in the pods of a TrainJob.

STAR_PROCESSES and STAR_TRAIN_JOB in the environment say it. Whatever it is, the same command trains: `star <stage>`, under torchrun
where there are several processes.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from star.cluster import Cluster
from star.config import Config
from star.stages import Metrics, stage_named
from star.storage import METRICS

PROCESSES = "STAR_PROCESSES"  # how many train on this machine
TRAIN_JOB = "STAR_TRAIN_JOB"  # the section `cluster` as JSON, by which the job is made
SETTINGS = "settings.json"
TOLD_TO_END = 128 + signal.SIGTERM


def train(stage: str, config: Config, *, out: Path, **inputs: Path) -> Metrics:
    """Runs a stage that trains, where and as often as the environment says.

    Raises:
        RuntimeError: a process or a pod of it failed; its own message is in the log.
        InputError: the settings do not suit that many processes, or the cluster cannot run the job.
        SystemExit: this process was told to end (SIGTERM), and has ended the others.
    """
    if described := os.environ.get(TRAIN_JOB):
        from star.train_job import run_train_job

        return run_train_job(stage, config, cluster=Cluster.model_validate_json(described), inputs=inputs, out=out)
    processes = int(os.environ.get(PROCESSES, "1"))
    if processes == 1:
        return stage_named(stage).function(config, out=out, **inputs)
    with TemporaryDirectory() as scratch:
        settings = write_settings(stage, config, Path(scratch))
        flags = ["--standalone", f"--nproc-per-node={processes}"]
        _run([*torchrun(*flags), *command_of(stage, settings=settings, inputs=inputs, out=out)], what=stage)
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def write_settings(stage: str, config: Config, folder: Path) -> Path:
    """Writes the sections that a stage reads where `command_of` finds them."""
    settings = folder / SETTINGS
    settings.write_text(config.slice(stage_named(stage).sections), encoding="utf-8")
    return settings


def torchrun(*flags: str) -> list[str]:
    """torchrun by this Python; what no flag says it takes from the environment (PET_NNODES and its like)."""
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def command_of(stage: str, *, settings: Path, inputs: dict[str, Path], out: Path) -> list[str]:
    """What every process of a training runs, as torchrun wants it."""
    folders = [f"--{key}={folder}" for key, folder in inputs.items()]
    return ["-m", "star.cli", stage, f"--config={settings}", *folders, f"--out={out}"]


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


@contextmanager
def on_sigterm_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit here, so that what was started elsewhere can be ended too."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(TOLD_TO_END)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
