"""The table at the end of a followed run: each task with its state, seconds, accelerators, and whether it came from the cache."""

from rich.table import Table

from star.cluster.run_tasks import RunStatus, Task
from star.tracking.accelerators import COST, SECONDS

WORDS = {"CACHED": "SUCCEEDED", "SKIPPED": "not run", "UNSTARTED": "not run"}  # other names of states here


def summary_table(status: RunStatus) -> Table:
    """One row per task and shard. Seconds are those from the start of the task to its end, with the waiting for its pod.

    Where a task holds accelerators, their time and its price follow, and the sums below. MLflow has them without the waiting.
    """
    held = [_held(task) for task in status.tasks]
    priced = [metrics[COST] for metrics in held if COST in metrics]
    # One profile has one currency; a node without a price has none.
    currency = max((task.accelerators.currency for task in status.tasks if task.accelerators), default="")
    table = Table(show_footer=any(held))
    # The table of a profile with prices has room in 80 columns, with the longest of our names.
    table.add_column("task", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("seconds", justify="right")
    table.add_column("cached")
    if any(held):
        total = sum(metrics.get(SECONDS, 0) for metrics in held)
        table.add_column("accelerator\nhours", f"{total / 3600:.2f}", justify="right")
    if priced:
        table.add_column(currency, f"{sum(priced):.2f}", justify="right")
    for task, metrics in zip(status.tasks, held, strict=True):
        is_cached = task.state == "CACHED"
        seconds = "" if task.seconds is None or is_cached else f"{task.seconds:,.0f}"
        hours = [f"{metrics[SECONDS] / 3600:.2f}" if metrics else ""] if any(held) else []
        price = [f"{metrics[COST]:.2f}" if COST in metrics else ""] if priced else []
        word = WORDS.get(task.state, task.state)
        table.add_row(task.name, word, seconds, "yes" if is_cached else "", *hours, *price)
    return table


def _held(task: Task) -> dict[str, float]:
    """Accelerator-seconds and price of a task; empty for one that held none, or came from the cache."""
    if task.accelerators is None or task.seconds is None or task.state == "CACHED":
        return {}
    return task.accelerators.metrics(task.seconds)
