"""How a pipeline ended, as the exit handler learns it from a KFP server that replays runs, and from MLflow."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from star.cluster import pipeline_end
from star.cluster.pipeline_end import PipelineEnd, find_end
from star.cluster.pipeline_plan import planned_tasks
from star.tracking.server import connect, experiment_id
from tests.kfp_replay.pipelines import spec_of
from tests.kfp_replay.recording import Planned, recording
from tests.kfp_replay.server import KfpReplay

ROOT = Path(__file__).parents[2]
INTERNAL = re.compile(r"exit-handler|for-loop|\(\d+\)|RUNNING|driver|merge-2")
LOG = """[KFP Executor 2026-01-01 00:00:31,100 INFO]: Looking for component `rollout`
attempt 1 of 3 (rollout 2/2) ended after 0.4 s: input, no other attempt
star: data/train.jsonl, line 4: not a row: messages.1
F0101 00:00:59.200000      21 main.go:57] failed to execute component: exit status 2
"""


@cache
def spec() -> dict:
    """The definition of a pipeline with two shards per stage."""
    text = (ROOT / "deploy" / "pipelines" / "h100.yaml").read_text()
    return spec_of(re.sub(r"raw: '\[.*\]'", 'raw: \'["1/2", "2/2"]\'', text))


def run_of(states: dict[str, str], *, otherwise: str, cancelled: float | None = None) -> dict:
    """A run whose exit handler runs: each task has ended as `states` says by its key, and the shard as `KEY/NUMBER`."""
    planned, start = [], 30.0
    for task in planned_tasks(spec()):
        key = task.place[-1]
        loop = next((part for part in task.place if part.startswith("for-loop")), None)
        shard = next((int(part[1:]) for part in task.place if part.startswith("#")), 0)
        state = states.get(f"{key}/{shard + 1}", states.get(key, otherwise))
        start += 40
        if key == "finish":
            planned.append(Planned(key, start, None, hook=True))
        else:
            planned.append(Planned(key, start, start + 30, state=state, loop=loop, shard=shard))
    return recording(planned, cancelled=cancelled)


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpReplay]:
    monkeypatch.setattr(pipeline_end, "PAUSE_SECONDS", 0.0)
    with KfpReplay() as kfp:
        monkeypatch.setenv("KFP_HOST", kfp.host)
        yield kfp


def asked(kfp: KfpReplay, run: dict, *, given: str = "RUNNING") -> PipelineEnd:
    """What the exit handler finds, who starts when all else has ended; KFP tells it a state that is often wrong."""
    run_id = kfp.run_of(run, at=10_000.0, spec=spec())
    return find_end(run_id, given=given)


def test_a_run_with_shards_that_succeeded_names_the_champion(server: KfpReplay) -> None:
    run = run_of({"synthesize": "CACHED"}, otherwise="SUCCEEDED")
    client = connect()
    tags = {"kfp.pipeline_run_id": run["run_id"], "star.stage": "register"}
    said = "star version 4 is the new champion, after version 3"
    stage = client.create_run(experiment_id(client), tags={**tags, "star.outcome": said}).info.run_id
    client.set_terminated(stage, "FINISHED")
    end = asked(server, run)
    assert (end.state, end.tasks, end.words) == ("SUCCEEDED", (), f"SUCCEEDED: {said}")


def test_a_failed_shard_is_named_with_its_reason(server: KfpReplay) -> None:
    run = run_of({"preflight": "SUCCEEDED", "synthesize": "SUCCEEDED", "refine-teacher": "SUCCEEDED",
                  "rollout/1": "SUCCEEDED", "rollout/2": "FAILED"}, otherwise="OMITTED")  # fmt: skip
    pod = "star-abcde(0).root(0).exit-handler-1(0).for-loop-3(0).iteration-iterations(1:1)(0).iteration-item(0)"
    server.logs[f"{pod}.rollout(0).executor(0)"] = LOG
    for given in ("RUNNING", "FAILED"):
        end = asked(server, run, given=given)
        assert end.words == "FAILED in rollout 2/2: data/train.jsonl, line 4: not a row: messages.1"


def test_a_task_without_an_error_in_its_log_may_have_been_killed_for_memory(server: KfpReplay) -> None:
    before = dict.fromkeys(("preflight", "synthesize"), "SUCCEEDED")
    end = asked(server, run_of({**before, "refine-teacher": "FAILED"}, otherwise="OMITTED"))
    assert end.tasks == ("refine-teacher",)
    assert re.fullmatch(
        r"no error in its log: its container may have been killed, .* its limit of \S+ \(OOMKilled\)", end.reason
    )


def test_a_cancelled_run_names_what_ran(server: KfpReplay) -> None:
    before = dict.fromkeys(("preflight", "synthesize"), "SUCCEEDED")
    run = run_of({**before, "refine-teacher": "FAILED"}, otherwise="OMITTED", cancelled=160.0)
    assert asked(server, run, given="FAILED").words == "CANCELED while refine-teacher ran"


@pytest.mark.parametrize("file", ["run-failed-preflight", "run-cancelled"])
def test_recorded_answers_tell_the_end_without_internal_names(server: KfpReplay, shared: Path, file: str) -> None:
    recorded = json.loads((shared / "cluster" / f"{file}.json").read_text())
    for entry in recorded["run_details"]["task_details"]:  # as they were when the exit handler asked
        if (entry.get("display_name") or "").startswith("finish") and "driver" not in entry["display_name"]:
            entry["state"] = "RUNNING"
    end = find_end(server.run_of(recorded, at=10_000.0), given="RUNNING")
    assert end.state == {"run-failed-preflight": "FAILED", "run-cancelled": "CANCELED"}[file]
    assert end.tasks and not INTERNAL.search(end.words), end.words


def test_a_failure_of_no_task_is_that_of_their_group(server: KfpReplay) -> None:
    run = run_of(dict.fromkeys(("preflight", "synthesize"), "SUCCEEDED"), otherwise="OMITTED")
    for entry in run["run_details"]["task_details"]:
        if entry.get("display_name") == "exit-handler-1":
            entry["state"] = "FAILED"
            entry["state_history"][-1]["state"] = "FAILED"
    assert asked(server, run).words == "FAILED"


def test_a_state_that_the_server_has_not_heard_of_yet_is_asked_for_again(server: KfpReplay) -> None:
    run = run_of({}, otherwise="SUCCEEDED")
    answers = [run_of({"register": "RUNNING"}, otherwise="SUCCEEDED"), run]
    for entry in answers[0]["run_details"]["task_details"]:
        if (entry.get("display_name") or "").startswith("register") and "driver" not in entry["display_name"]:
            entry["state"] = "RUNNING"
    server.more.append(
        ("GET", f"/apis/v2beta1/runs/{run['run_id']}", lambda *_: (200, answers.pop(0) if len(answers) > 1 else run))
    )
    assert find_end(run["run_id"], given="RUNNING").state == "SUCCEEDED"
    assert server.requests.count(f"GET /apis/v2beta1/runs/{run['run_id']}") == 2


@pytest.mark.parametrize("content", [[], {"run_details": 5}, {"run_details": {"task_details": [5]}}, "<html>"])
def test_another_server_is_a_line_and_what_kfp_gave_counts(
    server: KfpReplay, content: object, capsys: pytest.CaptureFixture
) -> None:
    server.more.append(("GET", "/apis/v2beta1/runs/r", lambda *_: (200, content)))
    assert find_end("r", given="FAILED", error="it broke\nlong").words == "FAILED: it broke"
    assert find_end("r", given="RUNNING").words == "ENDED"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"refine": "FINISHED", "register": "FINISHED"}, "SUCCEEDED"),
        ({"distill": "FAILED", "refine": "FINISHED", "register": "FINISHED"}, "SUCCEEDED"),  # a second attempt
        ({"distill": "FAILED"}, "FAILED in distill"),
        ({"rollout 2/4": "FAILED"}, "FAILED in rollout 2/4"),
        ({"refine": "FINISHED"}, "ENDED"),
    ],
)
def test_without_kfp_the_runs_of_the_stages_tell_how_the_pipeline_ended(
    stages: dict[str, str], words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_HOST", "http://127.0.0.1:9")
    client = connect()
    for name, status in stages.items():
        stage, _, part = name.partition(" ")
        tags = {"kfp.pipeline_run_id": "0123", "star.stage": stage, **({"star.part": part} if part else {})}
        client.set_terminated(client.create_run(experiment_id(client), run_name=name, tags=tags).info.run_id, status)
    assert find_end("0123", given="RUNNING").words == words
