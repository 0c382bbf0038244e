"""Keeps the events of a run on disk until the tracking server has them: a training never waits for the server.

Every run has a folder in STAR_HOME. A training writes there and goes on; the thread of sender.py sends from there.
While the server is unavailable, `star distill` leaves this in runs/spool:

    4f0c1e0b9a5d4d6c8d52a3a5a1f0e7b2/       the run's key; MLflow gets it as the tag `star.run_key`
        run.json        {"name": "distill", "run_id": null, "experiment": null, "parent": null, "tags": {...}, "start": 1764...}
        events.jsonl    {"at": 1764368690012, "kind": "params", "values": {"distill.steps": "60"}}
                        {"at": 1764368694508, "kind": "metrics", "values": {"ckd/loss": 2.31}, "step": 1}
                        {"at": 1764368699120, "kind": "artifact", "file": "0/report.html", "to": null}
                        {"at": 1764368699400, "kind": "end", "status": "FINISHED"}
        files/0/report.html     a copy, because the original may be gone later
        sent                    byte offset in events.jsonl; the server has all events before it (missing: it has none)
        owner.lock              locked by the process of the run while it lives
        sending.lock            locked by the process that sends

Later the server answers again. The thread of the run, or `star tracking replay` when the process has ended, then

 1. looks for an MLflow run with the tag `star.run_key`, creates one if there is none, and writes its id to run.json;
 2. sends the events after the offset in `sent`, with their own times, and moves the offset on after each call;
 3. deletes the folder after the `end` event.

An event can be sent twice, when the server took it and the answer was lost. That changes nothing: a metric is stored
by its key, step and time, a parameter or tag by its key, and the run is found by its tag. A folder whose owner.lock
is free and that has no `end` event belongs to a killed process; its run is closed as KILLED.
"""

import json
import logging
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from star.folders.owners import create_private
from star.redaction import known_masked, redacted_values

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
SENT_FILE = "sent"
REPORTS = (".html", ".md", ".json", ".jsonl", ".txt", ".csv")

Event = dict[str, Any]  # {"at": milliseconds, "kind": ..., and the fields of that kind}


class Spool:
    """The folder of one run. One process writes to it and holds its lock; one process at a time sends from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder.name
        self.events_file = folder / EVENTS_FILE
        self.owner_lock = FileLock(folder / "owner.lock")
        self.sending_lock = FileLock(folder / "sending.lock")
        self._append_lock = threading.Lock()
        self.broken = False  # the disk refused a write; nothing more is recorded

    @classmethod
    def open(cls, folder: Path, run: dict[str, Any]) -> "Spool":
        """Creates a run's folder, owned by this process. If the disk refuses, prints a warning; the spool is `broken`."""
        spool = cls(folder)
        try:
            create_private(folder)
            spool.owner_lock.acquire(timeout=0)
            # A run that several processes share may have a folder from an earlier process already.
            if not spool.exists():
                spool.write_run(run)
        except OSError as error:
            spool._stop_recording(error)
        return spool

    def exists(self) -> bool:
        """Whether the folder is that of a run. An empty one is being created or removed."""
        return (self.folder / RUN_FILE).is_file()

    def read_run(self) -> dict[str, Any]:
        """Reads run.json: name, experiment, parent, tags, start; `run_id` is null until the server has the run."""
        return json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))

    def write_run(self, run: dict[str, Any]) -> None:
        """Writes run.json completely or not at all."""
        temporary = self.folder / f"{RUN_FILE}.tmp"
        temporary.write_text(json.dumps(redacted_values(run), ensure_ascii=False), encoding="utf-8")
        temporary.replace(self.folder / RUN_FILE)

    def append(self, **event: Any) -> None:
        """Appends an event; its time is now unless `at` is given. Secrets are masked."""
        line = json.dumps({"at": int(time.time() * 1000), **redacted_values(event)}, ensure_ascii=False) + "\n"
        if self.broken:
            return
        try:
            # Metrics come from several threads: the training's and that of the system metrics.
            with self._append_lock, self.events_file.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            self._stop_recording(error)

    def end_partial_line(self) -> None:
        """Ends the line that a killed process left half written, so that the next event has a line of its own."""
        if self.events_file.is_file() and not self.events_file.read_bytes().endswith(b"\n"):
            with self.events_file.open("ab") as file:
                file.write(b"\n")

    def copy_artifact(self, path: Path) -> str:
        """Copies a file or folder to files/ and returns its name there. The original may be gone when it is sent."""
        copies = self.folder / "files"
        name = f"{sum(1 for _ in copies.iterdir()) if copies.is_dir() else 0}/{path.name}"
        target = copies / name
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        for file in (target, *target.rglob("*")):
            _mask_secrets_of_environment(file)
        return name

    def unsent_events(self) -> list[tuple[Event, int]]:
        """Returns the events that were not sent, each with the byte offset behind it."""
        if not self.events_file.is_file():
            return []
        found, offset = [], self._sent_offset()
        # Read as bytes, because the offset counts bytes and not characters.
        with self.events_file.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                # A damaged line counts too: the offsets of the events behind it are positions in the file.
                offset += len(line)
                with suppress(ValueError, RecursionError):  # a killed process left a part of the line
                    found.append((json.loads(line), offset))
        return found

    def mark_sent(self, offset: int) -> None:
        """Stores that the server has all events before this byte offset."""
        # A kill during a write in place could leave the first digits only: another, valid offset.
        temporary = self.folder / f"{SENT_FILE}.tmp"
        temporary.write_text(str(offset))
        temporary.replace(self.folder / SENT_FILE)

    def has_end_event(self) -> bool:
        """Whether the process of the run recorded its end; a killed one did not."""
        # Searched as text, because a kill may have left a line that is not valid JSON.
        return self.events_file.is_file() and any(
            '"kind": "end"' in line for line in self.events_file.read_text("utf-8").splitlines()
        )

    def last_event_time(self) -> int:
        """Returns the time of the last event in milliseconds, or of the run's start if there is none."""
        lines = self.events_file.read_bytes().splitlines() if self.events_file.is_file() else []
        for line in reversed(lines):
            with suppress(ValueError):
                return json.loads(line)["at"]
        return self.read_run()["start"]

    def remove(self) -> None:
        """Deletes the run's folder and releases its lock."""
        self.owner_lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _sent_offset(self) -> int:
        file = self.folder / SENT_FILE
        return int(file.read_text()) if file.is_file() else 0

    def _stop_recording(self, error: OSError) -> None:
        # One warning per run: a full disk would repeat it at every metric.
        if not self.broken:
            self.broken = True
            logger.warning("events of this run are not recorded, %s cannot be written: %s", self.folder, error.strerror)


def _mask_secrets_of_environment(file: Path) -> None:
    """Masks them in a report. It also quotes rows and answers, which may look like secrets and stay as they are."""
    if file.suffix in REPORTS and file.is_file():
        text = file.read_bytes().decode("utf-8", "surrogateescape")
        if (masked := known_masked(text)) != text:
            file.write_bytes(masked.encode("utf-8", "surrogateescape"))
