"""How a run and its tasks stand, read out of answers of KFP's API."""

import random

import pytest

from star.cluster.run_tasks import RunStatus, read_run
from star.cluster.workflow_nodes import Workflow
from tests.kfp_replay.moments import answer_at, moments
from tests.kfp_replay.recording import NO_TIME, Planned, node_id, recording, stamp

TASKS = [
    Planned("preflight", 30, 60),
    *(Planned("rollout", 120, 130, attempts=(125,), loop="for-loop-3", shard=number) for number in (0, 1)),
    Planned("merge", 145, 145, state="CACHED"),
    Planned("finish", 160, 170, hook=True),
]


def read(answer: dict) -> RunStatus:
    return read_run(answer, plan=[], workflow=Workflow())


def test_the_order_of_the_entries_does_not_matter() -> None:
    recorded = recording(TASKS)
    for moment in moments(recorded)[::4]:
        answer = answer_at(recorded, moment)
        expected = read(answer)
        random.Random(7).shuffle(answer["run_details"]["task_details"])
        assert read(answer) == expected


def test_shards_of_a_pipeline_that_is_not_known_are_in_the_order_of_their_numbers() -> None:
    shards = [Planned("rollout", 120, 130, loop="for-loop-3", shard=number) for number in range(12)]
    assert [task.name for task in read(recording(shards)).tasks] == [f"rollout {number}/12" for number in range(1, 13)]


def answer_of(nodes: dict[str, tuple[str, str, list[str]]]) -> dict:
    """An answer with nodes by their names: what is shown, state, and names of the children."""
    entries = [
        {
            "display_name": display,
            "state": state,
            "start_time": stamp(5),
            "end_time": NO_TIME if state in ("RUNNING", "PENDING") else stamp(9),
            "child_tasks": [{"pod_name": node_id("w-1", child)} for child in children],
        }
        for display, state, children in nodes.values()
    ]
    return {"run_id": "r-1", "state": "RUNNING", "created_at": stamp(0), "run_details": {"task_details": entries}}


def test_a_task_that_is_run_again_as_a_whole_has_all_of_its_pods() -> None:
    # The retry node `distill` tries again, without its driver, after the executor's own attempts were used up.
    attempts = {
        f"w-1(0).distill({number}){name}": (display, state, [f"w-1(0).distill({number}){child}"] if child else [])
        for number, state in ((0, "FAILED"), (1, "RUNNING"))
        for name, display, child in (
            ("", f"distill({number})", ".executor"),
            (".executor", "executor", ".executor(0)"),
            (".executor(0)", "executor(0)", ""),
        )
    }
    nodes = {
        "w-1": ("w-1", "RUNNING", ["w-1(0)"]),
        "w-1(0)": ("w-1(0)", "RUNNING", ["w-1(0).distill"]),
        "w-1(0).distill": ("distill", "RUNNING", ["w-1(0).distill(0)", "w-1(0).distill(1)"]),
        **attempts,
    }
    [task] = read(answer_of(nodes)).tasks
    pods = tuple(node_id("w-1", f"w-1(0).distill({number}).executor(0)") for number in (0, 1))
    assert (task.name, task.state, task.pods) == ("distill", "RUNNING", pods)


@pytest.mark.parametrize(("executor", "state", "pods"), [("SUCCEEDED", "SUCCEEDED", 1), ("SKIPPED", "CACHED", 0)])
def test_a_cluster_that_retries_nothing_by_default_has_pods_without_numbers(
    executor: str, state: str, pods: int
) -> None:
    nodes = {
        "w-1": ("w-1", "RUNNING", ["w-1.root"]),
        "w-1.root": ("root", "RUNNING", ["w-1.root.distill"]),
        "w-1.root.distill": ("distill", "SUCCEEDED", ["w-1.root.distill.executor"]),
        "w-1.root.distill.executor": ("executor", executor, []),
    }
    [task] = read(answer_of(nodes)).tasks
    assert (task.name, task.state) == ("distill", state)
    assert task.pods == (node_id("w-1", "w-1.root.distill.executor"),) * pods


@pytest.mark.parametrize(
    "answer", [{"run_id": "r"}, {"run_id": "r", "run_details": {"task_details": [{}, {"state": "X"}]}}]
)
def test_an_answer_without_tasks_has_none(answer: dict) -> None:
    assert read(answer) == RunStatus("r", "PENDING", "", ())
