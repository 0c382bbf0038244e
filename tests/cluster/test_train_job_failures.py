"""What becomes of TrainJobs that fail, wait or are refused: the next attempts, the task's log, and what is left in the cluster."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from star.cluster import train_job_watch
from star.cluster.exit_handler import close_pipeline
from star.cluster.failure import FOLDER_VARIABLE, Failure, Kind
from star.cluster.train_job import name_of_jobs, run_train_job, why_failed
from star.cluster.trainer_api import Pod, State, delete_jobs_of_run
from star.config.cluster import Cluster, Retry
from star.config.experiment import Config
from star.config.training import HALF_MICRO_BATCH
from star.errors import InputError, PipelineError, UnavailableError
from star.folders.manifest import Manifest, open_input
from star.folders.publish import publish
from tests.cluster.trainer_server import Kubernetes

CLUSTER = Cluster.model_validate(
    {"train_jobs": {"distill": {"nodes": 2}}, "work_claim": "star-work", "nodes": {"cpu": {"memory": "3Gi"}}}
)


def reported(kind: Kind, message: str, *, killed_by: int = 0) -> str:
    """A script of a pod whose process reports why it failed, as star/cluster/failure.py does."""
    content = f'{{"kind": "{kind}", "message": "{message}", "signal": {killed_by}}}'
    return f"echo '{content}' > ${FOLDER_VARIABLE}/$PET_NODE_RANK.json; exit 1"


class Task:
    """The task of distill, in this process. Its pods run shell scripts.

    Attributes:
        scripts: (attempt, rank) -> script. Without one, rank 0 copies a result that is there, as rank 0 of a training writes one.
    """

    def __init__(self, kubernetes: Kubernetes, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.scripts: dict[tuple[int, int], str] = {}
        self.topk, self.result = self._made("extract-topk"), self._made("distill")
        kubernetes.command = self._command

    def _made(self, stage: str) -> Path:
        made = self.folder / f"making-{stage}"
        made.mkdir()
        (made / "content.txt").write_text(stage)
        (made / "metrics.json").write_text('{"ckd_loss": 0.5}')
        publish(made, out=self.folder / stage, manifest=Manifest(stage, "f", "c", "d", "1", inputs={}))
        return self.folder / stage

    def _command(self, job: str, rank: int, command: list[str]) -> list[str]:
        out = next(word.removeprefix("--out=") for word in command if word.startswith("--out="))
        copy = f"cp -r {self.result} {out}" if rank == 0 else "true"
        return ["sh", "-c", self.scripts.get((int(job.rpartition("-")[2]), rank), copy)]

    def run(self) -> dict[str, float]:
        out = self.folder / "out"
        return run_train_job("distill", self.config, cluster=CLUSTER, inputs={"topk": self.topk}, out=out)


@pytest.fixture
def task(kubernetes: Kubernetes, micro: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    made = Task(kubernetes, micro, tmp_path)
    # The client reads KUBECONFIG once, when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(kubernetes.kubeconfig()))
    for variable, value in {"STAR_IMAGE": "star:1", "STAR_WORK": str(tmp_path / "work"), "KFP_RUN_ID": "r-1"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(train_job_watch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(Retry, "pause", lambda self, retry: retry / 100)
    return made


def test_a_failed_job_is_followed_by_the_next_and_why_it_failed_is_in_the_log(
    task: Task, kubernetes: Kubernetes, capsys: pytest.CaptureFixture
) -> None:
    task.scripts = {
        # The first pod saves a checkpoint when it is stopped.
        (0, 0): "trap 'sleep 0.3; echo saved; exit 143' TERM; echo step 1; sleep 60 & wait",
        (0, 1): "echo step 1; echo no GPU; sleep 0.2; exit 1",
        (1, 0): "echo step 2; exec sleep 60",
        (1, 1): "echo step 2; sleep 0.2; kill -KILL $$",
    }
    kubernetes.reasons = {(f"{job_name(task)}-1", 1): "OOMKilled"}
    assert task.run() == {"ckd_loss": 0.5}
    assert open_input(task.folder / "out", stage="distill")
    assert kubernetes.created() == [f"{job_name(task)}-{number}" for number in range(3)]
    log = re.sub(
        r"star-distill-\w{12}",
        "NAME",
        re.sub(r"-x\d+", "", re.sub(r"after [\d.]+ s", "after 1 s", capsys.readouterr().err)),
    )
    first = log.partition("attempt 1 of 3")[0].splitlines()
    # Of the first pod all that it printed, of the others the end; then how the job ended.
    assert first[0] == "started TrainJob NAME-0" and "step 1" in first
    described = first.index("pod NAME-0-node-0-1 (node 1) ended with exit code 1")
    assert first[described + 1 : described + 3] == ["  | step 1", "  | no GPU"]
    assert "pod NAME-0-node-0-0 (node 0) is being stopped: SIGTERM" in first
    assert (
        first[-1] == "TrainJob NAME-0 failed: ReachedMaxRestarts: jobset failed due to reaching max number of restarts"
    )
    lines = log.splitlines()
    assert (
        "attempt 1 of 3 (distill) ended after 1 s: error, next in 0.01 s: "
        "pod NAME-0-node-0-1 (node 1) ended with exit code 1: the reason is in the log above"
    ) in lines
    killed = "pod NAME-1-node-0-1 (node 1) ended with exit code 137: OOMKilled, the limit of its memory is 3Gi"
    assert f"attempt 2 of 3 (distill) ended after 1 s: killed, next in 0.02 s: {killed}" in lines
    assert not kubernetes.jobs


def job_name(task: Task) -> str:
    """The name of the jobs, which the first run of the task has chosen, or will choose."""
    return name_of_jobs("distill", task.config, inputs={"topk": task.topk}, run_id="r-1")


def test_the_attempts_of_a_job_end_and_the_exit_handler_deletes_them_all(
    task: Task, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.scripts = {(attempt, 1): reported(Kind.UNAVAILABLE, f"no MLflow at attempt {attempt}") for attempt in range(3)}
    with pytest.raises(PipelineError, match=r"TrainJob star-distill-\w+-2 failed: no MLflow at attempt 2$") as failed:
        task.run()
    assert not failed.value.input_fault
    with pytest.raises(PipelineError, match="-2 was the last of 3 attempts"):
        task.run()
    # They stay until the exit handler comes. One that has failed trains once more when its JobSet is deleted.
    assert list(kubernetes.jobs) == kubernetes.created() and len(kubernetes.jobs) == 3
    again = kubernetes.created()[0]
    kubernetes.delete_jobset(again)
    kubernetes.reconcile()
    assert [pod.job for pod in kubernetes.pods.values() if pod.job == again] == [again, again]
    monkeypatch.setenv("STAR_TRAIN_JOB", CLUSTER.model_dump_json())
    close_pipeline("r-1", state="FAILED", error=None)
    assert not kubernetes.jobs and not (task.folder / "work" / "jobs" / "r-1").exists()


def test_the_fault_of_the_user_is_not_tried_again(task: Task, kubernetes: Kubernetes) -> None:
    task.scripts = {(0, 1): reported(Kind.INPUT, "train.jsonl, line 4: not a row")}
    with pytest.raises(PipelineError, match=r"-0 failed: train.jsonl, line 4: not a row$") as failed:
        task.run()
    assert failed.value.input_fault and len(kubernetes.created()) == 1


def test_a_step_that_does_not_fit_is_tried_once_with_half_the_micro_batch(task: Task, kubernetes: Kubernetes) -> None:
    task.scripts = {
        (attempt, 0): reported(Kind.GPU_MEMORY, "the memory of the GPU is too small") for attempt in range(3)
    }
    with pytest.raises(PipelineError, match="-1 failed: the memory of the GPU is too small"):
        task.run()
    variables = [
        {entry["name"]: entry.get("value") for entry in job.manifest["spec"]["trainer"]["env"]}
        for job in kubernetes.jobs.values()
    ]
    assert [given.get(HALF_MICRO_BATCH) for given in variables] == [None, "1"]


NO_ROOM = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/5 nodes are available"}
    ],
}
NO_IMAGE = {
    "phase": "Pending",
    "containerStatuses": [
        {
            "name": "node",
            "image": "star",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image star:1"}},
        }
    ],
}
REFUSED = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": seccompProfile'


@pytest.mark.parametrize(
    ("refuses", "waits", "limit", "reason"),
    [
        (
            REFUSED,
            {},
            "REFUSED_SECONDS",
            rf"0 of 2 pods have started after [\d.]+ s: FailedCreate: {re.escape(REFUSED)}",
        ),
        ("", NO_IMAGE, "REFUSED_SECONDS", r"1 of 2 .*-node-0-1-x\d+: ImagePullBackOff: Back-off pulling image star:1"),
        ("", NO_ROOM, "WAITING_SECONDS", r"1 of 2 .*-node-0-1-x\d+: Unschedulable: 0/5 nodes are available"),
    ],
    ids=["refused", "image", "unschedulable"],
)
def test_pods_that_do_not_start_are_named_and_end_the_attempt_later(
    task: Task,
    kubernetes: Kubernetes,
    refuses: str,
    waits: dict,
    limit: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    kubernetes.refuses = refuses
    kubernetes.waits = lambda job, rank: waits if rank else {}
    task.scripts = {(0, 0): "exec sleep 60"}
    monkeypatch.setattr(train_job_watch, "REPORT_AFTER", 0.2)
    monkeypatch.setattr(train_job_watch, limit, 0.6)
    with pytest.raises(InputError, match=f"TrainJob star-distill-.*-0: {reason}; the job is deleted$"):
        task.run()
    assert re.search(f"^TrainJob star-distill-.*-0: {reason}$", capsys.readouterr().err, re.MULTILINE)
    assert len(kubernetes.created()) == 1 and not kubernetes.jobs


def test_a_job_that_waits_in_a_queue_may_wait_and_one_that_starts_late_succeeds(
    task: Task, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    kubernetes.suspended = True
    asked = 0

    reconcile = kubernetes.reconcile

    def admitted_later() -> None:
        nonlocal asked
        asked += 1
        kubernetes.suspended = asked < 40
        reconcile()

    monkeypatch.setattr(kubernetes, "reconcile", admitted_later)
    monkeypatch.setattr(train_job_watch, "REPORT_AFTER", 0.1)
    monkeypatch.setattr(train_job_watch, "REFUSED_SECONDS", 0.1)
    kubernetes.forbidden = {"events"}
    assert task.run() == {"ckd_loss": 0.5}
    log = capsys.readouterr().err
    assert log.count("is suspended (TrainJob is suspended): it waits for its queue") == 1 and "have started" not in log


def test_without_the_right_to_read_events_the_pods_own_reasons_are_shown(
    task: Task, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.refuses, kubernetes.forbidden = REFUSED, {"events"}
    monkeypatch.setattr(train_job_watch, "REPORT_AFTER", 0.0)
    monkeypatch.setattr(train_job_watch, "WAITING_SECONDS", 0.0)
    with pytest.raises(InputError, match=r"events cannot be read \(HTTP 403: .*\): apply deploy/multinode again"):
        task.run()


def test_an_api_that_does_not_answer_is_asked_again_and_a_job_that_somebody_deleted_ends_the_task(
    task: Task, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    task.scripts = {(0, 0): "exec sleep 60"}
    monkeypatch.setattr(train_job_watch, "MAX_FAILED_POLLS", 3)
    kubernetes.faults = [404, 503, 503, 503]
    with pytest.raises(UnavailableError, match=r"cannot be read \(HTTP 503: .*\): check the API; the job trains on"):
        task.run()
    # The next task goes on with the job.
    kubernetes.faults = [200, 503, 404]
    with pytest.raises(PipelineError, match=r"TrainJob star-distill-\w+-0 was deleted"):
        task.run()
    log = capsys.readouterr().err
    assert "going on with TrainJob" in log and log.count("cannot be read, and is asked for again: HTTP 503") == 2
    assert len(kubernetes.created()) == 1


def test_jobs_of_other_runs_stay_and_a_cluster_that_refuses_is_a_line(
    task: Task, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    task.scripts = {(0, 1): reported(Kind.INPUT, "no row")}
    for run in ("r-1", "r-2"):
        monkeypatch.setenv("KFP_RUN_ID", run)
        with pytest.raises(PipelineError):
            task.run()
    assert len(delete_jobs_of_run("r-2")) == 1 and list(kubernetes.jobs) == kubernetes.created()[:1]
    kubernetes.forbidden = {"trainjobs"}
    assert delete_jobs_of_run("r-1") == []
    assert "could not be listed (HTTP 403: " in (log := capsys.readouterr().err)
    assert "kubectl delete trainjobs -l star/run=r-1" in log


FAILED_STATE = State("Failed", "ReachedMaxRestarts", "reached")


def pod(rank: int, code: int | None, reason: str = "Error", second: int = 0) -> Pod:
    finished = None if code is None else datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
    return Pod(f"p{rank}", rank, True, exit_code=code, reason=reason, finished=finished)


@pytest.mark.parametrize(
    ("pods", "report", "kind", "message"),
    [
        ([], None, Kind.ERROR, "ReachedMaxRestarts: reached"),
        ([pod(0, 143, second=1), pod(1, 3, second=9)], None, Kind.ERROR, "pod p1 (node 1) ended with exit code 3"),
        ([pod(0, 1, second=2), pod(1, 2, second=3)], None, Kind.INPUT, "pod p1 (node 1) ended with exit code 2"),
        ([pod(0, 1), pod(1, None, "Evicted")], None, Kind.KILLED, "pod p1 (node 1) failed: Evicted"),
        # A lost node makes the others fail, and these report it.
        (
            [pod(0, 1), pod(1, 137)],
            Failure(Kind.ERROR, "NCCL"),
            Kind.KILLED,
            "pod p1 (node 1) ended with exit code 137",
        ),
        ([pod(0, 1), pod(1, 137)], Failure(Kind.INPUT, "no row"), Kind.INPUT, "no row"),
        ([pod(0, 1)], Failure(Kind.KILLED, "rank 1 of 4", signal=9), Kind.KILLED, "rank 1 of 4 was ended by SIGKILL"),
        ([pod(0, 1)], Failure(Kind.ERROR, "KeyError: 'x'"), Kind.ERROR, "KeyError: 'x'"),
    ],
)
def test_the_cause_of_a_failure_is_told_from_its_consequences(
    pods: list[Pod], report: Failure | None, kind: Kind, message: str
) -> None:
    found = why_failed(FAILED_STATE, pods, report)
    assert found.kind is kind and found.message.startswith(message)
