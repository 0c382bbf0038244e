"""Names of an Argo workflow's nodes, found from their ids."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from star.cluster.workflow_nodes import Workflow, hash_of
from tests.kfp_replay.moments import answer_at, moments
from tests.kfp_replay.recording import Planned, fnv1a32, node_id, recording

TASKS = [
    Planned("preflight", 30, 60),
    *(Planned("rollout", 120, 130, attempts=(125,), loop="for-loop-3", shard=n) for n in (0, 1)),
]


@given(st.text(max_size=20), st.text(max_size=20))
def test_the_hash_goes_on_from_that_of_a_first_part(first: str, second: str) -> None:
    assert hash_of(second, hash_of(first)) == hash_of(first + second) == fnv1a32(first + second)


def test_names_are_the_same_whether_they_are_learned_at_once_or_step_by_step() -> None:
    recorded = recording(TASKS)
    at_once, step_by_step = Workflow(), Workflow()
    at_once.learn(recorded["run_details"]["task_details"])
    for moment in moments(recorded):
        step_by_step.learn(answer_at(recorded, moment)["run_details"]["task_details"])
    assert step_by_step.nodes == at_once.nodes
    pods = {node.name: node for node in at_once.nodes.values() if node.display.startswith("executor(")}
    turn = "star-abcde(0).root(0).exit-handler-1(0).for-loop-3(0).iteration-iterations(1:1)(0)"
    second = pods[f"{turn}.iteration-item(0).rollout(0).executor(1)"]
    assert second.id == node_id("star-abcde", second.name)
    assert (second.place, second.attempt[-1]) == (("exit-handler-1", "for-loop-3", "#1", "rollout"), 1)


def test_every_id_in_recorded_answers_has_a_name(shared: Path) -> None:
    for file in sorted((shared / "cluster").glob("run-*.json")):
        entries = json.loads(file.read_text())["run_details"]["task_details"]
        ids = {child["pod_name"] for entry in entries for child in entry.get("child_tasks") or []}
        workflow = Workflow()
        workflow.learn(entries)
        assert ids <= set(workflow.nodes), file.name
