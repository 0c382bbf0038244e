"""Shows the progress of `star run`: a bar with the time left per step of work on a terminal, plain lines elsewhere.

The stages run in other processes and append one JSON object per line to an event file (star/progress.py); a thread here reads it:

    {"time": 1.0, "kind": "started", "stage": "distill"}
    {"time": 2.5, "kind": "progress", "label": "distil the student (CKD)", "done": 20, "total": 270}
    {"time": 9.0, "kind": "finished", "stage": "distill", "cached": false, "taken_from": null}
    {"time": 9.0, "kind": "failed", "stage": "distill", "error": "...", "input_fault": true}     (instead of finished)
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from star.stages import STAGES
from star.terminal import console
from star.units import format_seconds

LINE_SECONDS = 15.0  # between two progress lines where there is no terminal
POLL_SECONDS = 0.25


class ProgressDisplay:
    """Context manager that draws the events of the stages until the block ends.

    Attributes:
        ran: Names of the stages that started, so far.
    """

    def __init__(self, events: Path) -> None:
        # stderr, because kfp prints to stdout, which is redirected to the log meanwhile.
        self.console = console(file=sys.stderr)
        self.events = events
        self.position = 0  # in the event file, in bytes
        self.ran: list[str] = []
        self.answered: list[str] = []  # stages that found their finished result
        self.failed: dict[str, Any] | None = None
        self.stage, self.stage_start = "", 0.0
        self.last_line_time = 0.0
        self.bars: dict[str, TaskID] = {}  # label -> bar
        self.first_progress: dict[str, tuple[float, int]] = {}  # label -> time and steps done of its first event
        # The reading thread and `failure` read the event file, one at a time.
        self.reading = threading.Lock()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._poll_events, daemon=True)
        self.progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<42}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>4.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "ProgressDisplay":
        self.progress.start()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        # The thread may end between two looks at the file, so the rest is read once more.
        self.thread.join()
        self._read_events()
        for stage in STAGES:
            if error[0] is None and stage.name not in (*self.ran, *self.answered):
                self._print(f"{stage.name:<16} unchanged, taken from the cache")
        self.progress.stop()

    def failure(self) -> dict[str, Any] | None:
        """Reads the remaining events and returns that of the stage that failed, or None."""
        self._read_events()
        return self.failed

    def _poll_events(self) -> None:
        while not self.stopping.wait(POLL_SECONDS):
            self._read_events()

    def _read_events(self) -> None:
        with self.reading, self.events.open(encoding="utf-8") as file:
            file.seek(self.position)
            # A line without its newline is still being written. It is read again next time.
            while (line := file.readline()).endswith("\n"):
                self.position = file.tell()
                self._handle(json.loads(line))

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "started":
            self.stage, self.stage_start = event["stage"], event["time"]
            self.ran.append(self.stage)
            number = [stage.name for stage in STAGES].index(self.stage) + 1
            self._print(f"[{number}/{len(STAGES)}] {self.stage}", not_on_terminal=True)
        elif kind == "progress":
            self._show_progress(event)
        elif kind == "finished" and event["cached"]:
            self.answered.append(event["stage"])
            place = f", taken from {event['taken_from']}" if event["taken_from"] else ""
            self._print(f"{event['stage']:<16} already done{place}")
        elif kind == "finished":
            self._hide_bars()
            self._print(f"{event['stage']:<16} done in {format_seconds(round(event['time'] - self.stage_start))}")
        elif kind == "failed":
            self._hide_bars()
            self.failed = event

    def _show_progress(self, event: dict[str, Any]) -> None:
        label, done, total = event["label"], event["done"], event["total"]
        if label not in self.bars:
            self._hide_bars()
            self.bars[label] = self.progress.add_task(f"{self.stage:<16} {label}", total=total)
            self.first_progress[label] = (event["time"], done)
        self.progress.update(self.bars[label], completed=done)
        now = time.monotonic()
        if now - self.last_line_time >= LINE_SECONDS and 0 < done < (total or 0):
            self.last_line_time = now
            # The pace is measured since the first event, so that the steps of an earlier, killed run do not count.
            first_time, first_done = self.first_progress[label]
            left = (event["time"] - first_time) / max(1, done - first_done) * (total - done)
            self._print(
                f"{self.stage:<16} {label}: {done}/{total}, about {format_seconds(round(left))} left",
                not_on_terminal=True,
            )

    def _hide_bars(self) -> None:
        for bar in self.bars.values():
            self.progress.update(bar, visible=False)

    def _print(self, text: str, *, not_on_terminal: bool = False) -> None:
        if not (not_on_terminal and self.console.is_terminal):
            self.progress.console.print(text, highlight=False)
