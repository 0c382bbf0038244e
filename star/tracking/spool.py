"""Events of runs, on disk until the tracking server has them: a server that is slow, down or full never stops training.

Every run has a folder `spool/<key>` in the home: `run.json` says what it is, `events.jsonl` what happened in order, `sent` up to
which byte the server knows. A thread sends; what it could not send stays, and `star tracking replay` sends it later. Events carry
their own time, and the run its key as a tag, so that sending one twice changes nothing. A folder whose process is gone
without a last word belongs to a killed run, and is closed as such.
"""

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from star.errors import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

KEY_TAG = "star.run_key"
BATCH = 400  # metrics in one call
FINISH_SECONDS = 20.0  # that the end of a run waits for a slow server, at most
RETRY_SECONDS = (1.0, 30.0)  # between two tries: doubled from the first to the last
# What the server will never take; everything else may work later.
REJECTED = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"})

Event = dict[str, Any]


class Spool:
    """The folder of one run. One process writes it and holds its lock; one at a time sends from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder.name
        self.owner = FileLock(folder / "owner.lock")
        self.sending = FileLock(folder / "sending.lock")
        self.writing = threading.Lock()
        self.broken = False

    @classmethod
    def open(cls, folder: Path, run: dict[str, Any]) -> "Spool":
        """A new run's folder, owned by this process. A disk that takes no more is a warning, and nothing is kept then."""
        spool = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            spool.owner.acquire(timeout=0)
            if not (folder / "run.json").is_file():  # of a run that several processes share one may wait already
                spool.describe(run)
        except OSError as error:
            spool._give_up(error)
        return spool

    @property
    def run(self) -> dict[str, Any]:
        """What was noted of the run: name, experiment, parent, tags, start; `run_id` once the server has it."""
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    def describe(self, run: dict[str, Any]) -> None:
        """Writes `run.json` whole or not at all."""
        fresh = self.folder / "run.json.tmp"
        fresh.write_text(redacted(json.dumps(run, ensure_ascii=False)), encoding="utf-8")
        fresh.replace(self.folder / "run.json")

    def append(self, **event: Any) -> None:
        """Adds an event; its time is now."""
        line = redacted(json.dumps({"at": int(time.time() * 1000), **event}, ensure_ascii=False)) + "\n"
        if self.broken:
            return
        try:
            with self.writing, (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            self._give_up(error)

    def end_line(self) -> None:
        """Ends the line that a killed process left half written."""
        if self._has_events() and not (self.folder / "events.jsonl").read_bytes().endswith(b"\n"):
            with (self.folder / "events.jsonl").open("ab") as file:
                file.write(b"\n")

    def keep(self, path: Path) -> str:
        """Copies a file or folder to be sent later, for it may be gone by then, and returns the copy's name."""
        copies = self.folder / "files"
        name = f"{sum(1 for _ in copies.iterdir()) if copies.is_dir() else 0}/{path.name}"
        target = copies / name
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return name

    def pending(self) -> list[tuple[Event, int]]:
        """Events that were not sent, each with the offset behind it."""
        events = self.folder / "events.jsonl"
        if not events.is_file():
            return []
        found, offset = [], self._sent()
        with events.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                offset += len(line)
                with suppress(ValueError):  # a kill left half of it
                    found.append((json.loads(line), offset))
        return found

    def mark_sent(self, offset: int) -> None:
        """Stores that all events before this byte offset have arrived."""
        fresh = self.folder / "sent.tmp"
        fresh.write_text(str(offset))
        fresh.replace(self.folder / "sent")

    def ended(self) -> bool:
        """Whether the run has said its last word."""
        events = self.folder / "events.jsonl"
        return events.is_file() and any('"kind": "end"' in line for line in events.read_text("utf-8").splitlines())

    def last_time(self) -> int:
        """The time of the last event, in milliseconds; of the start when there is none."""
        lines = (self.folder / "events.jsonl").read_bytes().splitlines() if self._has_events() else []
        for line in reversed(lines):
            with suppress(ValueError):
                return json.loads(line)["at"]
        return self.run["start"]

    def remove(self) -> None:
        """Deletes the run's folder and releases its lock."""
        self.owner.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _has_events(self) -> bool:
        return (self.folder / "events.jsonl").is_file()

    def _sent(self) -> int:
        sent = self.folder / "sent"
        return int(sent.read_text()) if sent.is_file() else 0

    def _give_up(self, error: OSError) -> None:
        if not self.broken:
            self.broken = True
            log.warning("events of this run are not kept, %s cannot be written: %s", self.folder, error.strerror)


class Sender(threading.Thread):
    """Sends a run's events while the run goes on."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(daemon=True, name=f"tracking-{spool.key[:8]}")
        self.spool = spool
        self.woken, self.last = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Sends events whenever some are appended, until `finish`. Retries after growing pauses."""
        wait, longest = RETRY_SECONDS
        while not self.last.is_set():
            self.woken.wait()
            self.woken.clear()
            if self._fails():
                self.last.wait(wait)  # a server that is down is not asked at every event
                wait = min(2 * wait, longest)
                self.woken.set()
            else:
                wait = RETRY_SECONDS[0]
        self._fails()

    def finish(self) -> bool:
        """Sends what is left and says whether all of it arrived; waits for a slow server, not for one that is gone."""
        self.last.set()
        self.woken.set()
        self.join(FINISH_SECONDS)
        return not self.is_alive() and self.error is None

    def _fails(self) -> bool:
        try:
            deliver(self.spool)
            self.error = None
        except Exception as error:  # whatever is wrong with tracking, the work goes on
            self.error = error
        return self.error is not None


def deliver(spool: Spool) -> None:
    """Sends all pending events of a run in their order; makes the run first when the server has none.

    Raises:
        Exception: whatever stopped it; what was sent is marked.
    """
    if spool.broken:
        return
    from mlflow import MlflowClient

    from star.tracking.server import point_at_server

    with spool.sending.acquire(timeout=FINISH_SECONDS):
        point_at_server()
        client = MlflowClient()
        run_id = ensure_run(spool, client)
        while pending := spool.pending():
            for group, offset in _groups(pending):
                _send_or_reject(client, run_id, group, spool=spool)
                spool.mark_sent(offset)


def ensure_run(spool: Spool, client: "MlflowClient") -> str:
    """The server's id of the run, which is made when it is not there. A run that was made unnoticed is found by its key."""
    run = spool.run
    if run_id := run.get("run_id"):
        return run_id
    from star.tracking.server import experiment_id

    experiment = run["experiment"] or experiment_id(client)
    found = run_of_key(client, experiment, spool.key)
    if found is None:
        parent = _parent_id(run["parent"], client, experiment, spools=spool.folder.parent)
        tags = {**run["tags"], KEY_TAG: spool.key, **({"mlflow.parentRunId": parent} if parent else {})}
        found = client.create_run(experiment, start_time=run["start"], tags=tags, run_name=run["name"]).info.run_id
    spool.describe({**run, "run_id": found, "experiment": experiment})
    return found


def run_of_key(client: "MlflowClient", experiment: str, key: str) -> str | None:
    """Returns the id of the MLflow run whose tag holds this key of a spool, or None when there is none yet."""
    found = client.search_runs([experiment], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return found[0].info.run_id if found else None


def replay(spools: Path) -> tuple[int, list[str]]:
    """Sends what is left of runs whose process is gone, parents first, and closes those that were killed.

    Returns:
        how many runs were brought to their end, and why the next one could not be, if one is left.
    """
    done, left = 0, []
    for spool in _ownerless(spools):
        try:
            if not spool.ended():
                spool.end_line()
                spool.append(kind="end", status="KILLED", at=spool.last_time())
            deliver(spool)
            spool.remove()
            done += 1
        except Exception as error:
            from star.tracking.server import reason_of

            left.append(f"run {spool.key[:8]} waits in {spool.folder}: {reason_of(error)}")
            spool.owner.release()
            break  # the server that did not take this one will not take the next
    return done, left


def _ownerless(spools: Path) -> Iterator[Spool]:
    """The folders that no process owns, the oldest run first; a parent started before its children."""
    if not spools.is_dir():
        return
    folders = [folder for folder in spools.iterdir() if (folder / "run.json").is_file()]
    for folder in sorted(folders, key=lambda folder: Spool(folder).run["start"]):
        spool = Spool(folder)
        try:
            spool.owner.acquire(timeout=0)
        except Timeout:
            continue
        yield spool


def _parent_id(parent: str | None, client: "MlflowClient", experiment: str, *, spools: Path) -> str | None:
    """The server's id of the parent; `key:...` names one that was not made yet when its children began."""
    if not parent or not parent.startswith("key:"):
        return parent
    key = parent.removeprefix("key:")
    if found := run_of_key(client, experiment, key):
        return found
    spool = Spool(spools / key)
    if not (spool.folder / "run.json").is_file():
        return None
    with spool.sending.acquire(timeout=FINISH_SECONDS):
        return ensure_run(spool, client)


def _groups(pending: list[tuple[Event, int]]) -> Iterator[tuple[list[Event], int]]:
    """Consecutive metrics together, anything else alone; each group with the offset behind it."""
    group: list[Event] = []
    behind = 0
    for event, offset in pending:
        if group and (event["kind"] != "metrics" or group[-1]["kind"] != "metrics" or len(group) * 8 > BATCH):
            yield group, behind
            group = []
        group.append(event)
        behind = offset
    if group:
        yield group, behind


def _send_or_reject(client: "MlflowClient", run_id: str, group: list[Event], *, spool: Spool) -> None:
    from mlflow.exceptions import MlflowException

    try:
        _send(client, run_id, group, spool=spool)
    except MlflowException as error:
        if error.error_code not in REJECTED:
            raise
        if len(group) > 1:
            for event in group:
                _send_or_reject(client, run_id, [event], spool=spool)
            return
        said = redacted(str(error).partition("\n")[0][:300])
        log.warning("MLflow takes no %s of run %s: %s", group[0]["kind"], run_id, said)


def _send(client: "MlflowClient", run_id: str, group: list[Event], *, spool: Spool) -> None:
    from mlflow.entities import Metric, Param, RunTag

    event = group[0]
    match event["kind"]:
        case "metrics":
            metrics = [
                Metric(key, float(value), event["at"], event["step"])
                for event in group
                for key, value in event["values"].items()
            ]
            client.log_batch(run_id, metrics=metrics)
        case "params":
            client.log_batch(run_id, params=[Param(key, value) for key, value in event["values"].items()])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in event["values"].items()])
        case "inputs":
            client.log_inputs(run_id, datasets=[_dataset(**entry) for entry in event["datasets"]])
        case "artifact":
            client.log_artifact(run_id, str(spool.folder / "files" / event["file"]), event.get("to"))
        case "end" if event["status"] == "RUNNING":  # a lent run: its end is its owner's
            client.update_run(run_id, status="RUNNING")
        case "end":
            client.set_terminated(run_id, event["status"], event["at"])
            if event["status"] != "FINISHED":
                _close_children(client, run_id, event["at"])
        case "reopen":
            client.update_run(run_id, status="RUNNING")


def _close_children(client: "MlflowClient", run_id: str, at: int) -> None:
    """A stage that was killed outright could not say so itself."""
    experiment = client.get_run(run_id).info.experiment_id
    still_open = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
    for child in client.search_runs([experiment], filter_string=still_open):
        client.set_terminated(child.info.run_id, "KILLED", at)


def _dataset(name: str, digest: str, source: str, source_type: str):
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(name=name, digest=digest[:36], source_type=source_type, source=json.dumps({"uri": source}))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", name)])
