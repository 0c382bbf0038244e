"""Shows a run while it is followed: a line per task and change, why a task fails or waits, and how far the running ones are.

On a terminal the running tasks have bars below the lines; elsewhere their progress is a line every 15 s. Both come from the last progress
line of the task's own log. Names, errors and logs were written by others: each is redacted, and its further lines are indented.
"""

import sys
import time
from dataclasses import dataclass, field

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from star.cluster.run_tasks import RunStatus, Task
from star.cluster.task_log import Progress as TaskProgress
from star.cluster.task_log import Reason, progress_of, retries
from star.errors import InputError, PipelineError
from star.pipelines.kfp_client import KfpClient
from star.pipelines.run_reasons import failure_of, told_by, waiting_reasons
from star.pipelines.run_status import end_line, task_line
from star.pipelines.run_summary import summary_table
from star.redaction import redacted
from star.terminal import console, continued

LINE_SECONDS = 15.0  # between two progress lines of a task where there is no terminal


@dataclass
class RunDisplay:
    """Context manager that prints the changes between the statuses of a run to stderr.

    Attributes:
        failures: Why tasks failed, by their names, in the order in which that was seen.
    """

    client: KfpClient
    run_id: str
    failures: dict[str, Reason] = field(default_factory=dict)
    _states: dict[str, str] = field(default_factory=dict)  # by the task's key
    _attempts: dict[str, int] = field(default_factory=dict)
    _retries: dict[str, int] = field(default_factory=dict)  # within the task's last pod
    _pending_since: dict[str, float] = field(default_factory=dict)
    _told: dict[str, str] = field(default_factory=dict)  # name of a task -> why it waits, as last printed
    # When the progress of a task was printed, and what.
    _lines: dict[str, tuple[float, TaskProgress]] = field(default_factory=dict)
    _bars: dict[str, TaskID] = field(default_factory=dict)

    def __enter__(self) -> "RunDisplay":
        self.pods = self.client.pods_of(self.run_id)
        self._progress = Progress(
            TextColumn("{task.description:<42}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[left]}", markup=False),
            console=console(sys.stderr),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, status: RunStatus) -> None:
        """Prints what has changed since the last status."""
        for task in status.tasks:
            self._show_attempts(task)
            if task.state not in ("UNSTARTED", self._states.get(task.key)):
                self._show_state(task)
            self._states[task.key] = task.state
        self._show_waiting(status, self._show_progress(status))
        for key in [task.key for task in status.tasks if task.state != "RUNNING" and task.key in self._bars]:
            self._progress.remove_task(self._bars.pop(key))
        # Without a bar the display would be an empty line below the others.
        if self._bars:
            self._progress.start()
        else:
            self._progress.stop()

    def show_end(self, status: RunStatus) -> None:
        """Prints the table of the tasks, and how the run ended."""
        self._progress.stop()
        if status.tasks:
            self._progress.console.print(summary_table(status))
        self._line(end_line(status, self.failures))

    def _show_state(self, task: Task) -> None:
        # What an earlier task's failure left out is in the table at the end.
        if task.state == "SKIPPED":
            return
        self.failures.pop(task.name, None)
        line = task_line(task)
        if task.state == "FAILED":
            self.failures[task.name] = failure_of(self.client, self.run_id, task, pods=self.pods)
            line = f"{line}\n{self.failures[task.name].text}"
        elif told := told_by(self.client, self.run_id, task):
            line = f"{line}\n{told}"
        self._line(line)

    def _show_attempts(self, task: Task) -> None:
        before, now = self._attempts.get(task.key, 0), len(task.pods)
        if now > 1 and now > before:
            self._line(f"{'RETRIED':<10} {task.name}  its pod {now - 1} was lost, pod {now} follows")
            self._retries.pop(task.key, None)
        self._attempts[task.key] = now

    def _show_waiting(self, status: RunStatus, silent: set[str]) -> None:
        """Prints why tasks wait.

        Args:
            silent: Keys of tasks that run, as the server says, and whose pods have no log: one of several shards may not have started.
        """
        now = time.monotonic()
        pending = silent | {task.key for task in status.tasks if task.state == "PENDING"}
        self._pending_since = {key: self._pending_since.get(key, now) for key in pending}
        if not pending:
            return
        seconds = {key: now - since for key, since in self._pending_since.items()}
        reasons = waiting_reasons(status, self.pods.findings(), seconds=seconds, pods=self.pods)
        for name, reason in reasons.items():
            # A hint that names no cause changes with the time only, and is said once.
            cause = reason.partition(":")[0] if "kubectl" not in reason else "unknown"
            if self._told.get(name) != cause:
                self._told[name] = cause
                self._line(f"{'WAITS':<10} {name}  {reason}")

    def _show_progress(self, status: RunStatus) -> set[str]:
        """Prints how far the running tasks are. Returns the keys of those whose pods have no log."""
        silent = set()
        for task in status.tasks:
            if task.state != "RUNNING":
                continue
            try:
                log = self.client.pod_log(self.run_id, task.pods[-1], at_a_glance=True) if task.pods else None
            except (InputError, PipelineError):
                break  # the next status tells why, and comes late if all logs are waited for
            self._show_work(task, log or "")
            if log is None:
                silent.add(task.key)
        return silent

    def _show_work(self, task: Task, log: str) -> None:
        """Prints the attempts and the progress that a running task's log has."""
        told = retries(log)
        for retry in told[self._retries.get(task.key, 0) :]:
            self._line(f"{'RETRIED':<10} {task.name}  {retry}")
        self._retries[task.key] = len(told)
        if progress := progress_of(log):
            self._draw(task, progress)

    def _draw(self, task: Task, progress: TaskProgress) -> None:
        if self._progress.console.is_terminal:
            label = f"{task.name:<16} {redacted(progress.label)}"
            if task.key not in self._bars:
                self._bars[task.key] = self._progress.add_task(label, total=progress.total, left="")
            # The count and the estimate, which stand behind the label.
            left = str(progress).removeprefix(f"{progress.label}: ").replace(",", "")
            self._progress.update(
                self._bars[task.key],
                description=label,
                completed=progress.done,
                total=progress.total,
                left=left,
            )
            return
        printed, last = self._lines.get(task.key, (-LINE_SECONDS, None))
        if progress != last and time.monotonic() - printed >= LINE_SECONDS:
            self._lines[task.key] = time.monotonic(), progress
            self._line(f"{'':<10} {task.name}  {progress}")

    def _line(self, text: str) -> None:
        self._progress.console.print(continued(redacted(text)), highlight=False, soft_wrap=True)
