"""The test server of KFP answers in the form of a real one: held against recorded answers, and by its own generator."""

import json
from pathlib import Path

import pytest

from tests.kfp_replay.moments import answer_at, moments, node_names
from tests.kfp_replay.recording import Planned, node_id, recording

SHARDED = [
    Planned("preflight", 30, 60),
    Planned("rollout", 110, 150, loop="for-loop-3", shard=0),
    Planned("rollout", 110, 170, attempts=(130,), loop="for-loop-3", shard=1),
    Planned("merge", 190, 190, state="CACHED"),
    Planned("finish", 220, 230, hook=True),
]


def shape(answer: dict) -> dict[str, set]:
    """The kinds of entries of an answer: for each sort of name, the fields that an entry of it can have."""
    kinds: dict[str, set] = {}
    for entry in answer["run_details"]["task_details"]:
        kind = "task" if "display_name" in entry else "nameless"
        kind = f"{kind} {entry.get('state')} {'child_tasks' in entry}"
        kinds.setdefault(kind, set()).add(tuple(sorted(entry)))
    return kinds


def test_a_generated_answer_has_the_form_of_the_recorded_ones(shared: Path) -> None:
    recorded: dict[str, set] = {}
    for file in sorted((shared / "cluster").glob("run-*.json")):
        answer = json.loads(file.read_text())
        for kind, fields in shape(answer).items():
            recorded.setdefault(kind, set()).update(fields)
        ids = {
            child["pod_name"]
            for entry in answer["run_details"]["task_details"]
            for child in entry.get("child_tasks", [])
        }
        assert set(node_names(answer["run_details"]["task_details"])) == ids, file.name
        assert answer_at(answer, moments(answer)[-1]) == answer, file.name
    omitted = [Planned("preflight", 30, 60, state="FAILED"), Planned("synthesize", 60, state="OMITTED")]
    waiting = [Planned("preflight", 30, waits=None)]
    for tasks in (SHARDED, omitted, waiting):
        for kind, fields in shape(recording(tasks)).items():
            assert fields <= recorded[kind], kind


def test_a_run_appears_changes_and_ends_in_the_order_of_its_times() -> None:
    recorded = recording(SHARDED)
    shown = [answer_at(recorded, moment) for moment in moments(recorded)]
    assert shown[-1] == recorded
    counts = [len(answer["run_details"]["task_details"]) for answer in shown]
    assert counts == sorted(counts) and counts[0] < counts[-1]
    assert shown[0]["state"] == "PENDING"
    for answer in shown[::6]:
        names = node_names(answer["run_details"]["task_details"])
        children = {
            child["pod_name"]
            for entry in answer["run_details"]["task_details"]
            for child in entry.get("child_tasks", [])
        }
        assert set(names) == children  # nobody names a child that has not appeared


@pytest.mark.parametrize(("name", "number"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_node_ids_are_the_published_hash(name: str, number: int) -> None:
    assert node_id("wf", name) == f"wf-{number}"
