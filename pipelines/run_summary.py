"""The table at the end of a followed run: each task with its state, its seconds, and whether its result came from the cache."""

from rich.table import Table

from star.cluster.run_tasks import RunStatus

WORDS = {"CACHED": "SUCCEEDED", "SKIPPED": "not run", "UNSTARTED": "not run"}  # other names of states here


def summary_table(status: RunStatus) -> Table:
    """One row per task and shard. Seconds are those from the start of the task to its end, with the waiting for its pod."""
    table = Table()
    for heading in ("task", "state"):
        table.add_column(heading)
    table.add_column("seconds", justify="right")
    table.add_column("from the cache")
    for task in status.tasks:
        is_cached = task.state == "CACHED"
        seconds = "" if task.seconds is None or is_cached else f"{task.seconds:,.0f}"
        table.add_row(task.name, WORDS.get(task.state, task.state), seconds, "yes" if is_cached else "")
    return table
