"""Says why a task of a run failed or waits, by its log and, with a kubeconfig, by its pods; and what the exit handler said."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from star.cluster.run_pods import PodFinding, RunPods
from star.cluster.run_tasks import RunStatus, Task
from star.cluster.task_log import Progress, Reason, closing_text, failure_reason, progress_of
from star.errors import InputError, PipelineError
from star.pipelines.kfp_client import KfpClient
from star.units import format_seconds

WAITING_SECONDS = 180.0  # for which a pod may wait before that is said without a kubeconfig
EXIT_HANDLER = "finish"  # the task's name
KILLED = "signal: killed"  # as KFP's launcher says it


def failure_of(client: KfpClient, run_id: str, task: Task, *, pods: RunPods) -> Reason:
    """Why a task failed: what the cluster says about its last pod, else its own error, else the end of its log."""
    if not task.pods:
        return _plain("its pod never started")
    pod = task.pods[-1]
    if finding := pods.findings().get(pod):
        return _plain(_of_finding(finding))
    try:
        log = client.pod_log(run_id, pod)
    except (InputError, PipelineError) as error:
        return _plain(f"its log could not be read: {error}")
    reason = failure_reason(log or "")
    if reason and reason.is_error:
        return reason
    limit = f" of {task.memory}" if task.memory else ""
    ended = "was killed" if KILLED in (log or "") else "may have been killed" if log else "did not start, or was killed"
    hint = (
        f"{'no error in its log' if log else 'it has no log'}: its container {ended}, as for more memory than its limit{limit} "
        f"(OOMKilled){_unasked(pods)}. `kubectl -n {pods.namespace} describe pod {pod}` says so while the pod is there"
    )
    return replace(reason, text=f"{reason.text}\n{hint}", headline=hint) if reason else _plain(hint)


def told_by(client: KfpClient, run_id: str, task: Task) -> str | None:
    """What the exit handler said about the run's end; None for other tasks, where it has not ended, and where its log cannot be read."""
    if task.name != EXIT_HANDLER or task.state != "SUCCEEDED" or not task.pods:
        return None
    with suppress(InputError, PipelineError):  # the run has ended as the server says, whoever read it
        return closing_text(client.pod_log(run_id, task.pods[-1]) or "")
    return None


def progress_line(client: KfpClient, run_id: str, task: Task) -> Progress | None:
    """How far a running task is; None for other tasks, and where its log cannot be read or has no progress."""
    if task.state != "RUNNING" or not task.pods:
        return None
    with suppress(InputError, PipelineError):
        return progress_of(client.pod_log(run_id, task.pods[-1], at_a_glance=True) or "")
    return None


def _plain(text: str) -> Reason:
    return Reason(text, text)


def waiting_reasons(
    status: RunStatus, findings: Mapping[str, PodFinding], *, seconds: Mapping[str, float], pods: RunPods
) -> dict[str, str]:
    """Why tasks wait for their pods, by the names of the tasks. What has waited for a short time only is left out, unless a cause is known.

    Args:
        findings: What is wrong with pods, by their names.
        seconds: For how long each task that waits has done so, by its key.
    """
    reasons = {}
    for task in status.tasks:
        if task.key not in seconds or not task.pods:
            continue
        pod, waited = task.pods[-1], seconds[task.key]
        if finding := findings.get(pod):
            reasons[task.name] = _of_finding(finding)
        elif waited >= WAITING_SECONDS:
            reasons[task.name] = (
                f"its pod has not started for {format_seconds(round(waited))}{_unasked(pods)}: "
                f"`kubectl -n {pods.namespace} describe pod {pod}` says why"
            )
    known = {pod for task in status.tasks for pod in task.pods}
    for pod in sorted(set(findings) - known):
        reasons[f"pod {pod}"] = _of_finding(findings[pod])
    return reasons


def _unasked(pods: RunPods) -> str:
    """Why a kubeconfig that is there did not help."""
    return f" (its pod could not be looked at: {pods.problem})" if pods.problem else ""


def _of_finding(finding: PodFinding) -> str:
    return f"{finding.kind}: {finding.text}" if finding.text else finding.kind
