"""Runs, metrics and where they are kept; a stage writes there without ever depending on it.

The environment says where: MLFLOW_TRACKING_URI, else a database in STAR_HOME (`./runs` when not set) with the
artifacts beside it. `star run` opens a pipeline run, every stage a child run of it, and a stage may open grandchildren (a
seed, a suite). Under Kubeflow's MLflow plugin the task's run exists already (MLFLOW_RUN_ID): the stage writes into it and
leaves its end to whoever made it. What the server does not take now waits on disk (spool.py).
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from star import distributed
from star.home import spools
from star.sigterm import sigterm_raises_system_exit_by_default
from star.tracking.parent_run import PARENT_VARIABLE, Above, shared_parent
from star.tracking.server import connect, mlflow_key, reason_of, shown_uri, tracking_uri
from star.tracking.spool import Sender, Spool, deliver, replay

log = logging.getLogger(__name__)

_open_runs: list["Run"] = []


@dataclass
class Run:
    """A run that a stage writes to. Without tracking every call does nothing.

    `run_id` is None until the server has the run, which it may get only after the work.
    """

    spool: Spool | None = None
    sender: Sender | None = None
    run_id: str | None = None
    url: str | None = None  # its page, when tracking is a server
    experiment: str | None = None
    waits: bool = False  # for a run above it that the server does not have yet

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers by name; characters that MLflow refuses in a name (`pass@8`) become `_`."""
        values = {mlflow_key(key): float(value) for key, value in metrics.items()}
        self._write("metrics", values=values, step=step or 0)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Settings by name, once a run."""
        self._write("params", values={mlflow_key(key): str(value)[:6000] for key, value in params.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """What the run can be searched by."""
        self._write("tags", values={mlflow_key(key): str(value)[:5000] for key, value in tags.items()})

    def log_inputs(self, datasets: Mapping[str, tuple[str, str, str]]) -> None:
        """What the run read: name -> (digest, place, kind of digest: `dvc` or `star`)."""
        entries = [
            {"name": name, "digest": digest, "source": place, "source_type": kind}
            for name, (digest, place, kind) in datasets.items()
        ]
        if entries:
            self._write("inputs", datasets=entries)

    def log_artifact(self, path: Path, *, to: str | None = None) -> None:
        """A file or a folder, below the folder `to` of the run's artifacts."""
        if self.spool is None:
            return
        try:
            name = self.spool.keep(path)
        except OSError as error:
            log.warning("%s is not logged: %s", path, error.strerror or error)
            return
        self._write("artifact", file=name, to=to)

    @property
    def handle(self) -> str:
        """What a child calls it: its id, or its key while the server does not have it."""
        return self.run_id or (f"key:{self.spool.key}" if self.spool else "")

    def _write(self, kind: str, **event: object) -> None:
        if self.spool is not None:
            self.spool.append(kind=kind, **event)
        if self.sender is not None:
            self.sender.woken.set()


@contextmanager
def pipeline_run(
    name: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """The run of a whole pipeline: stages opened inside it, here or in child processes, become its children."""
    before = os.environ.get(PARENT_VARIABLE)
    with _tracked(name, parent=None, params=params or {}, tags=tags or {}) as run:
        if run.spool and "kfp.pipeline_run_id" not in (tags or {}):
            # The tag of Kubeflow's plugin: one query finds a pipeline's runs, whoever ran it.
            run.set_tags({"kfp.pipeline_run_id": run.run_id or run.spool.key})
            if run.run_id:  # now, for its children inherit it
                with suppress(Exception):
                    deliver(run.spool)
        os.environ[PARENT_VARIABLE] = run.handle
        try:
            yield run
        finally:
            del os.environ[PARENT_VARIABLE]
            if before is not None:
                os.environ[PARENT_VARIABLE] = before
            if spools().is_dir():
                replay(spools())  # stages that were killed, or that the server did not listen to


@contextmanager
def stage_run(
    stage: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """The run of one stage: the run of MLFLOW_RUN_ID, else a child of the pipeline's run, else a run of its own.

    It ends FINISHED, FAILED after an exception, KILLED after Ctrl-C or SIGTERM. A lent run is left open after success.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    tags = {"star.stage": stage, **(tags or {})}
    above = shared_parent() if parent is None and "MLFLOW_RUN_ID" not in os.environ else None
    if above is None:
        with _tracked(stage, parent=parent, params=params or {}, tags=tags) as run:
            yield run
        return
    with (
        _shared(above) as parent,
        _tracked(stage, parent=parent, params=params or {}, tags={**above.tags, **tags}) as run,
    ):
        yield run


@contextmanager
def child_run(
    name: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """A run below the one that is open: a seed, a suite. Without an open run it is tracked nowhere."""
    parent = current_run()
    if parent is None or parent.spool is None:
        yield Run()
        return
    with _tracked(name, parent=parent.handle, params=params or {}, tags=tags or {}) as run:
        yield run


def current_run() -> Run | None:
    """The innermost run that is open in this process."""
    return _open_runs[-1] if _open_runs else None


@contextmanager
def _shared(above: Above) -> Iterator[str]:
    """A run that several processes share. The process that makes it need not end it: each stage leaves it as the stage ended."""
    run = _start(above.name, lent=None, parent=None, tags=above.tags, key=above.key)
    run._write("reopen")
    status = "FAILED"
    try:
        yield run.handle or f"key:{above.key}"
        status = "FINISHED"
    finally:
        _end(run, status=status, leave_open=False)


@contextmanager
def _tracked(name: str, *, parent: str | None, params: Mapping[str, object], tags: Mapping[str, str]) -> Iterator[Run]:
    lent = os.environ.pop("MLFLOW_RUN_ID", None)  # left there, MLflow would resume it where a new run is meant
    try:
        run = _start(name, lent=lent, parent=parent, tags=tags)
        _open_runs.append(run)
        with sigterm_raises_system_exit_by_default():
            try:
                if params:
                    run.log_params(params)
                yield run
            except Exception:
                _end(run, status="FAILED", leave_open=False)
                raise
            except BaseException:
                _end(run, status="KILLED", leave_open=False)
                raise
            _end(run, status="FINISHED", leave_open=lent is not None)
    finally:
        if run in _open_runs:
            _open_runs.remove(run)
        if lent:
            os.environ["MLFLOW_RUN_ID"] = lent


def _start(name: str, *, lent: str | None, parent: str | None, tags: Mapping[str, str], key: str | None = None) -> Run:
    if parent == "" or not distributed.is_rank0():  # rank 0 reports for all ranks of a training
        return Run()
    described = {
        "name": name,
        "run_id": lent,
        "experiment": None,
        "parent": parent,
        "tags": {} if lent else {**_context_tags(), **tags},
        "start": int(time.time() * 1000),
    }
    spool = Spool.open(spools() / (key or uuid.uuid4().hex), described)
    if spool.broken:
        return Run()
    run = Run(spool, waits=(parent or "").startswith("key:"))
    if not run.waits:  # else the server was asked already
        _introduce(run, name=name, parent=parent)
    if lent and tags:
        run.set_tags(tags)
    run.sender = Sender(spool)
    run.sender.start()
    run.sender.woken.set()
    return run


def _introduce(run: Run, *, name: str, parent: str | None) -> None:
    """Has the server make the run, or notes that it does not answer now."""
    try:
        client = connect()
        if parent:
            above = client.get_run(parent)
            described = run.spool.run
            inherited = {key: value for key, value in above.data.tags.items() if key.startswith("kfp.")}
            tags = {**inherited, **described["tags"]}
            run.spool.describe({**described, "experiment": above.info.experiment_id, "tags": tags})
        deliver(run.spool)
    except Exception as error:  # whatever is wrong with tracking, the work goes on
        log.warning("%s is not tracked yet, it is kept in %s: %s", name, run.spool.folder, reason_of(error))
        return
    described = run.spool.run
    run.run_id, run.experiment = described["run_id"], described["experiment"]
    uri = shown_uri(tracking_uri())
    if uri.startswith("http"):
        run.url = f"{uri.rstrip('/')}/#/experiments/{run.experiment}/runs/{run.run_id}"


def _context_tags() -> dict[str, str]:
    """Who started it, from where: what MLflow notes of every run."""
    from mlflow.tracking.context.registry import resolve_tags

    return resolve_tags()


def _end(run: Run, *, status: str, leave_open: bool) -> None:
    if run.spool is None or run.sender is None:
        return
    run._write("end", status="RUNNING" if leave_open else status)
    arrived = run.sender.finish()
    if arrived and not run.spool.pending():
        run.run_id = run.run_id or run.spool.run["run_id"]
        run.spool.remove()
        return
    with suppress(OSError):
        run.spool.owner.release()
    if run.waits:  # the run above says it for all
        return
    error = run.sender.error
    reason = reason_of(error) if error else "the server is slow"
    log.warning(
        "events of run %s wait in %s (%s): `star tracking replay` sends them", run.handle, run.spool.folder, reason
    )
