"""Where runs, metrics and models are kept, and how a stage writes there without ever depending on it.

The environment says where: MLFLOW_TRACKING_URI, else a database in STAR_HOME (`./runs` when not set) with the
artifacts beside it. `star run` opens a pipeline run and every stage a child run of it. Under Kubeflow's MLflow plugin
the task's run exists already (MLFLOW_RUN_ID): the stage writes into it and leaves its end to whoever made it. A server
that does not answer costs seconds and one warning, never the work.
"""

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star.errors import InputError

if TYPE_CHECKING:
    from mlflow import ActiveRun, MlflowClient
    from mlflow.entities import Metric, Param

log = logging.getLogger(__name__)

PARENT_VARIABLE = "STAR_PARENT_RUN_ID"  # empty: the pipeline found no tracking, so its stages need not look again
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # MLflow's own patience is minutes: too long for training to wait
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout belongs to the command
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass
class Run:
    """A run that a stage writes to. Without tracking `run_id` is None and every call does nothing."""

    run_id: str | None = None
    url: str | None = None  # its page, when tracking is a server
    lost: bool = False  # a call failed: the later ones are not tried
    warned: bool = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers by name; characters that MLflow refuses in a name (`pass@8`) become `_`."""
        self._attempt(lambda client: client.log_batch(self.run_id, metrics=_metrics(metrics, step=step or 0)))

    def log_artifact(self, path: Path) -> None:
        """A file or a folder."""
        self._attempt(lambda client: client.log_artifact(self.run_id, str(path)))

    def log_dataset(self, name: str, *, digest: str, source: Path) -> None:
        """The data that the run reads, by the digest under which DVC tracks it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        place = json.dumps({"uri": str(source)})
        dataset = Dataset(name=name, digest=digest, source_type="local", source=place)
        tags = [InputTag(key="mlflow.data.context", value="training")]
        self._attempt(lambda client: client.log_inputs(self.run_id, [DatasetInput(dataset=dataset, tags=tags)]))

    def _log_params(self, params: Mapping[str, object]) -> None:
        self._attempt(lambda client: client.log_batch(self.run_id, params=_params(params)))

    def _attempt(self, action: Callable[["MlflowClient"], object]) -> None:
        if self.run_id is None or self.lost:
            return
        from mlflow import MlflowClient

        try:
            action(MlflowClient())
        except Exception as error:  # whatever is wrong with tracking, the work goes on
            self.lost = True
            self._warn("gets nothing more from here on", _reason(error))

    def _warn(self, what: str, reason: str) -> None:
        if not self.warned:  # a server that is gone says so once, not at every call
            self.warned = True
            log.warning("MLflow run %s %s: %s", self.run_id, what, reason)


def home() -> Path:
    """The folder of local runs: STAR_HOME, else `./runs`."""
    return Path(os.environ.get("STAR_HOME") or "runs").expanduser().resolve()


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the database in `home()`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def mlflow_key(name: str) -> str:
    """The name, with `_` for the characters that MLflow refuses in metrics, parameters and tags."""
    return re.sub(r"[^0-9A-Za-z_\-. :/]", "_", name)


def connect() -> "MlflowClient":
    """Points MLflow at the tracking of the environment and checks that it answers.

    Raises:
        InputError: it does not.
    """
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # its tracebacks; what failed is said in one line below
    import mlflow

    uri, given = tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        home().mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    if not given:
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow exported it; a later STAR_HOME must still count
    client = mlflow.MlflowClient()
    try:
        client.search_experiments(max_results=1)
    except Exception as error:
        cure = "start the server or correct MLFLOW_TRACKING_URI"
        raise InputError(f"MLflow at {_without_password(uri)} cannot be used: {cure} ({_reason(error)})") from error
    return client


def experiment_id(client: "MlflowClient") -> str:
    """The experiment MLFLOW_EXPERIMENT_NAME, else MLFLOW_EXPERIMENT_ID, else `star`; made when it does not exist."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name and (given := os.environ.get("MLFLOW_EXPERIMENT_ID")):
        return given
    name = name or "star"
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    # A server has a place of its own for artifacts; a plain database would put them into the working directory.
    artifacts = (home() / "mlartifacts").as_uri() if tracking_uri().startswith("sqlite:") else None
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:  # another process was first
        if found := client.get_experiment_by_name(name):
            return found.experiment_id
        raise


@contextmanager
def pipeline_run(
    name: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """The run of a whole pipeline: stages opened inside it, here or in child processes, become its children."""
    before = os.environ.get(PARENT_VARIABLE)
    with _tracked(name, parent=None, params=params or {}, tags=tags or {}) as run:
        if run.run_id and "kfp.pipeline_run_id" not in (tags or {}):
            # The tag of Kubeflow's plugin: one query finds a pipeline's runs, whoever ran it.
            run._attempt(lambda client: client.set_tag(run.run_id, "kfp.pipeline_run_id", run.run_id))
        os.environ[PARENT_VARIABLE] = run.run_id or ""
        try:
            yield run
        finally:
            del os.environ[PARENT_VARIABLE]
            if before is not None:
                os.environ[PARENT_VARIABLE] = before


@contextmanager
def stage_run(
    stage: str, *, params: Mapping[str, object] | None = None, tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """The run of one stage: the run of MLFLOW_RUN_ID, else a child of the pipeline's run, else a run of its own.

    It ends FINISHED, FAILED after an exception, KILLED after Ctrl-C or SIGTERM. A lent run is left open after success.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    with _tracked(stage, parent=parent, params=params or {}, tags={"star.stage": stage, **(tags or {})}) as run:
        yield run


@contextmanager
def _tracked(name: str, *, parent: str | None, params: Mapping[str, object], tags: Mapping[str, str]) -> Iterator[Run]:
    lent = os.environ.pop("MLFLOW_RUN_ID", None)  # left there, MLflow would resume it where a new run is meant
    try:
        run = _start(name, lent=lent, parent=parent, tags=tags)
        with _sigterm_raises():
            try:
                run._log_params(params)
                yield run
            except Exception:
                _end(run, status="FAILED", leave_open=False)
                raise
            except BaseException:
                _end(run, status="KILLED", leave_open=False)
                raise
            _end(run, status="FINISHED", leave_open=lent is not None)
    finally:
        if lent:
            os.environ["MLFLOW_RUN_ID"] = lent


def _start(name: str, *, lent: str | None, parent: str | None, tags: Mapping[str, str]) -> Run:
    if parent == "" or os.environ.get("RANK", "0") != "0":  # of several training processes the first one reports
        return Run()
    try:
        active = _start_lent(lent, tags=tags) if lent else _start_new(name, parent=parent, tags=tags)
    except Exception as error:  # whatever is wrong with tracking, the work goes on
        log.warning("%s is not tracked: %s", name, _reason(error))
        return Run()
    uri, info = _without_password(tracking_uri()), active.info
    page = f"{uri.rstrip('/')}/#/experiments/{info.experiment_id}/runs/{info.run_id}"
    return Run(info.run_id, page if uri.startswith("http") else None)


def _start_lent(run_id: str, *, tags: Mapping[str, str]) -> "ActiveRun":
    connect()
    import mlflow

    return mlflow.start_run(run_id=run_id, nested=True, tags=dict(tags))  # no name: it would rename the run


def _start_new(name: str, *, parent: str | None, tags: Mapping[str, str]) -> "ActiveRun":
    client = connect()
    import mlflow

    if parent is None:
        return mlflow.start_run(experiment_id=experiment_id(client), run_name=name, nested=True, tags=dict(tags))
    above = client.get_run(parent)
    inherited = {key: value for key, value in above.data.tags.items() if key.startswith("kfp.")}
    tags = {**inherited, **tags}
    experiment = above.info.experiment_id
    return mlflow.start_run(experiment_id=experiment, run_name=name, nested=True, parent_run_id=parent, tags=tags)


def _end(run: Run, *, status: str, leave_open: bool) -> None:
    if run.run_id is None:
        return
    import mlflow

    try:
        while (active := mlflow.active_run()) and active.info.run_id != run.run_id:
            mlflow.end_run(status)  # one that a library opened inside and did not close
        mlflow.end_run(status)
        client = mlflow.MlflowClient()
        if leave_open:
            client.update_run(run.run_id, status="RUNNING")
        if status != "FINISHED":
            _close_children(client, run.run_id)
    except Exception as error:  # whatever is wrong with tracking, the work goes on
        run._warn(f"could not be marked {status}", _reason(error))


def _close_children(client: "MlflowClient", run_id: str) -> None:
    """A stage that was killed outright could not say so itself."""
    experiment = client.get_run(run_id).info.experiment_id
    still_open = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([experiment], filter_string=still_open):
        client.set_terminated(child.info.run_id, "KILLED")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM (a pod's eviction) becomes SystemExit(143), so that the run can be closed; another handler stays."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _metrics(metrics: Mapping[str, float], *, step: int) -> list["Metric"]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(mlflow_key(key), float(value), now, step) for key, value in metrics.items()]


def _params(params: Mapping[str, object]) -> list["Param"]:
    from mlflow.entities import Param

    return [Param(mlflow_key(key), str(value)) for key, value in params.items()]


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _reason(error: BaseException) -> str:
    """One line; of a failed connection the innermost error, which says why (`Connection refused`)."""
    inner = error
    while inner.__cause__ or inner.__context__:
        inner = inner.__cause__ or inner.__context__
    said = inner if isinstance(inner, OSError) and not isinstance(error, InputError) else error
    return _cut(str(said)) or type(said).__name__


def _cut(text: str) -> str:
    return _without_password(text.strip().partition("\n")[0][:300])
