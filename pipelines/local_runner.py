"""Runs the pipeline on this machine with kfp.local: the DAG that compiles for a cluster, its tasks as processes, results cached.

All of it lives in one home folder (STAR_HOME, `./runs`): `latest/<stage>` links to each stage's folder, `mlflow.db` holds runs and
models, `logs/` what the stages printed, `cache/`, `pipeline/` and `work/` belong to the runner.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from star.config.experiment import Config
from star.errors import PipelineError
from star.folders.manifest import METRICS
from star.home import home
from star.progress import listening_to
from star.stages import STAGES
from star.tracking.runs import pipeline_run

FULL = 1 << 20  # bytes left below which a disk is full


@dataclass(frozen=True)
class PipelineResult:
    """Where each stage's folder is, and what ran."""

    folders: dict[str, Path]
    ran: list[str]
    seconds: float
    log: Path
    run_id: str | None

    def metrics(self, stage: str) -> dict[str, float]:
        return json.loads((self.folders[stage] / METRICS).read_text(encoding="utf-8"))


def run_local(config: Config) -> PipelineResult:
    """Runs the pipeline, shows its progress, and links the results under `latest/`.

    Raises:
        PipelineError: a stage failed; the message names it and where its log is.
    """
    from star.pipelines.progress_display import Display

    root = home()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    log = root / "logs" / f"{stamp}.log"
    events = root / "logs" / f"{stamp}.events.jsonl"
    # The limits are for the cluster; that a local process has none is known.
    warnings.filterwarnings("ignore", message=".*have no effect in the current local runner.*")
    log.parent.mkdir(parents=True, exist_ok=True)
    events.touch()
    began = time.monotonic()
    work_before = os.environ.get("STAR_WORK")
    os.environ["STAR_HOME"] = str(root)
    os.environ.setdefault("STAR_WORK", str(root / "work"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        parent = pipeline_run(config.name, params={"config": config.name, "seed": config.seed})
        with _sigterm_ends_stages(), parent as run, listening_to(str(events)), Display(events) as display:
            outputs = _execute(config, root=root, log=log, display=display)
    finally:
        if work_before is None:
            os.environ.pop("STAR_WORK", None)
    folders = {stage.name: Path(outputs[name].path) for stage, name in zip(STAGES, outputs, strict=True)}
    _link_latest(root / "latest", folders)
    return PipelineResult(folders, display.ran, time.monotonic() - began, log, run.run_id)


@contextlib.contextmanager
def _sigterm_ends_stages() -> Iterator[None]:
    """SIGTERM ends the running stage too: kfp would wait for it to finish before anything else happens."""
    import psutil

    def end(*_: object) -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        sys.exit(143)

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _execute(config: Config, *, root: Path, log: Path, display) -> dict:
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
        with log.open("w", encoding="utf-8", buffering=1) as file, contextlib.redirect_stdout(file):
            outputs = pipeline().outputs
    except RuntimeError as error:
        failed = display.failure()
        if failed is None and shutil.disk_usage(root).free < FULL:
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
        link = latest / stage
        fresh = latest / f".{stage}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(folder, latest))
        fresh.replace(link)
