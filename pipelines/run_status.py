"""Describes a run at one moment, and cancels it: the texts of `star pipeline status` and `star pipeline cancel`."""

from collections.abc import Iterator
from datetime import UTC, datetime

from star.cluster.run_tasks import ENDED, RunStatus, Task
from star.cluster.task_log import Reason
from star.pipelines.kfp_client import KfpClient
from star.pipelines.run_reasons import failure_of, progress_line, told_by, waiting_reasons
from star.units import format_seconds

WORDS = {"SKIPPED": "NOT RUN", "UNSTARTED": "NOT YET"}  # other names of states here


def status_lines(client: KfpClient, status: RunStatus) -> Iterator[str]:
    """One line per task and shard, with its progress and what is known of a failure or a wait, and one for the run."""
    pods = client.pods_of(status.run_id)
    seconds = {task.key: _seconds_since(task.started) for task in status.tasks if task.state == "PENDING"}
    waits = waiting_reasons(status, pods.findings() if seconds else {}, seconds=seconds, pods=pods)
    failures = {}
    for task in status.tasks:
        line = task_line(task)
        if task.state == "FAILED":
            failures[task.name] = failure_of(client, status.run_id, task, pods=pods)
            line = f"{line}\n{failures[task.name].text}"
        if progress := progress_line(client, status.run_id, task):
            line = f"{line}  {progress}"
        if more := waits.pop(task.name, None) or told_by(client, status.run_id, task):
            line = f"{line}\n{more}"
        yield line
    for name, reason in waits.items():
        yield f"{'PENDING':<10} {name}\n{reason}"
    yield end_line(status, failures)


def task_line(task: Task) -> str:
    """The state of a task, its name, the number of its pod if one was lost before, and its seconds."""
    attempts = f"  pod {len(task.pods)}" if len(task.pods) > 1 else ""
    seconds = (
        f"  {format_seconds(round(task.seconds))}"
        if task.seconds and task.state in ENDED and task.state != "CACHED"
        else ""
    )
    return f"{WORDS.get(task.state, task.state):<10} {task.name}{attempts}{seconds}"


def end_line(status: RunStatus, failures: dict[str, Reason]) -> str:
    """The state of a run, and for a failed one the task that failed first and why."""
    line = f"{status.state:<10} run {status.run_id}"
    if status.state == "FAILED" and failures:
        task, reason = next(iter(failures.items()))
        return f"{line}  {task}: {reason.headline}"
    return f"{line}  {status.error}".rstrip()


def cancel(client: KfpClient, run_id: str) -> str:
    """Cancels a run and says what that does."""
    status = client.status(run_id)
    if status.ended:
        return f"run {run_id} has ended already ({status.state}): there is nothing to cancel"
    client.cancel(run_id)
    stopped = ", ".join(task.name for task in status.tasks if task.state in ("PENDING", "RUNNING")) or "no task yet"
    return (
        f"run {run_id} is being cancelled: stopping {stopped}. What has finished stays cached, and the exit handler still runs: "
        f"`star pipeline status {run_id} --wait` follows it"
    )


def _seconds_since(moment: datetime | None) -> float:
    return max(0.0, (datetime.now(UTC) - moment).total_seconds()) if moment else 0.0
