"""Reads the logs of a run's tasks: every attempt of every shard, from the pod, or from the archive after the pod is gone.

What KFP's launcher and Argo print around the task is left out, but for their errors.
"""

from collections.abc import Iterator

from star.cluster.run_tasks import RunStatus, Task
from star.cluster.task_log import work_lines
from star.errors import InputError
from star.pipelines.kfp_client import KfpClient

NO_LOG = {
    "CACHED": "no log: its result came from the cache",
    "SKIPPED": "no log: it did not run",
    "UNSTARTED": "no log yet: it has not started",
    "PENDING": "no log yet: its pod has not started (`star pipeline status` says why)",
}


def selected_tasks(status: RunStatus, name: str | None) -> list[Task]:
    """The tasks with this name, with all shards.

    Raises:
        InputError: the run has no such task.
    """
    tasks = status.named(name)
    if not tasks and name is not None:
        known = ", ".join(task.name for task in status.tasks) or "none yet"
        raise InputError(f"run {status.run_id} has no task {name}: it has {known}")
    return tasks


def log_lines(client: KfpClient, run_id: str, *, task: str | None) -> Iterator[tuple[str, str]]:
    """Yields (task and pod, line) for all that the tasks have printed by now, and says which of them have no log."""
    for selected in selected_tasks(client.status(run_id), task):
        for number, pod in enumerate(selected.pods, 1):
            name, log = _pod_name(selected, number), client.pod_log(run_id, pod)
            missing = NO_LOG.get(selected.state, "no log: it is gone, or its pod printed nothing")
            yield from ((name, line) for line in ([f"({missing})"] if log is None else work_lines(log)))
        if not selected.pods and task is not None:
            yield selected.name, f"({NO_LOG.get(selected.state, NO_LOG['PENDING'])})"


def follow_logs(client: KfpClient, run_id: str, *, task: str | None, poll_seconds: float) -> Iterator[tuple[str, str]]:
    """Yields (task and pod, line) for what the tasks print, as they print it, until they have ended."""
    printed: dict[str, int] = {}  # lines of each pod
    ended: set[str] = set()  # pods whose whole log was read
    for status in client.follow(run_id, poll_seconds=poll_seconds):
        tasks = selected_tasks(status, task) if status.tasks or status.ended else []
        for selected in tasks:
            for number, pod in enumerate(selected.pods, 1):
                if pod in ended or selected.state == "PENDING":
                    continue
                is_over = selected.seconds is not None or number < len(selected.pods)
                log = client.pod_log(run_id, pod) or ""
                # A line that is still being written is read again.
                lines = work_lines(log if is_over else log[: log.rfind("\n") + 1])
                yield from ((_pod_name(selected, number), line) for line in lines[printed.get(pod, 0) :])
                printed[pod] = len(lines)
                if is_over:
                    ended.add(pod)
        if (
            tasks
            and task is not None
            and all(selected.state not in ("UNSTARTED", "PENDING", "RUNNING") for selected in tasks)
        ):
            return


def _pod_name(task: Task, number: int) -> str:
    return task.name if len(task.pods) == 1 else f"{task.name} (pod {number})"
