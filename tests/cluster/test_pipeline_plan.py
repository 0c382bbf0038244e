"""Names and order of a run's tasks, read from its compiled pipeline."""

from pathlib import Path

import pytest

from star.cluster.pipeline_plan import planned_tasks
from tests.kfp_replay.server import spec_of

PIPELINES = Path(__file__).parents[2] / "deploy" / "pipelines"


def test_the_tasks_of_our_pipeline_have_their_names_in_the_order_in_which_they_run() -> None:
    tasks = planned_tasks(spec_of((PIPELINES / "h100.yaml").read_bytes()))
    names = [task.name for task in tasks]
    assert names[:5] == ["preflight", "synthesize", "refine-teacher", "rollout 1/4", "rollout 2/4"]
    assert names[-2:] == ["register", "finish"]
    assert names.index("rollout 4/4") < names.index("merge-rollout") < names.index("extract-topk 1/4")
    by_name = {task.name: task for task in tasks}
    assert by_name["rollout 2/4"].place == ("exit-handler-1", "for-loop-3", "#1", "rollout")
    assert by_name["merge-extract-topk"].place == ("exit-handler-1", "merge-2")
    assert by_name["finish"].place == ("finish",) and by_name["preflight"].memory == "6Gi"


def loop(items: str) -> dict:
    """A definition with a loop over items whose names are no shards."""
    task = {"componentRef": {"name": "c"}, "taskInfo": {"name": "train"}}
    each = {"componentRef": {"name": "each"}, "parameterIterator": {"items": {"raw": items}}}
    return {
        "root": {"dag": {"tasks": {"for-loop-1": each}}},
        "components": {"each": {"dag": {"tasks": {"train": task}}}, "c": {"executorLabel": "e"}},
        "deploymentSpec": {"executors": {"e": {"container": {"resources": {"memoryLimit": 2.0}}}}},
    }


def test_items_that_are_no_shards_are_numbered() -> None:
    found = [(task.name, task.memory) for task in planned_tasks(loop('[{"lr": 0.1}, "x"]'))]
    assert found == [("train 1/2", "2 GB"), ("train 2/2", "2 GB")]


@pytest.mark.parametrize(
    "spec",
    [None, {}, {"root": 5}, {"root": {"dag": {"tasks": {"a": {}}}}}, {"pipeline_spec": []}, loop("{"), loop("5")],
)
def test_a_definition_of_another_form_has_no_known_tasks(spec: dict | None) -> None:
    assert planned_tasks(spec) == []
