"""A Kubeflow Pipelines server: submit a pipeline to it, follow a run, read its logs, cancel it (API v2beta1, kfp.Client underneath).

A server that is away for a moment (502, 503, a cut connection) is asked again; one that refuses says what to do about it.
"""

import contextlib
import io
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import requests
from urllib3.exceptions import HTTPError

from star.config.experiment import Config
from star.errors import InputError, PipelineError

Answer = TypeVar("Answer")
ATTEMPTS = 6  # of one request
PAUSE = 1.0  # seconds before the second attempt; each further one waits twice as long
TIMEOUT = 30.0
AWAY = (429, 500, 502, 503, 504)
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
NEW_TOKEN = "get a new token and give it with --token or KFP_TOKEN"


@dataclass(frozen=True)
class Task:
    """One task of a run: a shard is a task of its own."""

    name: str
    state: str
    error: str
    pods: tuple[str, ...]


@dataclass(frozen=True)
class RunStatus:
    run_id: str
    state: str
    error: str
    tasks: tuple[Task, ...]

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Server:
    """Where the server is and as whom to talk to it. Without a host: from inside the cluster, with the pod's own account."""

    host: str | None
    token: str | None = None
    namespace: str | None = None

    def submit(self, config: Config, *, image: str, experiment: str) -> str:
        """Compiles the configuration's pipeline for that image and starts a run; returns its id.

        A request that failed on the way may have arrived: a run of that name is looked for before another one is started.
        """
        from star.pipelines.star_pipeline import compile_pipeline

        client = self._client
        name = f"{config.name}-{uuid.uuid4().hex[:8]}"
        with TemporaryDirectory() as folder:
            package = Path(folder) / "star.yaml"
            compile_pipeline(config, package, image=image)
            group = self._ask(lambda: client.create_experiment(experiment, namespace=self.namespace))

            def create() -> str:
                found = client.list_runs(
                    page_size=100, sort_by="created_at desc", experiment_id=group.experiment_id
                ).runs
                for run in found or []:
                    if run.display_name == name:
                        return run.run_id
                account = config.cluster.service_account
                return client.run_pipeline(group.experiment_id, name, str(package), service_account=account).run_id

            return self._ask(create)

    def status(self, run_id: str) -> RunStatus:
        """The state of a run and of its tasks, in the order in which they were created."""
        run = self._ask(lambda: self._client.get_run(run_id), run_id=run_id)
        details = sorted(
            (run.run_details and run.run_details.task_details) or [], key=lambda task: str(task.create_time)
        )
        by_node = {detail.pod_name: detail for detail in details}
        tasks = [
            Task(detail.display_name, detail.state or "PENDING", _message(detail.error), tuple(_pods(detail, by_node)))
            for detail in details
            if not detail.display_name.startswith(("root", "executor")) and not detail.display_name.endswith("-driver")
        ]
        return RunStatus(run.run_id, run.state or "PENDING", _message(run.error), tuple(tasks))

    def follow(self, run_id: str, *, poll_seconds: float) -> Iterator[RunStatus]:
        """Yields the run's status whenever it changed, until the run has ended."""
        last = None
        while last is None or not last.ended:
            if last is not None:
                time.sleep(poll_seconds)
            status = self.status(run_id)
            if status != last:
                yield status
            last = status

    def logs(self, run_id: str, *, task: str | None = None) -> Iterator[tuple[str, str]]:
        """Yields (task, log) of every pod of a run, or of the tasks with that name.

        Raises:
            InputError: the run has no such task, or the server does not have the logs any more.
        """
        status = self.status(run_id)
        chosen = [entry for entry in status.tasks if task in (None, entry.name)]
        if not chosen:
            raise InputError(
                f"run {run_id} has no task {task}: it has {', '.join(sorted({t.name for t in status.tasks}))}"
            )
        for entry in chosen:
            for pod in entry.pods:
                yield entry.name, self._log(run_id, pod)

    def cancel(self, run_id: str) -> None:
        self._ask(lambda: self._client.terminate_run(run_id), run_id=run_id)

    def page(self, run_id: str) -> str:
        """The address of a run in the user interface."""
        return f"{(self.host or '').rstrip('/')}/#/runs/details/{run_id}"

    def _log(self, run_id: str, pod: str) -> str:
        """The one route of the API for logs, which has no v2beta1 form."""
        url = f"{(self.host or '').rstrip('/')}/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log"

        def get() -> str:
            response = requests.get(url, headers=self._headers(), timeout=TIMEOUT)
            if response.status_code == 404:
                raise InputError(f"the log of {pod} is gone: kubectl logs, or the cluster's log archive, may have it")
            response.raise_for_status()
            return response.text

        return self._ask(get, run_id=run_id)

    @cached_property
    def _client(self):
        """A kfp client, made after the server was seen to answer: kfp itself would wait half a minute and not say why."""
        if not self.host and "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise InputError("no Kubeflow Pipelines server: give --host or KFP_HOST, like http://localhost:8080")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import kfp

            if self.host:
                self._ask(self._is_there)
            with contextlib.redirect_stdout(io.StringIO()):
                return kfp.Client(host=self.host, existing_token=self.token, namespace=self.namespace or "kubeflow")

    def _is_there(self) -> None:
        address = f"{self.host.rstrip('/')}/apis/v2beta1/healthz"
        requests.get(address, headers=self._headers(), timeout=TIMEOUT).raise_for_status()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def _ask(self, request: Callable[[], Answer], *, run_id: str | None = None) -> Answer:
        """The answer to a request, asked again while the server is away.

        Raises:
            InputError: the server refuses (the message has the cure).
            PipelineError: it stayed away.
        """
        import kfp_server_api

        for attempt in range(ATTEMPTS):
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # kfp prints links of its own
                    return request()
            except (kfp_server_api.ApiException, requests.RequestException, HTTPError) as error:
                status = getattr(error, "status", None) or getattr(
                    getattr(error, "response", None), "status_code", None
                )
                if isinstance(error, kfp_server_api.ApiException | requests.HTTPError) and status not in AWAY:
                    raise InputError(self._refusal(status, error, run_id)) from error
                if attempt == ATTEMPTS - 1:
                    reason = f"HTTP {status}" if status else type(error).__name__
                    again = f"; run {run_id} goes on without us: `star pipeline status {run_id}`" if run_id else ""
                    message = f"{self.host} stays away ({reason}): try again later{again}"
                    raise PipelineError(message, input_fault=False) from error
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _refusal(self, status: int | None, error: Exception, run_id: str | None) -> str:
        if status == 401:
            kept = f"; run {run_id} is not touched by that" if run_id else ""
            return f"{self.host} does not take the token, it has expired or is another server's: {NEW_TOKEN}{kept}"
        if status == 403:
            return f"{self.host} refuses: this account may not do that in namespace {self.namespace or 'of its own'}; {NEW_TOKEN}"
        if status == 404:
            return (
                f"{self.host} knows no run {run_id}: check the id and the host"
                if run_id
                else f"{self.host} is no KFP server"
            )
        said = (getattr(error, "body", None) or str(error)).strip().partition("\n")[0][:300]
        return f"{self.host} refuses with HTTP {status}: {said}"


def _pods(detail, by_node: dict) -> Iterator[str]:
    """The pods that did a task's work: the executors below its node, one a try."""
    children = [by_node[child.pod_name] for child in detail.child_tasks or [] if child.pod_name in by_node]
    executors = [child for child in children if child.display_name.startswith("executor")]
    for child in executors:
        yield from _pods(child, by_node)
    if not executors and detail.display_name.startswith("executor"):
        yield detail.pod_name


def _message(error) -> str:
    return (error.message or "") if error else ""
