"""Waits for one TrainJob: prints its first pod's log, what happens to the pods, and why pods do not start.

    started TrainJob star-distill-0f3b21c4d5e6-0
    TrainJob star-distill-0f3b21c4d5e6-0: 1 of 2 pods have started after 3 min 0 s: ...-node-0-1-x8k2p: Unschedulable: 0/5 nodes ...
    ...                                                                        (the first pod's log)
    pod star-distill-0f3b21c4d5e6-0-node-0-1-x8k2p (node 1) ended with exit code 137: OOMKilled, the limit of its memory is 256Gi
      | distil the student (CKD): 120/800
    pod star-distill-0f3b21c4d5e6-0-node-0-0-m4v7d (node 0) is being stopped: SIGTERM

Everything is printed as soon as it is seen, because the cluster deletes pods that still run when another one fails.
"""

import time
from contextlib import suppress

from star.cluster.trainer_api import ENDED, SUSPENDED, Pod, State, TrainJobs, reason_of
from star.errors import InputError, PipelineError, UnavailableError
from star.progress import print_line
from star.units import format_seconds

POLL_SECONDS = 5.0
MAX_FAILED_POLLS = (
    180  # consecutive polls without an answer before the task fails: half an hour, for an update of the control plane
)
TAIL_LINES = 20  # of the log of a pod that failed
# A job whose pods have not all started is in the log after 3 minutes. A node may have to be provisioned, so it has an hour, as long as the
# rendezvous waits. What the cluster refuses starts by no waiting, only after somebody has changed something.
REPORT_AFTER, REPORT_EVERY = 180.0, 600.0
REFUSED_SECONDS, WAITING_SECONDS = 900.0, 3600.0
REFUSED_PODS = "FailedCreate"  # an event of the Job: pods that admission, a quota or the security level refuses
REFUSED_CONTAINERS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}


class JobWatch:
    """One TrainJob, from its creation to its end.

    Attributes:
        pods: the pods by name, as they were last seen, also those that are gone.
    """

    def __init__(self, jobs: TrainJobs, name: str, *, nodes: int) -> None:
        self.jobs, self.name, self.nodes = jobs, name, nodes
        self.pods: dict[str, Pod] = {}
        self._reported: set[str] = set()
        self._lines_printed = 0
        self._all_started = self._suspended = False
        self._waits_since: float | None = None
        self._next_report = 0.0

    def until_ended(self) -> State:
        """Returns the state that the job ended in, COMPLETE or FAILED.

        Raises:
            PipelineError: somebody deleted the job.
            UnavailableError: the cluster's API did not answer MAX_FAILED_POLLS times. The job trains on.
            InputError: the pods did not start within their time. The job has been deleted.
        """
        failed_polls = 0
        while True:
            try:
                state = self.jobs.state(self.name)
            except self.jobs.errors as error:
                # The job trains on without this task, so one unanswered poll is no reason to fail.
                failed_polls += 1
                if failed_polls == 1:
                    print_line(
                        f"the state of TrainJob {self.name} cannot be read, and is asked for again: {reason_of(error)}"
                    )
                if failed_polls == MAX_FAILED_POLLS:
                    raise UnavailableError(
                        f"the state of TrainJob {self.name} cannot be read ({reason_of(error)}): check the API; the job trains on"
                    ) from error
                time.sleep(POLL_SECONDS)
                continue
            failed_polls = 0
            if state is None:
                raise PipelineError(f"TrainJob {self.name} was deleted", input_fault=False)
            present: list[Pod] | None = None
            with suppress(Exception):  # pods and logs that cannot be read must not end the training
                present = self.jobs.pods(self.name)
                self._report(present, ended=state.kind in ENDED)
            if state.kind in ENDED:
                return state
            if present is not None:
                self._require_start(state, present)
            time.sleep(POLL_SECONDS)

    def _report(self, present: list[Pod], *, ended: bool) -> None:
        self.pods |= {pod.name: pod for pod in present}
        if first := next((pod for pod in present if pod.rank == 0 and pod.started), None):
            self._print_new_log_lines(first.name)
        for pod in self.pods.values():
            gone = pod not in present
            if pod.name in self._reported or not (pod.has_failed or pod.deleted or (ended and gone)):
                continue
            self._reported.add(pod.name)
            print_line(describe(pod, gone=gone))
            # The first pod's log has been printed. A log goes with its pod.
            if pod.rank and not gone:
                for line in self.jobs.log(pod.name, last=TAIL_LINES):
                    print_line(f"  | {line}")

    def _print_new_log_lines(self, pod: str) -> None:
        lines = self.jobs.log(pod)
        if len(lines) < self._lines_printed:  # the pod was restarted, and its log with it
            self._lines_printed = 0
        for line in lines[self._lines_printed :]:
            print_line(line)
        self._lines_printed = len(lines)

    def _require_start(self, state: State, present: list[Pod]) -> None:
        """Says after a while why pods have not started, and ends the job after a longer one."""
        if state.kind == SUSPENDED:
            if not self._suspended:
                print_line(
                    f"TrainJob {self.name} is suspended ({state.message or state.reason}): it waits for its queue"
                )
            self._suspended, self._waits_since = True, None
            return
        started = sum(pod.started for pod in present)
        self._all_started = self._all_started or started >= self.nodes
        if self._all_started:
            return
        now = time.monotonic()
        if self._waits_since is None:
            self._waits_since, self._next_report = now, now + REPORT_AFTER
        if now < self._next_report:
            return
        self._next_report = now + REPORT_EVERY
        reasons, refused = self._why_pods_wait(present)
        waited = now - self._waits_since
        text = f"TrainJob {self.name}: {started} of {self.nodes} pods have started after {format_seconds(waited)}: {reasons}"
        limit = REFUSED_SECONDS if refused else WAITING_SECONDS
        # The next look is not later than the end.
        self._next_report = min(self._next_report, self._waits_since + limit)
        if waited < limit:
            print_line(text)
            return
        # Otherwise pods could start later, with nobody to take their result.
        self.jobs.delete(self.name)
        raise InputError(f"{text}; the job is deleted")

    def _why_pods_wait(self, present: list[Pod]) -> tuple[str, bool]:
        """Why the pods that have not started wait, and whether the cluster refuses them."""
        waiting = [pod for pod in present if not pod.started]
        reasons = [f"{pod.name}: {_reason_of(pod)}" for pod in waiting if pod.reason]
        refused = any(pod.reason in REFUSED_CONTAINERS for pod in waiting)
        try:
            warnings = self.jobs.warnings(self.name)
        except self.jobs.errors as error:
            warnings = [f"events cannot be read ({reason_of(error)}): apply deploy/multinode again"]
        if len(present) < self.nodes:
            refused = refused or any(warning.startswith(REFUSED_PODS) for warning in warnings)
        # The newest one says how it is now.
        return "; ".join([*reasons, *warnings[-2:]]) or "nothing says why", refused


def describe(pod: Pod, *, gone: bool = False) -> str:
    """What happened to a pod that failed, is being stopped, or is gone."""
    subject = f"pod {pod.name} (node {pod.rank})"
    if pod.exit_code is not None:
        limit = f", the limit of its memory is {pod.memory}" if pod.reason == "OOMKilled" and pod.memory else ""
        reason = f": {_reason_of(pod)}" if pod.reason not in ("", "Error", "Completed") else ""
        return f"{subject} ended with exit code {pod.exit_code}{reason}{limit}"
    if pod.has_failed:
        return f"{subject} failed: {_reason_of(pod)}"
    return f"{subject} was deleted while it ran" if gone else f"{subject} is being stopped: SIGTERM"


def _reason_of(pod: Pod) -> str:
    return f"{pod.reason}: {pod.message}" if pod.message else pod.reason
