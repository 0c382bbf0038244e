"""Progress of long work: a bar on a terminal, a line now and then in a log, an event stream for the runner that shows all stages.

`star run` sets STAR_EVENTS to a file; every stage appends one JSON object a line to it, and the runner draws them.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.units import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS = 15.0  # between two lines in a log
EVENT_SECONDS = 0.5  # between two events of one bar
WATCH_SECONDS = 0.5  # between two looks at the runner


def emit(**event: Any) -> None:
    """Appends one event for the runner, where one listens."""
    if path := os.environ.get("STAR_EVENTS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")


def say(text: str) -> None:
    """One line about the work, beside its bar."""
    print(text, file=sys.stderr, flush=True)


class Bar:
    """One piece of work, its number of steps known or None. `start` steps were done by an earlier, killed run."""

    def __init__(self, label: str, total: int | None, *, start: int = 0) -> None:
        self.label, self.total, self.done, self.start = label, total, start, start
        self.began = time.monotonic()
        self.shown_at = 0.0
        self.rich: Progress | None = None  # on a terminal only

    def __enter__(self) -> "Bar":
        if sys.stderr.isatty() and "STAR_EVENTS" not in os.environ:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.rich = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True))
            self.rich.start()
            self.task = self.rich.add_task(self.label, total=self.total, completed=self.start)
        self._show(force=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._show(force=True)
        if self.rich:
            self.rich.stop()

    def advance(self, steps: int = 1) -> None:
        """Counts `steps` more steps as done and updates the display when that is due."""
        self.done += steps
        self._show(force=False)

    def _show(self, *, force: bool) -> None:
        if self.rich:
            self.rich.update(self.task, completed=self.done)
            return
        listening = "STAR_EVENTS" in os.environ
        now = time.monotonic()
        if not force and now - self.shown_at < (EVENT_SECONDS if listening else LINE_SECONDS):
            return
        self.shown_at = now
        if listening:
            emit(kind="progress", label=self.label, done=self.done, total=self.total)
        elif self.total is None:
            print(f"{self.label}: {self.done}", file=sys.stderr, flush=True)
        else:
            left = (now - self.began) / max(1, self.done - self.start) * (self.total - self.done)
            estimate = f", about {format_seconds(round(left))} left" if self.done > self.start else ""
            print(f"{self.label}: {self.done}/{self.total}{estimate}", file=sys.stderr, flush=True)


@contextmanager
def listening_to(path: str) -> Iterator[None]:
    """Sends the events of this process and its children to `path`, and has the children end with this process."""
    os.environ |= {"STAR_EVENTS": path, "STAR_RUNNER": str(os.getpid())}
    try:
        yield
    finally:
        for name in ("STAR_EVENTS", "STAR_RUNNER"):
            os.environ.pop(name, None)


def end_with_runner() -> None:
    """Ends this process soon after the runner that started it, however that ended: an orphan would hold the stage's folder."""
    runner = int(os.environ.get("STAR_RUNNER", os.getpid()))
    if runner != os.getpid():
        threading.Thread(target=_watch, args=(runner,), daemon=True).start()


def _watch(runner: int) -> None:
    while True:
        time.sleep(WATCH_SECONDS)
        try:
            os.kill(runner, 0)
        except ProcessLookupError:
            os._exit(137)
