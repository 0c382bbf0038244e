"""Runs a training on several nodes, as TrainJobs of Kubeflow Trainer v2 that the stage's task creates and waits for.

Worked example. The profile has `train_jobs: {distill: {nodes: 2}}`, `work_claim: star-work` and nodes of 8 GPUs. The task `distill` gets
this environment (star/pipelines/resources.py):

    STAR_TRAIN_JOB={"train_jobs": {"distill": {}}, "work_claim": "star-work", ...}
    STAR_IMAGE=registry.example.com/star-python:1
    STAR_WORK=/var/star/work
    KFP_RUN_ID=5a1c

The volume of `work_claim` is mounted in the task's pod and in the job's pods. There the task writes the inputs, and rank 0 the result:

    /var/star/work/jobs/5a1c/star-distill-0f3b21c4d5e6/topk/            verified copy of the input
                                                      /settings.json    sections of the configuration that the stage reads
                                                      /failures/0/      why the first attempt failed (star/cluster/failure.py)
                                                      /out/             result

The task creates this job (shortened; see train_job_manifest.py) and prints the log of its first pod until it has ended:

    metadata: {name: star-distill-0f3b21c4d5e6-0, labels: {star/run: 5a1c}}
    spec:
      runtimeRef: {name: star-torch}
      trainer:
        image: registry.example.com/star-python:1
        numNodes: 2
        numProcPerNode: 8
        command: [python, -m, star.cluster.ranks, ..., -m, star.cli, distill, --config=.../settings.json, --topk=.../topk, --out=.../out]

Kubeflow Trainer starts 2 pods and tells torchrun about the others in PET_ variables (PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, ...).
At the end the task copies `out` to its own output and deletes the jobs. `out` itself stays for a retry until the exit handler removes it.

What happens on failure:

- A process or a pod fails: the job fails. After a pause the next one, ...-1, goes on from the last checkpoint in STAR_WORK, as often as
  `cluster.retry.attempts` says. The number is in the jobs' names, so a task that was started again counts on. If the user's input is at
  fault, there is no next one.
- The cluster refuses the pods, or they do not start: train_job_watch.py says why.
- The task's pod is lost: the job trains on. KFP's retry waits for that job, or copies its result if it is complete.
- The task receives SIGTERM: it deletes the jobs. The pods save a checkpoint, from which a new run of the pipeline resumes.
- The cluster's API does not answer: the job trains on, and the task asks again for half an hour.
- Jobs that have failed stay until the exit handler deletes them (trainer_api.py says why it must).
"""

import itertools
import json
import os
import shutil
import time
from pathlib import Path

from star.cluster.failure import FOLDER_VARIABLE, INPUT_AT_FAULT, Failure, Kind, read_reports
from star.cluster.torchrun import stage_command, write_settings
from star.cluster.train_job_manifest import job_manifest
from star.cluster.train_job_watch import JobWatch, describe
from star.cluster.trainer_api import COMPLETE, ENDED, Pod, State, TrainJobs, find_runtime, trainer_client
from star.config.cluster import Cluster, TrainingStage
from star.config.experiment import Config
from star.config.training import HALF_MICRO_BATCH
from star.errors import InputError, PipelineError
from star.folders.manifest import METRICS, open_input, read_manifest
from star.folders.owners import create_private
from star.folders.publish import copy_folder_atomically
from star.folders.working_paths import train_jobs_folder
from star.hashing import digest_of
from star.progress import print_line
from star.sigterm import EXIT_STATUS, sigterm_raises_system_exit
from star.stages import Metrics, stage_named

KILLED_FROM = 128  # exit codes above it are of processes that a signal ended


def run_train_job(
    stage: TrainingStage, config: Config, *, cluster: Cluster, inputs: dict[str, Path], out: Path
) -> Metrics:
    """Runs a training stage as TrainJobs, one after the other until one is complete, and copies its result to `out`.

    Raises:
        PipelineError: the last attempt failed, or somebody deleted the job. The message has the reason.
        InputError: the pods did not start, or the training runtime cannot be used.
        UnavailableError: the cluster's API did not answer.
        SystemExit: the task received SIGTERM and has deleted the jobs.
    """
    if not os.environ.get("STAR_WORK"):
        raise InputError("STAR_WORK is not set: a TrainJob needs the volume of `cluster.work_claim` there")
    run_id = os.environ.get("KFP_RUN_ID", "no-run")
    name = name_of_jobs(stage, config, inputs=inputs, run_id=run_id)
    exchange = train_jobs_folder(run_id) / name
    result = exchange / "out"
    # Before anything there is read: whoever can guess the names could put a result there.
    for folder in (exchange.parent.parent, exchange.parent, exchange):
        create_private(folder)
    # The task's pod may have been lost after the job was complete. Its retry then only copies the result.
    if not _is_finished(result, stage):
        attempts = Attempts(name, stage=stage, cluster=cluster, failures=exchange / "failures")
        # Without a deletion the pods would train on after the run was cancelled, and hold their accelerators.
        with sigterm_raises_system_exit(ignore_repeats=True):
            try:
                copies = _copy_inputs(stage, inputs, exchange)
                settings = write_settings(stage, config, exchange)
                attempts.run(stage_command(stage, settings=settings, inputs=copies, out=result))
            except (SystemExit, KeyboardInterrupt):
                attempts.delete_jobs()
                raise
        attempts.delete_jobs()
        # Complete is what Kubernetes says about the pods. Whether the result is whole, only its manifest says.
        open_input(result, stage=stage)
    copy_folder_atomically(result, out)
    # Only the copied inputs go. The result stays for a retry until the exit handler removes it.
    for key in inputs:
        shutil.rmtree(exchange / key, ignore_errors=True)
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def name_of_jobs(stage: TrainingStage, config: Config, *, inputs: dict[str, Path], run_id: str) -> str:
    """The name of a training's jobs, without the number of the attempt."""
    # It depends on everything that the result depends on, so that a retry of the same task finds its jobs.
    digests = {key: read_manifest(folder).digest for key, folder in inputs.items()}
    return f"star-{stage}-{digest_of([stage, config.slice(stage_named(stage).sections), digests, run_id])[:12]}"


class Attempts:
    """The TrainJobs of one training, one per attempt: NAME-0, and NAME-1 after NAME-0 has failed.

    Args:
        failures: folder that gets one folder per attempt, in which its processes report why they failed.

    Attributes:
        number: of the job that is waited for; None before it is known.
    """

    def __init__(self, name: str, *, stage: TrainingStage, cluster: Cluster, failures: Path) -> None:
        client = trainer_client()
        # The name may be that of a ClusterTrainingRuntime, which the reference must say.
        self.runtime_kind = find_runtime(client, cluster.train_jobs[stage].runtime).kind.value
        self.jobs = TrainJobs(client)
        self.name, self.stage, self.cluster, self.failures = name, stage, cluster, failures
        self.number: int | None = None

    def run(self, command: list[str]) -> None:
        """Creates jobs, or goes on with one of an earlier task, until one is complete. Raises as `run_train_job`."""
        retry = self.cluster.retry
        numbers = itertools.count()
        # A complete job is passed over like a failed one: its result was looked for before, and is missing or not valid.
        number, state = next((number, state) for number in numbers if not _has_ended(state := self._state(number)))
        while True:
            if number > retry.attempts:
                message = f"TrainJob {self._name_of(number - 1)} was the last of {number} attempts: the log of the pod before says why"
                raise PipelineError(message, input_fault=False)
            self.number = number
            self._create_or_resume(number, state, command)
            began = time.monotonic()
            if (failure := self._wait_for(number)) is None:
                return
            seconds = time.monotonic() - began
            line = f"attempt {number + 1} of {retry.attempts + 1} ({self.stage}) ended after {seconds:.1f} s: {failure.kind}"
            # The micro batch is halved once.
            hopeless = failure.kind is Kind.INPUT or (failure.kind is Kind.GPU_MEMORY and self._ran_out_before(number))
            if hopeless or number == retry.attempts:
                print_line(f"{line}, no other attempt")
                message = f"TrainJob {self._name_of(number)} failed: {failure.message}"
                raise PipelineError(message, input_fault=failure.kind is Kind.INPUT)
            pause = retry.pause(number + 1)
            print_line(f"{line}, next in {pause} s: {failure.message}")
            time.sleep(pause)
            number, state = number + 1, None

    def delete_jobs(self) -> None:
        """Deletes the jobs of all attempts, the running one first."""
        # SIGTERM may arrive before the attempt is known: then every job from 0 upwards is deleted, until there is none.
        numbers = itertools.count() if self.number is None else range(self.number, -1, -1)
        for number in numbers:
            if not self.jobs.delete(self._name_of(number)) and self.number is None:
                return

    def _create_or_resume(self, number: int, state: State | None, command: list[str]) -> None:
        name = self._name_of(number)
        if state:
            print_line(f"going on with TrainJob {name}")
            return
        reports = self._reports_of(number)
        reports.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, FOLDER_VARIABLE: str(reports)}
        if self._ran_out_before(number):
            environment[HALF_MICRO_BATCH] = "1"
        manifest = job_manifest(self.stage, cluster=self.cluster, command=command, environment=environment)
        manifest["metadata"]["name"] = name
        manifest["spec"]["runtimeRef"]["kind"] = self.runtime_kind
        self.jobs.create(manifest)
        print_line(f"started TrainJob {name}")

    def _wait_for(self, number: int) -> Failure | None:
        """Waits until the job has ended. Returns why it failed, or None if it is complete."""
        watch = JobWatch(self.jobs, self._name_of(number), nodes=self.cluster.train_jobs[self.stage].nodes)
        state = watch.until_ended()
        if state.kind == COMPLETE:
            return None
        print_line(f"TrainJob {self._name_of(number)} failed: {state.reason}: {state.message}")
        return why_failed(state, list(watch.pods.values()), read_reports(self._reports_of(number)))

    def _ran_out_before(self, number: int) -> bool:
        """Whether a step of an earlier attempt did not fit into the GPU's memory."""
        earlier = (read_reports(self._reports_of(attempt)) for attempt in range(number))
        return any(failure is not None and failure.kind is Kind.GPU_MEMORY for failure in earlier)

    def _reports_of(self, number: int) -> Path:
        return self.failures / str(number)

    def _name_of(self, number: int) -> str:
        return f"{self.name}-{number}"

    def _state(self, number: int) -> State | None:
        return self.jobs.state(self._name_of(number))


def why_failed(state: State, pods: list[Pod], reported: Failure | None) -> Failure:
    """Why a job failed, by what its processes reported, how its pods ended, and the job's condition."""
    # Pods that another failure stopped end with 143, or are deleted before they have ended.
    causes = [pod for pod in pods if pod.has_failed and pod.exit_code != EXIT_STATUS]
    causes.sort(key=lambda pod: (pod.finished is None, pod.finished))
    killed = next((pod for pod in causes if pod.exit_code is None or pod.exit_code > KILLED_FROM), None)
    # A pod that is lost reports nothing, and makes processes of other pods fail, which do.
    if killed and (reported is None or reported.kind in (Kind.KILLED, Kind.ERROR)):
        return Failure(Kind.KILLED, describe(killed))
    if reported and reported.kind is Kind.KILLED:
        return Failure(Kind.KILLED, f"{reported.message} was ended by {reported.signal_name}")
    if reported:
        return reported
    if not causes:
        return Failure(Kind.ERROR, f"{state.reason}: {state.message}")
    at_fault = next((pod for pod in causes if pod.exit_code == INPUT_AT_FAULT), None)
    kind = Kind.INPUT if at_fault else Kind.ERROR
    return Failure(kind, f"{describe(at_fault or causes[0])}: the reason is in the log above")


def _has_ended(state: State | None) -> bool:
    return state is not None and state.kind in ENDED


def _copy_inputs(stage: TrainingStage, inputs: dict[str, Path], exchange: Path) -> dict[str, Path]:
    """Verifies the inputs and copies them to where the pods read them. Copies of an earlier attempt are kept."""
    copies = {key: exchange / key for key in inputs}
    for key, folder in inputs.items():
        # A copy is renamed to its place when it is complete, so one that exists is whole even after a kill.
        if not copies[key].is_dir():
            open_input(folder, stage=stage_named(stage).inputs[key])
            copy_folder_atomically(folder, copies[key])
    return copies


def _is_finished(folder: Path, stage: TrainingStage) -> bool:
    try:
        open_input(folder, stage=stage)
    except InputError:
        return False
    return True
