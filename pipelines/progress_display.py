"""What `star run` shows while the pipeline runs: a row a stage with its bar and the time left, or plain lines where no one watches."""

import json
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from star.number_format import format_seconds
from star.stages import STAGES

LINE_SECONDS = 15.0
POLL_SECONDS = 0.25


class Display:
    """Follows the event stream of the stages in a thread of its own."""

    def __init__(self, events: Path) -> None:
        # The console keeps today's stdout: kfp's own output is redirected to the log while it draws.
        self.console = Console(file=sys.stderr)
        self.events = events
        self.position = 0
        self.ran: list[str] = []
        self.failed: dict | None = None
        self.stage, self.began = "", 0.0
        self.line_at = 0.0
        self.bar_began: dict[str, tuple[float, int]] = {}
        self.reading = threading.Lock()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description:<42}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>4.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, int] = {}

    def __enter__(self) -> "Display":
        self.progress.start()
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self.thread.join()
        self._read()
        for stage in STAGES:
            if exc[0] is None and stage.name not in self.ran:
                self._say(f"{stage.name:<16} unchanged, taken from the cache")
        self.progress.stop()

    def failure(self) -> dict | None:
        """The event of the stage that failed, once all events are read."""
        self._read()
        return self.failed

    def _follow(self) -> None:
        while not self.stopping.wait(POLL_SECONDS):
            self._read()

    def _read(self) -> None:
        with self.reading, self.events.open(encoding="utf-8") as file:
            file.seek(self.position)
            while (line := file.readline()).endswith("\n"):
                self.position = file.tell()
                self._handle(json.loads(line))

    def _handle(self, event: dict) -> None:
        kind = event["kind"]
        if kind == "started":
            self.stage, self.began = event["stage"], event["time"]
            self.ran.append(self.stage)
            number = [stage.name for stage in STAGES].index(self.stage) + 1
            self._say(f"[{number}/{len(STAGES)}] {self.stage}", only_lines=True)
        elif kind == "progress":
            self._show_bar(event)
        elif kind == "finished" and not event["cached"]:
            self._finish_bars()
            self._say(f"{event['stage']:<16} done in {format_seconds(round(event['time'] - self.began))}")
        elif kind == "failed":
            self._finish_bars()
            self.failed = event

    def _show_bar(self, event: dict) -> None:
        label, done, total = event["label"], event["done"], event["total"]
        if label not in self.tasks:
            self._finish_bars()
            self.tasks[label] = self.progress.add_task(f"{self.stage:<16} {label}", total=total)
            self.bar_began[label] = (event["time"], done)
        self.progress.update(self.tasks[label], completed=done)
        now = time.monotonic()
        if now - self.line_at >= LINE_SECONDS and 0 < done < (total or 0):
            self.line_at = now
            since, first = self.bar_began[label]
            left = (event["time"] - since) / max(1, done - first) * (total - done)
            self._say(
                f"{self.stage:<16} {label}: {done}/{total}, about {format_seconds(round(left))} left", only_lines=True
            )

    def _finish_bars(self) -> None:
        for task in self.tasks.values():
            self.progress.update(task, visible=False)

    def _say(self, text: str, *, only_lines: bool = False) -> None:
        if not (only_lines and self.console.is_terminal):
            self.progress.console.print(text, highlight=False, markup=False)
