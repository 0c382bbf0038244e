"""Runs the pipeline on this machine with kfp.local: each task is a process, and results are cached.

Everything is in one home folder, STAR_HOME or `./runs`:

    latest/<stage>   link to the newest folder of each stage
    mlflow.db        MLflow runs and registered models
    logs/            output of the stages, and their progress events
    pipeline/        folders that the stages wrote
    cache/           kfp's cache keys
    work/            unfinished work, from which a killed run resumes
"""

import contextlib
import json
import os
import shutil
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from star.config.experiment import Config
from star.config.models import Architecture
from star.doctor.input_checks import check_prompts
from star.doctor.rehearsal_record import passed_before, rehearsal_checks
from star.errors import PipelineError
from star.folders.in_use import using
from star.folders.manifest import METRICS
from star.folders.owners import create_in_home
from star.home import home
from star.pipelines.nothing_to_do import find_finished_run
from star.progress import print_line, send_events_to
from star.sigterm import sigterm_raises_system_exit
from star.stages import STAGES
from star.terminal import guard_terminal, guarded
from star.tracking.runs import pipeline_run

if TYPE_CHECKING:
    from kfp import dsl

    from star.pipelines.progress_display import ProgressDisplay

FULL_DISK_BYTES = 1 << 20  # with less free space a disk counts as full


@dataclass(frozen=True)
class PipelineResult:
    """The result of `run_local`.

    Attributes:
        folders: Stage -> folder that it wrote, now or in an earlier run.
        ran: Names of the stages that ran; the others were cached.
        seconds: Duration of the run.
        log: File with the output of the stages; None where there was nothing to do.
        run_id: ID of the pipeline's MLflow run, if there was something to do and the tracking server answered.
    """

    folders: dict[str, Path]
    ran: list[str]
    seconds: float
    log: Path | None
    run_id: str | None

    def metrics(self, stage: str) -> dict[str, float]:
        """The metrics that a stage returned."""
        return json.loads((self.folders[stage] / METRICS).read_text(encoding="utf-8"))


def run_local(config: Config) -> PipelineResult:
    """Runs the pipeline, shows its progress, and links the results under `latest/`.

    Raises:
        PipelineError: a stage failed. The message names the stage and the log.
        InputError: the rows are too few for Sim-RL; no stage was started.
    """
    from star.pipelines.progress_display import ProgressDisplay

    root, start = home(), time.monotonic()
    if folders := find_finished_run(config, root / "latest"):
        for name in folders:
            print_line(f"{name:<16} already done")
        return PipelineResult(folders, [], time.monotonic() - start, log=None, run_id=None)
    check_prompts(config)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    log = root / "logs" / f"{stamp}.log"
    events = root / "logs" / f"{stamp}.events.jsonl"
    # kfp warns that CPU and memory limits do not apply to local processes. They are meant for the cluster.
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner.*")
    # kfp would create its cache open to others; it says which results are taken.
    for name in ("logs", "cache"):
        create_in_home(name)
    # The display opens the file before the first stage has written to it.
    events.touch()
    require_rehearsal(config, root)
    work_before = os.environ.get("STAR_WORK")
    # kfp starts the tasks as processes that inherit this environment, which is how they find home and work folder.
    os.environ["STAR_HOME"] = str(root)
    os.environ.setdefault("STAR_WORK", str(root / "work"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        parent = pipeline_run(config.name, params={"config": config.name, "seed": config.seed})
        with (
            # kfp answers for a cached stage by the folder of an older run, which only the next stage reads.
            using([root / "pipeline"], by="star run"),
            sigterm_raises_system_exit(before_exit=terminate_stages),
            parent as run,
            send_events_to(str(events)),
            ProgressDisplay(events) as display,
        ):
            outputs = _run_pipeline(config, root=root, log=log, display=display)
    finally:
        if work_before is None:
            os.environ.pop("STAR_WORK", None)
    folders = {stage.name: Path(outputs[name].path) for stage, name in zip(STAGES, outputs, strict=True)}
    _link_latest(root / "latest", folders)
    return PipelineResult(folders, display.ran, time.monotonic() - start, log, run.run_id)


def require_rehearsal(config: Config, root: Path) -> None:
    """Rehearses a run that has a pretrained model, unless the same rehearsal passed before.

    Models from scratch are made to fit each other by the stages, so there is nothing to find.

    Raises:
        PipelineError: a step of the rehearsal failed; the message says what to do.
    """
    if all(isinstance(base, Architecture) for base in (config.teacher.base, config.student.base)):
        return
    if passed_before(config, root):
        print_line("rehearsal: passed before with the same settings, models and code")
        return
    print_line("rehearsal: the models are loaded, and a few rows go through all stages")
    # In a process of its own, because torch would stay in this one for as long as the run takes.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=guard_terminal) as pool:
        checks = pool.submit(rehearsal_checks, config, root).result()
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise PipelineError(f"the rehearsal failed, no stage was started: {'; '.join(failed)}", input_fault=True)


def terminate_stages() -> None:
    """Sends SIGTERM to the running stage. kfp alone would wait until the stage has finished."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()


def _run_pipeline(config: Config, *, root: Path, log: Path, display: "ProgressDisplay") -> dict[str, "dsl.Artifact"]:
    """Runs the DAG with kfp.local. Returns the output artifact of each stage, by the names of star_pipeline.Folders."""
    from kfp import local

    from star.pipelines.star_pipeline import Folders, build_pipeline

    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root / "pipeline"),
        enable_caching=True,
        cache_root=str(root / "cache"),
        raise_on_error=True,
    )
    pipeline = build_pipeline(config)
    try:
        # Line by line, so that the log of a killed run has everything up to the kill.
        # Through the door, because a process of a stage has none before its stage begins, and native code never.
        with log.open("w", encoding="utf-8", buffering=1) as file, contextlib.redirect_stdout(guarded(file)):
            outputs = pipeline().outputs
    except RuntimeError as error:
        # kfp's error names the task only. The message, and whether the input is at fault, are in the stage's event.
        failed = display.failure()
        # On a full disk the stage could not write its event either.
        if failed is None and shutil.disk_usage(root).free < FULL_DISK_BYTES:
            message = f"no space left on the disk at {root}: free some and run again, finished work is kept"
            raise PipelineError(message, input_fault=True) from error
        if failed is None:
            raise PipelineError(f"{error}; the log is {log}", input_fault=False) from error
        where = "" if failed["input_fault"] else f"; the log is {log}"
        raise PipelineError(
            f"{failed['stage']}: {failed['error']}{where}", input_fault=failed["input_fault"]
        ) from error
    return {name: outputs[name] for name in Folders._fields}


def _link_latest(latest: Path, folders: dict[str, Path]) -> None:
    latest.mkdir(exist_ok=True)
    for stage, folder in folders.items():
        # A link is created beside the old one and renamed over it, so that `latest/<stage>` exists at any moment.
        new_link = latest / f".{stage}"
        # A run that was killed before the rename left its link.
        new_link.unlink(missing_ok=True)
        new_link.symlink_to(os.path.relpath(folder, latest))
        new_link.replace(latest / stage)
