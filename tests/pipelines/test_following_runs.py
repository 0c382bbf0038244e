"""`star pipeline status|logs|cancel`, with --wait and --follow, against a server that replays runs from first to last."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from star.cli.pipeline import pipeline_app
from star.pipelines import kfp_client, run_display, run_reasons
from tests.kfp_replay.pods import Kubernetes, pod, waiting
from tests.kfp_replay.recording import Planned, node_id, recording
from tests.kfp_replay.server import KfpReplay, spec_of

ROOT = Path(__file__).parents[2]
GROUP = "star-abcde(0).root(0).exit-handler-1(0)"
TURN = f"{GROUP}.for-loop-3(0).iteration-iterations({{0}}:{{0}})(0)"  # of a shard
PREFLIGHT = f"{GROUP}.preflight(0).executor(0)"
SHARDED = [
    Planned("preflight", 30, 60),
    Planned("synthesize", 70, 70, state="CACHED"),
    Planned("refine-teacher", 80, 100, attempts=(90,)),
    *(Planned("rollout", 150, 160 + number, loop="for-loop-3", shard=number) for number in range(2)),
    Planned("merge", 175, 180, state="FAILED"),
    *(Planned("extract-topk", 185, state="OMITTED", loop="for-loop-5", shard=number) for number in range(2)),
    Planned("finish", 200, 210, hook=True),
]
FAILED = [
    Planned("preflight", 30, 60, state="FAILED", waits=10),
    Planned("synthesize", 61, state="OMITTED"),
    Planned("finish", 75, 80, hook=True),
]
# As KFP's executor, a task of ours, KFP's launcher and Argo print it.
REFUSED = """[KFP Executor 2026-01-01 00:00:31,100 INFO]: Looking for component `preflight`
FAIL MLflow                 http://mlflow:5000 answers HTTP 403
star: MLflow: http://mlflow:5000 answers HTTP 403: its --allowed-hosts must name mlflow:5000
I0101 00:00:59.100000      21 launcher_v2.go:151] publish success.
F0101 00:00:59.200000      21 main.go:57] failed to execute component: exit status 2
time="2026-01-01T00:00:59.000Z" level=info msg="sub-process exited" argo=true error="<nil>"
Error: exit status 1
"""
CAUSE = "MLflow: http://mlflow:5000 answers HTTP 403: its --allowed-hosts must name mlflow:5000"
INTERNAL = re.compile(
    r"driver|for-loop|iteration|executor|exit-handler|\(\d+\)|\broot\b|onExit|launcher|argo|None", re.IGNORECASE
)


@cache
def spec() -> dict:
    """The definition of a pipeline with two shards."""
    text = (ROOT / "deploy" / "pipelines" / "h100.yaml").read_text()
    return spec_of(re.sub(r"raw: '\[.*\]'", 'raw: \'["1/2", "2/2"]\'', text))


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpReplay]:
    monkeypatch.setenv("HOME", str(tmp_path))  # without a kubeconfig
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(kfp_client, "PAUSE", 0.001)
    with KfpReplay() as server:
        yield server


def star(kfp: KfpReplay, *arguments: str) -> Result:
    polled = ("--poll", "0") if "--wait" in arguments or "--follow" in arguments else ()
    return CliRunner().invoke(pipeline_app, [*arguments, *polled, "--host", kfp.host])


def states(text: str) -> list[str]:
    """The lines of tasks in a text, each as `STATE name`."""
    found = re.findall(r"^([A-Z][A-Z ]{9}) (\S+(?: \d+/\d+)?)", text, re.MULTILINE)
    return [f"{state.strip()} {name}" for state, name in found if name != "run"]


def test_a_run_with_shards_is_shown_under_the_names_of_the_pipeline(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(SHARDED), spec=spec())
    kfp.logs[f"{GROUP}.refine-teacher(0).executor(1)"] = "train the teacher (SFT): 30/350, about 2 min 3 s left\n"
    done = star(kfp, "status", run_id, "--wait")
    shown = done.stderr
    assert not INTERNAL.search(shown), shown
    assert done.exit_code == 1
    of_teacher = [line.split()[0] for line in states(shown) if line.endswith("refine-teacher")]
    assert of_teacher == ["PENDING", "RUNNING", "RETRIED", "SUCCEEDED"], shown
    assert "CACHED synthesize" in states(shown)
    finished = [line for line in states(shown) if line.startswith("SUCCEEDED rollout")]
    assert finished == [f"SUCCEEDED rollout {number}/2" for number in (1, 2)]
    assert "FAILED merge-rollout" in states(shown)
    assert "refine-teacher  train the teacher (SFT): 30/350, about 2 min 3 s left" in shown
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in shown.splitlines() if "│" in line]
    assert ["synthesize", "SUCCEEDED", "", "yes"] in [[*row, "", ""][:4] for row in rows]
    assert ["rollout 2/2", "SUCCEEDED", "11"] in [row[:3] for row in rows]
    assert ["register", "not run"] in [row[:2] for row in rows]
    # Each change is shown once.
    changes = [line for line in states(shown) if not line.endswith("refine-teacher")]
    assert len(changes) == len(set(changes))


def test_a_failure_is_shown_with_its_sentence_and_the_exit_status_of_its_kind(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(FAILED), spec=spec())
    kfp.logs[PREFLIGHT] = REFUSED
    summary = json.dumps({"state": "FAILED", "text": 'STAR pipeline: failed in preflight: "x"'}, indent=1)
    kfp.logs["star-abcde(0).root(0).exit-handler-1.onExit(0).finish(0).executor(0)"] = f"closed\n{summary}\n"
    done = star(kfp, "status", run_id, "--wait")
    assert done.exit_code == 2
    assert f"FAILED     preflight  30 s\n    {CAUSE}\n" in done.stderr
    assert f"FAILED     run {run_id}  preflight: {CAUSE}\n" in done.stderr
    assert states(done.stderr)[:3] == ["PENDING preflight", "RUNNING preflight", "FAILED preflight"]
    assert 'SUCCEEDED  finish  5 s\n    STAR pipeline: failed in preflight: "x"\n' in done.stderr
    told = star(kfp, "status", run_id)
    assert told.exit_code == 0 and not INTERNAL.search(told.stdout), told.stdout
    assert f"FAILED     preflight  30 s\n    {CAUSE}\n" in told.stdout
    assert states(told.stdout)[1:3] == ["NOT RUN synthesize", "NOT RUN refine-teacher"]
    assert "NOT RUN rollout 2/2" in states(told.stdout)


def test_a_run_is_followed_to_its_end_although_no_log_can_be_read(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(SHARDED), spec=spec())
    teacher, merge = (
        f"GET /apis/v1alpha1/runs/{run_id}/nodes/{node_id('star-abcde', f'{GROUP}.{name}.executor({attempt})')}/log"
        for name, attempt in (("refine-teacher(0)", 1), ("merge(0)", 0))
    )
    kfp.faults = {teacher: [503] * 99, merge: [503] * 99}
    shown = star(kfp, "status", run_id, "--wait").stderr
    assert "SUCCEEDED  refine-teacher" in shown
    # Asked once at each of its polls, and not again and again.
    assert 1 <= kfp.requests.count(teacher) <= 5
    for text in (shown, star(kfp, "status", run_id).stdout):
        assert "FAILED     merge-rollout  5 s\n    its log could not be read: " in text


def test_a_failure_without_a_sentence_shows_the_end_of_its_log(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(FAILED), spec=spec(), at=999)
    kfp.logs[PREFLIGHT] = "".join(f"line {number}\n" for number in range(9)) + "Error: exit status 1\n"
    shown = star(kfp, "status", run_id).stdout
    assert (
        "    line 4\n    line 5\n    line 6\n    line 7\n    line 8\n    no error in its log: its container may have been killed"
        in shown
    )
    assert "its limit of 6Gi (OOMKilled)" in shown
    kfp.logs[PREFLIGHT] += "F0101 00:00:59.200000      21 main.go:57] failed to execute component: exit status 3\n"
    assert "    line 8\n    exit code 3\n" in star(kfp, "status", run_id).stdout


def test_attempts_within_a_pod_are_shown_once_each(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(FAILED), spec=spec(), at=35)
    attempt = "attempt 1 of 3 (preflight) ended after 9.1 s: unavailable, next in 60 s: s3://star cannot be used\n"
    kfp.logs[PREFLIGHT] = attempt
    shown = star(kfp, "status", run_id, "--wait").stderr
    assert shown.count("RETRIED") == 1
    assert (
        "RETRIED    preflight  attempt 1 of 3 failed (unavailable): s3://star cannot be used; the next starts in 60 s"
        in shown
    )


def test_a_cancelled_run_says_what_it_stops_and_ends_as_cancelled(kfp: KfpReplay) -> None:
    going = [Planned("preflight", 30, 60), Planned("synthesize", 70)]
    run_id = kfp.run_of(recording(going), spec=spec(), at=90)
    done = star(kfp, "cancel", run_id)
    assert done.exit_code == 0 and "is being cancelled: stopping synthesize." in done.stdout
    assert f"POST /apis/v2beta1/runs/{run_id}:terminate" in kfp.requests
    done = star(kfp, "status", run_id, "--wait")
    assert done.exit_code == 1
    assert f"CANCELED   run {run_id}" in done.stderr and "CANCELED synthesize" in states(done.stderr)
    assert "SUCCEEDED preflight" in states(done.stderr)
    done = star(kfp, "cancel", run_id)
    assert "has ended already (CANCELED): there is nothing to cancel" in done.stdout


def test_a_pod_that_waits_is_named_with_the_command_that_says_why(
    kfp: KfpReplay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    waiting = recording([Planned("preflight", 30, waits=None)])
    run_id = kfp.run_of(waiting, spec=spec(), at=99)
    shown = star(kfp, "status", run_id).stdout
    assert re.search(
        r"PENDING    preflight\n    its pod has not started for .*: `kubectl -n kubeflow describe pod star-abcde-\d+`",
        shown,
    )
    assert "NOT YET synthesize" in states(shown)
    assert "no log yet: its pod has not started" in star(kfp, "logs", run_id, "--task", "preflight").stdout
    # Of two shards one has started: the server's answer does not tell which, their logs do.
    shards = [
        Planned("rollout", 150, waits=None if number else 0.0, loop="for-loop-3", shard=number) for number in (0, 1)
    ]
    run_id = kfp.run_of(recording(shards), spec=spec(), at=400)
    kfp.logs[f"{TURN.format(0)}.iteration-item(0).rollout(0).executor(0)"] = "sample the teacher: 3/10\n"
    monkeypatch.setattr(run_reasons, "WAITING_SECONDS", 0.0)
    assert "RUNNING    rollout 1/2  sample the teacher: 3/10\n" in star(kfp, "status", run_id).stdout
    client = kfp_client.KfpClient(kfp.host)
    with run_display.RunDisplay(client, run_id) as display:
        for _ in range(2):
            display.show(client.status(run_id))
    assert [line for line in states(capsys.readouterr().err) if line.startswith("WAITS")] == ["WAITS rollout 2/2"]


def test_with_a_kubeconfig_the_cluster_says_why_a_pod_waits_or_was_killed(
    kfp: KfpReplay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_id = kfp.run_of(recording(FAILED), spec=spec())
    cluster = Kubernetes(run_id)
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path)))
    name = node_id("star-abcde", PREFLIGHT)
    cluster.pods = [pod(name, state=waiting("CreateContainerConfigError", 'secret "star-s3" not found'))]
    kfp.run_of(recording([Planned("preflight", 30, waits=None)]), spec=spec())
    shown = star(kfp, "status", run_id).stdout  # its first moment: nothing waits yet
    assert "secret" not in shown
    kfp.run_of(recording([Planned("preflight", 30, waits=None)]), spec=spec(), at=99)
    assert (
        'PENDING    preflight\n    CreateContainerConfigError: secret "star-s3" not found\n'
        in star(kfp, "status", run_id).stdout
    )
    kfp.run_of(recording(FAILED), spec=spec())
    shown = star(kfp, "status", run_id, "--wait").stderr
    assert shown.count('WAITS      preflight  CreateContainerConfigError: secret "star-s3" not found') == 1
    cluster.pods = [pod(name, phase="Failed", state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})]
    kfp.run_of(recording(FAILED), spec=spec(), at=999)
    shown = star(kfp, "status", run_id).stdout
    cause = "OOMKilled: killed because it used more memory than its limit of 3Gi"
    assert f"FAILED     preflight  30 s\n    {cause}\n" in shown and f"preflight: {cause}\n" in shown
    cluster.status = 403
    assert "its pod could not be looked at: HTTP 403" in star(kfp, "status", run_id).stdout
    cluster.shutdown()
    cluster.server_close()


def test_a_pod_of_kfp_before_a_task_is_shown_as_that_task(kfp: KfpReplay) -> None:
    recorded = recording([Planned("preflight", 30, waits=None)])
    assert "PENDING preflight" in states(star(kfp, "status", kfp.run_of(recorded, spec=spec(), at=22)).stdout)
    every = recorded["run_details"]["task_details"]
    entries = [entry for entry in every if not re.match(r"preflight(\(0\))?$|executor", entry.get("display_name", ""))]
    for entry in entries:
        if entry.get("display_name", "").startswith("preflight-driver"):
            entry["state"] = entry["state_history"][-1]["state"] = "FAILED"
    recorded["run_details"]["task_details"] = entries
    driver = f"{GROUP}.preflight-driver(0)"
    kfp.logs[driver] = "F0101 00:00:29.200000      21 main.go:57] failed to connect to ml-pipeline: timeout\n"
    shown = star(kfp, "status", kfp.run_of(recorded, spec=spec(), at=99)).stdout
    assert "FAILED preflight" in states(shown) and "failed to connect to ml-pipeline: timeout" in shown


def test_logs_have_every_shard_and_every_pod(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(SHARDED), spec=spec(), at=999)
    for number in range(2):
        place = f"{TURN.format(number)}.iteration-item(0).rollout(0)"
        kfp.logs[f"{place}.executor(0)"] = (
            f"shard {number}\nI0101 00:00:59.100000  21 launcher_v2.go:151] publish success.\n"
        )
    for number in range(2):
        kfp.logs[f"{GROUP}.refine-teacher(0).executor({number})"] = f"pod {number}\n\x1b[31mred\n"
    done = star(kfp, "logs", run_id, "--task", "rollout")
    assert done.stdout.splitlines() == [f"rollout {number + 1}/2: shard {number}" for number in range(2)]
    assert star(kfp, "logs", run_id, "--task", "rollout 2/2").stdout == "rollout 2/2: shard 1\n"
    shown = star(kfp, "logs", run_id, "--task", "refine-teacher").stdout
    assert "refine-teacher (pod 1): pod 0" in shown and "refine-teacher (pod 2): pod 1" in shown
    assert "came from the cache" in star(kfp, "logs", run_id, "--task", "synthesize").stdout
    assert "has no task rollin: it has preflight, synthesize" in str(
        star(kfp, "logs", run_id, "--task", "rollin").exception
    )


def test_followed_logs_have_every_line_once(kfp: KfpReplay) -> None:
    run_id = kfp.run_of(recording(FAILED), spec=spec())
    kfp.logs[PREFLIGHT] = [(45.0, "one"), (50.0, "two"), (59.0, "three")]
    kfp.logs["star-abcde(0).root(0).exit-handler-1.onExit(0).finish(0).executor(0)"] = "the end"
    done = star(kfp, "logs", run_id, "--follow")
    assert done.stdout.splitlines() == ["preflight: one", "preflight: two", "preflight: three", "finish: the end"]


def test_a_pipeline_that_is_not_ours_is_shown_by_its_own_names(kfp: KfpReplay) -> None:
    foreign = [
        Planned("fetch", 30, 40),
        *(Planned("train", 90, 99, loop="for-loop-2", shard=number) for number in (0, 1)),
    ]
    run_id = kfp.run_of(recording(foreign, workflow="theirs-x1", handler=False), at=999)
    assert states(star(kfp, "status", run_id).stdout) == [
        f"SUCCEEDED {name}" for name in ("fetch", "train 1/2", "train 2/2")
    ]


def test_a_run_of_an_uploaded_version_has_the_names_of_that_version(kfp: KfpReplay) -> None:
    version = {"pipeline_id": "p-1", "pipeline_version_id": "v-1"}
    kfp.store.versions.append({**version, "display_name": "one", "pipeline_spec": spec()})
    run_id = kfp.run_of(recording(SHARDED), at=999, pipeline_version_reference=version)
    assert "FAILED merge-rollout" in states(star(kfp, "status", run_id).stdout)


@pytest.mark.parametrize(
    "kind",
    ["cancelled", "failed-exit-code-3-small", "failed-preflight", "succeeded-from-cache-small", "succeeded-small"],
)
def test_recorded_runs_are_followed_from_their_first_answer_to_their_last(
    kfp: KfpReplay, shared: Path, kind: str
) -> None:
    recorded = json.loads((shared / "cluster" / f"run-{kind}.json").read_text())
    run_id = kfp.run_of(recorded, spec=None if "small" in kind else spec())
    done = star(kfp, "status", run_id, "--wait")
    assert not INTERNAL.search(done.stderr), done.stderr
    state = "CANCELED" if kind == "cancelled" else recorded["state"]
    assert f"{state:<10} run {run_id}" in done.stderr
    ends = {
        "cancelled": ["CANCELED preflight", "FAILED finish"],
        "failed-exit-code-3-small": ["SUCCEEDED env", "FAILED flaky", "SUCCEEDED close"],
        "failed-preflight": ["FAILED preflight", "SUCCEEDED finish"],
        "succeeded-from-cache-small": ["CACHED write", "CACHED read"],
        "succeeded-small": ["SUCCEEDED write", "SUCCEEDED read"],
    }
    assert [line for line in states(done.stderr) if line.split()[0] not in ("PENDING", "RUNNING")] == ends[kind]
    assert done.exit_code == (0 if state == "SUCCEEDED" else 1)
