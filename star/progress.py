"""Shows the progress of long work: a bar on a terminal, a line every 15 s in a log, events for `star run`.

`star run` starts every stage as a process, names a file in STAR_EVENTS and its own process id in STAR_RUNNER. Stages
append one JSON object per line to that file, and `star run` draws them (pipelines/progress_display.py):

    {"time": 1764368690.1, "kind": "started", "stage": "distill"}
    {"time": 1764368692.6, "kind": "progress", "label": "distil the student (CKD)", "done": 12, "total": 60}
    {"time": 1764368705.9, "kind": "finished", "stage": "distill", "cached": false, "taken_from": null}
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

from star.errors import cure_of
from star.redaction import redact_error, redacted_values
from star.terminal import console, guard_terminal
from star.units import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS = 15.0  # between two lines in a log
EVENT_SECONDS = 0.5  # between two events of one bar
RUNNER_CHECK_SECONDS = 0.5  # between two checks that the runner is alive
KILLED_EXIT_STATUS = 137  # what a shell reports for a process that SIGKILL ended


def send_event(**event: Any) -> None:
    """Appends one event for `star run` to the file of STAR_EVENTS, without secrets. Does nothing without it."""
    if path := os.environ.get("STAR_EVENTS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **redacted_values(event)}) + "\n")


def print_line(text: str) -> None:
    """Prints one line about the work to stderr, where the progress is shown."""
    print(text, file=sys.stderr, flush=True)


class Bar:
    """Context manager that shows the progress of one piece of work.

    Args:
        label: what the work is, as `distil the student (CKD)`.
        total: its number of steps, or None if that is not known.
        start: steps that an earlier, killed run did. The estimate of the time left does not count them.
    """

    def __init__(self, label: str, total: int | None, *, start: int = 0) -> None:
        self.label, self.total, self.done, self.start = label, total, start, start
        self.began = time.monotonic()
        self.shown_at = 0.0
        self.rich: Progress | None = None  # on a terminal only

    def __enter__(self) -> "Bar":
        # Under `star run` the runner draws the progress of all stages from their events.
        if sys.stderr.isatty() and "STAR_EVENTS" not in os.environ:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (
                TextColumn("{task.description:<28}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self.rich = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console(sys.stderr))
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
        as_events = "STAR_EVENTS" in os.environ
        now = time.monotonic()
        if not force and now - self.shown_at < (EVENT_SECONDS if as_events else LINE_SECONDS):
            return
        self.shown_at = now
        if as_events:
            send_event(kind="progress", label=self.label, done=self.done, total=self.total)
        elif self.total is None:
            print(f"{self.label}: {self.done}", file=sys.stderr, flush=True)
        else:
            # Right after the start or a resume no step of this run is done, and max() prevents a division by zero.
            left = (now - self.began) / max(1, self.done - self.start) * (self.total - self.done)
            estimate = f", about {format_seconds(round(left))} left" if self.done > self.start else ""
            print(f"{self.label}: {self.done}/{self.total}{estimate}", file=sys.stderr, flush=True)


@contextmanager
def send_events_to(path: str) -> Iterator[None]:
    """Makes this process and its children send events to `path`, and the children exit when this process does."""
    os.environ |= {"STAR_EVENTS": path, "STAR_RUNNER": str(os.getpid())}
    try:
        yield
    finally:
        for name in ("STAR_EVENTS", "STAR_RUNNER"):
            os.environ.pop(name, None)


@contextmanager
def stage_process(stage: str) -> Iterator[None]:
    """Around a stage: ends its process with the runner that started it, sends it a failure, and lets no secret out.

    Whoever runs the stage prints its traceback (KFP's executor, a notebook), so secrets are masked in the error itself.
    """
    exit_with_runner()
    guard_terminal()
    try:
        yield
    except BaseException as error:
        cure = cure_of(error)
        message = cure or f"{type(error).__name__}: {error}"
        send_event(kind="failed", stage=stage, error=message, input_fault=cure is not None)
        if (masked := redact_error(error)) is error:
            raise
        # Its own cause and not None, which would hide that. The error itself is its context, which is not printed.
        raise masked from masked.__cause__


def exit_with_runner() -> None:
    """Exits this process soon after the runner that started it, also if that was killed with SIGKILL.

    Otherwise the orphaned stage would keep its workspace locked, and the next `star run` could not resume it.
    """
    runner = int(os.environ.get("STAR_RUNNER", os.getpid()))
    if runner != os.getpid():
        threading.Thread(target=_exit_when_gone, args=(runner,), daemon=True).start()


def _exit_when_gone(runner: int) -> None:
    while True:
        time.sleep(RUNNER_CHECK_SECONDS)
        try:
            os.kill(runner, 0)  # signal 0 only checks whether the process exists
        except ProcessLookupError:
            # sys.exit would end this thread only.
            os._exit(KILLED_EXIT_STATUS)
