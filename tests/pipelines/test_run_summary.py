"""The table at the end of a run: what it says about accelerators."""

from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import yaml
from rich.console import Console

from star.cluster.pipeline_plan import planned_tasks
from star.cluster.run_tasks import RunStatus, Task
from star.pipelines.run_summary import summary_table
from star.tracking.accelerators import Accelerators

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
MULTINODE = Path(__file__).resolve().parents[2] / "deploy" / "pipelines" / "multinode.yaml"


def cells(*tasks: Task) -> list[list[str]]:
    """The table's rows, each as its words; heading first, sums last."""
    text = StringIO()
    Console(file=text, width=200).print(summary_table(RunStatus("r-1", "SUCCEEDED", "", tasks)))
    lines = [line.replace("┃", "│").split("│") for line in text.getvalue().splitlines()]
    return [[word.strip() for word in line[1:-1]] for line in lines if len(line) > 2]


def task(name: str, state: str, *, hours: float, held: Accelerators | None = None) -> Task:
    return Task(name, name, state, BEGAN, BEGAN + timedelta(hours=hours), (), None, held)


def test_accelerators_and_money_are_added_up() -> None:
    h100, free = Accelerators(2, 2.5, "EUR"), Accelerators(8)
    rows = cells(
        task("preflight", "SUCCEEDED", hours=0.1),
        task("rollout 1/2", "SUCCEEDED", hours=3, held=h100),
        task("rollout 2/2", "CACHED", hours=3, held=h100),
        task("distill", "FAILED", hours=0.5, held=free),
    )
    assert rows == [
        ["", "", "", "", "accelerator", ""],
        ["task", "state", "seconds", "cached", "hours", "EUR"],
        ["preflight", "SUCCEEDED", "360", "", "", ""],
        ["rollout 1/2", "SUCCEEDED", "10,800", "", "6.00", "15.00"],
        ["rollout 2/2", "SUCCEEDED", "", "yes", "", ""],
        ["distill", "FAILED", "1,800", "", "4.00", ""],
        ["", "", "", "", "10.00", "15.00"],
    ]


def test_without_accelerators_the_table_says_nothing_of_them() -> None:
    assert cells(task("distill", "SUCCEEDED", hours=1)) == [
        ["task", "state", "seconds", "cached"],
        ["distill", "SUCCEEDED", "3,600", ""],
    ]


def test_what_tasks_hold_is_read_from_the_compiled_pipeline() -> None:
    spec = next(iter(yaml.load_all(MULTINODE.read_text(), Loader=yaml.CSafeLoader)))
    held = {planned.name: planned.accelerators for planned in planned_tasks(spec)}
    assert held["distill"] == Accelerators(16) and held["refine"] == Accelerators(8) and held["register"] is None
