"""Opens MLflow runs and logs to them. A run never makes a stage wait or fail.

    with pipeline_run("nightly", params={"seed": 7}):                     # `star run`
        with stage_run("distill", params={"distill.steps": 60}) as run:   # a child of it, here or in another process
            run.log_metrics({"ckd/loss": 2.31}, step=1)
            with child_run("seed 7") as child:                            # a child of the stage's run
                child.log_metrics({"exact_match": 0.5})

Every call only appends to the run's spool on disk (spool.py), and a thread sends it (sender.py). The tracking URI is
MLFLOW_TRACKING_URI, else a database in STAR_HOME with the artifacts beside it.

A run ends FINISHED, FAILED after an exception, or KILLED after Ctrl-C or SIGTERM. One exception: MLFLOW_RUN_ID names
a run that another program created, such as Kubeflow's MLflow plugin. The stage then logs to that run, and after
success leaves it open for that program to end.
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
from star.home import spools_folder
from star.sigterm import sigterm_raises_system_exit_by_default
from star.tracking.accelerators import TAG as ACCELERATORS_TAG
from star.tracking.accelerators import held_accelerators
from star.tracking.parent_run import PARENT_VARIABLE, SharedRun, shared_parent_run
from star.tracking.reason import reason_of
from star.tracking.sender import Sender, replay, send_events
from star.tracking.server import connect, mlflow_key, shown_uri, tracking_uri
from star.tracking.spool import Spool

logger = logging.getLogger(__name__)

_open_runs: list["Run"] = []


@dataclass
class Run:
    """A run that a stage logs to. Without a spool every call does nothing.

    Attributes:
        run_id: MLflow's id; None until the server has the run, which may be only after the work.
        url: of the run's page, if tracking is a server.
        waits_for_parent: the server does not have the parent run yet, so it is not asked for this one either.
    """

    spool: Spool | None = None
    sender: Sender | None = None
    run_id: str | None = None
    url: str | None = None
    experiment: str | None = None
    waits_for_parent: bool = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs numbers by name. Characters that MLflow refuses in a name (`pass@8`) become `_`."""
        values = {mlflow_key(key): float(value) for key, value in metrics.items()}
        self.record("metrics", values=values, step=step or 0)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Logs settings by name; each can be logged once per run."""
        self.record("params", values={mlflow_key(key): str(value)[:6000] for key, value in params.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, by which runs can be searched."""
        self.record("tags", values={mlflow_key(key): str(value)[:5000] for key, value in tags.items()})

    def log_inputs(self, datasets: Mapping[str, tuple[str, str, str]]) -> None:
        """Logs what the run read: name -> (digest, path or URI, kind of digest: `dvc` or `star`)."""
        entries = [
            {"name": name, "digest": digest, "source": source, "source_type": kind}
            for name, (digest, source, kind) in datasets.items()
        ]
        if entries:
            self.record("inputs", datasets=entries)

    def log_artifact(self, path: Path, *, to: str | None = None) -> None:
        """Logs a file or a folder, into the folder `to` of the run's artifacts."""
        if self.spool is None:
            return
        try:
            name = self.spool.copy_artifact(path)
        except OSError as error:
            logger.warning("%s is not logged: %s", path, error.strerror or error)
            return
        self.record("artifact", file=name, to=to)

    def record(self, kind: str, **fields: object) -> None:
        """Appends an event of any kind to the spool and wakes the sender."""
        if self.spool is not None:
            self.spool.append(kind=kind, **fields)
        if self.sender is not None:
            self.sender.new_events.set()

    @property
    def reference(self) -> str:
        """How a child run names this one as its parent: its id, or `key:KEY` while the server does not have it."""
        return self.run_id or (f"key:{self.spool.key}" if self.spool else "")


@contextmanager
def pipeline_run(
    name: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Opens the run of a whole pipeline: stages inside the block, here or in child processes, become its children."""
    before = os.environ.get(PARENT_VARIABLE)
    with _open_run(name, parent=None, params=params or {}, tags=tags or {}) as run:
        if run.spool and "kfp.pipeline_run_id" not in (tags or {}):
            # The tag of Kubeflow's MLflow plugin: one query then finds the runs of a pipeline, whatever started it.
            run.set_tags({"kfp.pipeline_run_id": run.run_id or run.spool.key})
            if run.run_id:
                # Its children inherit the tag from the server, so the server must have it before they start.
                with suppress(Exception):
                    send_events(run.spool)
        # Stages in child processes get the reference from their environment.
        os.environ[PARENT_VARIABLE] = run.reference
        try:
            yield run
        finally:
            del os.environ[PARENT_VARIABLE]
            if before is not None:
                os.environ[PARENT_VARIABLE] = before
            if spools_folder().is_dir():
                replay(spools_folder())  # stages that were killed, or whose events the server did not accept


@contextmanager
def stage_run(
    stage: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Opens a stage's run: the one of MLFLOW_RUN_ID, else a child of the pipeline's run, else one without a parent."""
    parent = os.environ.get(PARENT_VARIABLE)
    tags = {"star.stage": stage, **(tags or {})}
    # A runner that named a run owns the hierarchy. A shared run beside it would be a second one.
    shared = shared_parent_run() if parent is None and "MLFLOW_RUN_ID" not in os.environ else None
    if shared is None:
        with _open_run(stage, parent=parent, params=params or {}, tags=tags) as run, _accelerator_time(run):
            yield run
        return
    with (
        _open_shared_run(shared) as parent,
        _open_run(stage, parent=parent, params=params or {}, tags={**shared.tags, **tags}) as run,
        _accelerator_time(run),
    ):
        yield run


@contextmanager
def _accelerator_time(run: Run) -> Iterator[None]:
    """Logs how long the block held the accelerators of its task, also when it fails."""
    held = held_accelerators()
    if held is None:
        yield
        return
    run.set_tags({ACCELERATORS_TAG: held.to_json()})
    start = time.monotonic()
    try:
        yield
    finally:
        run.log_metrics(held.metrics(time.monotonic() - start))


@contextmanager
def child_run(
    name: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Opens a run below the innermost open one, for a seed or a suite. Without an open run nothing is tracked."""
    parent = current_run()
    if parent is None or parent.spool is None:
        yield Run()
        return
    with _open_run(name, parent=parent.reference, params=params or {}, tags=tags or {}) as run:
        yield run


def current_run() -> Run | None:
    """Returns the innermost run that is open in this process."""
    return _open_runs[-1] if _open_runs else None


@contextmanager
def _open_shared_run(shared: SharedRun) -> Iterator[str]:
    """Opens a run that several processes share and yields its reference.

    No process knows whether it is the last one. Each of them sets the run RUNNING at its start and to its own result at
    its end, so that the last one's result remains.
    """
    run = _start_run(shared.name, existing_id=None, parent=None, tags=shared.tags, key=shared.key)
    run.record("reopen")
    status = "FAILED"
    try:
        yield run.reference or f"key:{shared.key}"
        status = "FINISHED"
    finally:
        _end_run(run, status=status, leave_open=False)


@contextmanager
def _open_run(name: str, *, parent: str | None, params: Mapping[str, object], tags: Mapping[str, str]) -> Iterator[Run]:
    # While the variable is set, MLflow would resume that run where a new one is meant.
    existing_id = os.environ.pop("MLFLOW_RUN_ID", None)
    try:
        run = _start_run(name, existing_id=existing_id, parent=parent, tags=tags)
        _open_runs.append(run)
        # Without it the run of a process that SIGTERM ends would stay RUNNING in MLflow.
        with sigterm_raises_system_exit_by_default():
            try:
                if params:
                    run.log_params(params)
                yield run
            except Exception:
                _end_run(run, status="FAILED", leave_open=False)
                raise
            # Ctrl-C and SIGTERM arrive as KeyboardInterrupt and SystemExit, which are not `Exception`s.
            except BaseException:
                _end_run(run, status="KILLED", leave_open=False)
                raise
            _end_run(run, status="FINISHED", leave_open=existing_id is not None)
    finally:
        if run in _open_runs:
            _open_runs.remove(run)
        if existing_id:
            os.environ["MLFLOW_RUN_ID"] = existing_id


def _start_run(
    name: str, *, existing_id: str | None, parent: str | None, tags: Mapping[str, str], key: str | None = None
) -> Run:
    """Creates the run's spool, asks the server for the run once, and starts the thread that sends.

    Args:
        existing_id: MLflow's id of a run that another program created; its name and tags are left as they are.
        parent: reference of the parent run; empty if the parent is not tracked, and then neither is this one.
        key: of a run that several processes share; otherwise the run gets a random one.
    """
    if parent == "" or not distributed.is_rank0():  # rank 0 reports for all ranks of a training
        return Run()
    description = {
        "name": name,
        "run_id": existing_id,
        "experiment": None,
        "parent": parent,
        "tags": {} if existing_id else {**_context_tags(), **tags},
        "start": int(time.time() * 1000),
    }
    # On disk before the first request: after a kill during it, `replay` still creates the run.
    spool = Spool.open(spools_folder() / (key or uuid.uuid4().hex), description)
    if spool.broken:
        return Run()
    run = Run(spool, waits_for_parent=(parent or "").startswith("key:"))
    if not run.waits_for_parent:  # otherwise the server did not answer when the parent run asked
        _create_on_server(run, spool, name=name, parent=parent)
    if existing_id and tags:
        run.set_tags(tags)
    run.sender = Sender(spool)
    run.sender.start()
    run.sender.new_events.set()
    return run


def _create_on_server(run: Run, spool: Spool, *, name: str, parent: str | None) -> None:
    """Creates the run on the server and takes over its id. A server that does not answer is a warning."""
    try:
        client = connect()
        if parent:
            above = client.get_run(parent)
            description = spool.read_run()
            inherited = {key: value for key, value in above.data.tags.items() if key.startswith("kfp.")}
            tags = {**inherited, **description["tags"]}
            # Before `send_events`, which creates the run from this file.
            spool.write_run({**description, "experiment": above.info.experiment_id, "tags": tags})
        send_events(spool)
    except Exception as error:  # a failure of tracking must never end the work
        logger.warning("%s is not tracked yet, it is kept in %s: %s", name, spool.folder, reason_of(error))
        return
    description = spool.read_run()
    run.run_id, run.experiment = description["run_id"], description["experiment"]
    uri = shown_uri(tracking_uri())
    if uri.startswith("http"):
        run.url = f"{uri.rstrip('/')}/#/experiments/{run.experiment}/runs/{run.run_id}"


def _context_tags() -> dict[str, str]:
    """Returns the tags that MLflow gives every run: who started it, from which file."""
    from mlflow.tracking.context.registry import resolve_tags

    return resolve_tags()


def _end_run(run: Run, *, status: str, leave_open: bool) -> None:
    """Records the end and sends the rest. Removes the spool if all of it arrived; otherwise `replay` sends it later."""
    if run.spool is None or run.sender is None:
        return
    run.record("end", status="RUNNING" if leave_open else status)
    arrived = run.sender.finish()
    if arrived and not run.spool.unsent_events():
        run.run_id = run.run_id or run.spool.read_run()["run_id"]
        run.spool.remove()
        return
    # `replay` takes only runs whose lock is free.
    with suppress(OSError):
        run.spool.owner_lock.release()
    if run.waits_for_parent:  # the parent run prints the warning for all of its children
        return
    error = run.sender.error
    logger.warning(
        "events of run %s wait in %s (%s): `star tracking replay` sends them",
        run.reference,
        run.spool.folder,
        reason_of(error) if error else "the server is slow",
    )
