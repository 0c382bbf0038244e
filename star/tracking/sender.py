"""Sends the events of runs to the tracking server: by a thread during the run, later by `star tracking replay`.

spool.py shows what lies on disk. Sending a run means

    create_or_find_run    the MLflow run with the tag `star.run_key`; its parent run is created first
    send_events           all events that were not sent, in their order; consecutive metrics in one call

Any error stops the sending and is not raised to the training. The thread tries again after 1 s, 2 s, 4 s ... 30 s, as
long as the run goes on. An event that the server will never accept (such as a parameter with another value) is a
warning and is skipped.
"""

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from star.redaction import redacted
from star.tracking.reason import reason_of
from star.tracking.searches import read_pages
from star.tracking.server import configure_mlflow, experiment_id
from star.tracking.spool import Event, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

logger = logging.getLogger(__name__)

KEY_TAG = "star.run_key"
METRICS_PER_CALL = 400
FINISH_SECONDS = 20.0  # the longest time that the end of a run waits for a slow server
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two attempts; doubled from the first to the longest
# The server will never accept an event with these errors; with any other error it may accept it later.
PERMANENT_ERRORS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"})


class Sender(threading.Thread):
    """Sends a run's events while the run goes on."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(daemon=True, name=f"tracking-{spool.key[:8]}")
        self.spool = spool
        self.new_events, self.finishing = threading.Event(), threading.Event()
        self.error: Exception | None = None  # of the latest attempt

    def run(self) -> None:
        """Sends events whenever some are appended, until `finish`. Retries after growing pauses."""
        pause = FIRST_PAUSE
        while not self.finishing.is_set():
            self.new_events.wait()
            # Cleared before the sending, so that an event appended during it wakes the thread again.
            self.new_events.clear()
            if self._try_to_send():
                pause = FIRST_PAUSE
            else:
                # Without a pause an unavailable server would be asked again at every event.
                self.finishing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                self.new_events.set()
        # `finish` may have ended the pause after a failure: this is the last attempt.
        self._try_to_send()

    def finish(self) -> bool:
        """Sends the rest and returns whether all of it arrived. Waits for a slow server, not for an unavailable one."""
        # In this order: after the other one the thread could send, miss `finishing` and wait for events again.
        self.finishing.set()
        self.new_events.set()
        self.join(FINISH_SECONDS)
        return not self.is_alive() and self.error is None

    def _try_to_send(self) -> bool:
        try:
            send_events(self.spool)
            self.error = None
        except Exception as error:  # a failure of tracking must never end the work
            self.error = error
        return self.error is None


def send_events(spool: Spool) -> None:
    """Sends all unsent events of a run in their order. Creates the run first if the server does not have it.

    Raises:
        Exception: any error that stopped it; the events sent before it are marked as sent.
    """
    if spool.broken:
        return
    from mlflow import MlflowClient

    # Without the lock two senders could both find no run on the server and create it twice.
    with spool.sending_lock.acquire(timeout=FINISH_SECONDS):
        configure_mlflow()
        client = MlflowClient()
        run_id = create_or_find_run(spool, client)
        while unsent := spool.unsent_events():
            for batch, offset in _batches(unsent):
                _send_or_skip(client, run_id, batch, spool=spool)
                # After the call: a kill between the two sends the batch again, which changes nothing.
                spool.mark_sent(offset)


def create_or_find_run(spool: Spool, client: "MlflowClient") -> str:
    """Returns the MLflow id of the run, which is created if the server does not have it.

    If the answer to an earlier creation was lost, the run is found by its key.
    """
    run = spool.read_run()
    if run_id := run.get("run_id"):
        return run_id
    experiment = run["experiment"] or experiment_id(client)
    found = find_run_by_key(client, experiment, spool.key)
    if found is None:
        parent = _parent_run_id(run["parent"], client, experiment, spools=spool.folder.parent)
        tags = {**run["tags"], KEY_TAG: spool.key, **({"mlflow.parentRunId": parent} if parent else {})}
        found = client.create_run(experiment, start_time=run["start"], tags=tags, run_name=run["name"]).info.run_id
    spool.write_run({**run, "run_id": found, "experiment": experiment})
    return found


def find_run_by_key(client: "MlflowClient", experiment: str, key: str) -> str | None:
    """Returns the id of the MLflow run with this key as its tag, or None if there is none yet."""
    found = client.search_runs([experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0].info.run_id if found else None


def replay(spools: Path) -> tuple[int, list[str]]:
    """Sends the rest of all runs whose process has ended, parents first, and closes those that were killed.

    Returns:
        The number of runs that are complete on the server now, and a line for the run that could not be sent, if any.
    """
    done, left = 0, []
    for spool in _spools_of_ended_processes(spools):
        try:
            if not spool.has_end_event():
                spool.end_partial_line()
                # The run ended when its process did, not when it is replayed.
                spool.append(kind="end", status="KILLED", at=spool.last_event_time())
            send_events(spool)
            spool.remove()
            done += 1
        except Exception as error:
            left.append(f"run {spool.key[:8]} waits in {spool.folder}: {reason_of(error)}")
            spool.owner_lock.release()
            break  # the server that did not accept this run will not accept the next one
    return done, left


def _spools_of_ended_processes(spools: Path) -> Iterator[Spool]:
    """Yields the spools whose lock is free, in the order of their starts: a parent run starts before its children."""
    if not spools.is_dir():
        return
    found = [spool for spool in map(Spool, spools.iterdir()) if spool.exists()]
    for spool in sorted(found, key=lambda spool: spool.read_run()["start"]):
        try:
            spool.owner_lock.acquire(timeout=0)
        except Timeout:
            continue
        yield spool


def _parent_run_id(parent: str | None, client: "MlflowClient", experiment: str, *, spools: Path) -> str | None:
    """Returns the MLflow id of a parent run, which is an id or `key:KEY` of a run that the server did not have yet."""
    if not parent or not parent.startswith("key:"):
        return parent
    key = parent.removeprefix("key:")
    if found := find_run_by_key(client, experiment, key):
        return found
    spool = Spool(spools / key)
    if not spool.exists():
        return None
    with spool.sending_lock.acquire(timeout=FINISH_SECONDS):
        return create_or_find_run(spool, client)


def _batches(unsent: list[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Yields consecutive metrics events together, any other event alone; each batch with the offset behind it."""
    batch: list[Event] = []
    batch_end = 0
    for event, offset in unsent:
        is_metrics = event["kind"] == "metrics"
        # An event has about eight metrics.
        if batch and (not is_metrics or batch[-1]["kind"] != "metrics" or len(batch) * 8 > METRICS_PER_CALL):
            yield batch, batch_end
            batch = []
        batch.append(event)
        batch_end = offset
    if batch:
        yield batch, batch_end


def _send_or_skip(client: "MlflowClient", run_id: str, batch: list[Event], *, spool: Spool) -> None:
    """Sends a batch. Of events that the server will never accept, prints a warning and skips them."""
    from mlflow.exceptions import MlflowException

    try:
        _send(client, run_id, batch, spool=spool)
    except MlflowException as error:
        if error.error_code not in PERMANENT_ERRORS:
            raise
        if len(batch) > 1:
            # One event is at fault; the others of the batch must arrive.
            for event in batch:
                _send_or_skip(client, run_id, [event], spool=spool)
            return
        said = redacted(str(error).partition("\n")[0][:300])
        logger.warning("MLflow does not accept the %s of run %s: %s", batch[0]["kind"], run_id, said)


def _send(client: "MlflowClient", run_id: str, batch: list[Event], *, spool: Spool) -> None:
    from mlflow.entities import Metric, Param, RunTag

    event = batch[0]
    match event["kind"]:
        case "metrics":
            metrics = [
                Metric(key, float(value), event["at"], event["step"])
                for event in batch
                for key, value in event["values"].items()
            ]
            client.log_batch(run_id, metrics=metrics)
        case "params":
            client.log_batch(run_id, params=[Param(key, value) for key, value in event["values"].items()])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in event["values"].items()])
        case "inputs":
            client.log_inputs(run_id, datasets=[_dataset_input(**entry) for entry in event["datasets"]])
        case "artifact":
            client.log_artifact(run_id, str(spool.folder / "files" / event["file"]), event.get("to"))
        case "end" if event["status"] == "RUNNING":  # a run that another program created: that program ends it
            client.update_run(run_id, status="RUNNING")
        case "end":
            client.set_terminated(run_id, event["status"], event["at"])
            if event["status"] != "FINISHED":
                _end_running_children(client, run_id, event["at"])
        case "reopen":
            client.update_run(run_id, status="RUNNING")


def _end_running_children(client: "MlflowClient", run_id: str, at: int) -> None:
    """Closes child runs that are still RUNNING: a stage that was killed with SIGKILL could not record its end."""
    experiment = client.get_run(run_id).info.experiment_id
    still_running = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
    # All are read before the first is ended, because an ended one is not counted before the next page.
    for child in list(read_pages(client.search_runs, [experiment], filter_string=still_running)):
        client.set_terminated(child.info.run_id, "KILLED", at)


def _dataset_input(name: str, digest: str, source: str, source_type: str) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    # MLflow's column for the digest has 36 characters.
    dataset = Dataset(name=name, digest=digest[:36], source_type=source_type, source=json.dumps({"uri": source}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", name)])
