"""Talks to a Kubeflow Pipelines server: submits a pipeline, follows a run, reads its logs, cancels it (API v2beta1, through kfp.Client).

Requests are retried while the server is unavailable (502, 503, a broken connection). A refused request raises InputError with the cure.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from star.cluster.pipeline_plan import PlannedTask, planned_tasks
from star.cluster.run_pods import RunPods
from star.cluster.run_tasks import RunStatus, read_run
from star.cluster.workflow_nodes import Workflow
from star.config.experiment import Config
from star.errors import InputError, PipelineError
from star.http_client import RedirectError, check_address, send, within
from star.http_exchange import BadStatusError, NoAnswerError
from star.progress import print_line

if TYPE_CHECKING:
    import kfp
    from kfp_server_api.models import V2beta1Run

Answer = TypeVar("Answer")
ATTEMPTS = 6  # of one request
PAUSE = 1.0  # seconds before the second attempt; each further one waits twice as long
TIMEOUT = 30.0  # seconds
LOG_TIMEOUT, MAX_LOG_BYTES = 240.0, 256 * 2**20
GLANCE_TIMEOUT = 20.0  # seconds, of a log that is read for its progress only
MAX_BYTES = 64 * 2**20  # of any other answer, such as the description of a run with all its tasks
CLIENT_TIMEOUT = 300.0  # of one step of kfp's client, which has no deadline of its own
UNAVAILABLE_STATUSES = (429, 500, 502, 503, 504)
NO_LOG_STATUSES = (404, 500)  # KFP answers 500 for a pod that has no log, because it has not started or its log is gone
PATIENCE = 300.0  # seconds for which a run is followed although the server does not answer
END_PAUSE, END_READINGS = 3.0, 5  # after the end of a run, until the last states of its tasks have arrived
DEFAULT_NAMESPACE = "kubeflow"  # of a server for a single user
NEW_TOKEN = "get a new token and give it in KFP_TOKEN"  # noqa: S105 - a hint, no token


class NoSuchRunError(InputError):
    """The server has no run of this ID."""


@dataclass(frozen=True)
class KfpClient:
    """A client of one KFP server.

    Attributes:
        host: Address of the server, such as http://localhost:8080. None inside the cluster, where kfp finds server and account.
        token: Bearer token, if the server wants one.
        namespace: Namespace of the user, if the server has several.
    """

    host: str | None
    token: str | None = field(default=None, repr=False)
    namespace: str | None = None
    # What is known of runs from earlier answers, by id.
    _plans: dict[str, list[PlannedTask]] = field(default_factory=dict, repr=False, compare=False)
    _workflows: dict[str, Workflow] = field(default_factory=dict, repr=False, compare=False)

    def submit(self, config: Config, *, image: str, experiment: str) -> str:
        """Uploads the inputs of this machine, compiles the configuration's pipeline for an image, and starts a run.

        Args:
            experiment: The group of runs that it belongs to.

        Returns:
            The run's ID.
        """
        from star.pipelines.star_pipeline import upload_and_compile

        client = self._client
        name = f"{config.name}-{uuid.uuid4().hex[:8]}"
        with TemporaryDirectory() as folder:
            package = Path(folder) / "star.yaml"
            upload_and_compile(config, package, image=image)
            group = self._ask(lambda: client.create_experiment(experiment, namespace=self.namespace))

            def find_or_create() -> str:
                # The request before this retry may have reached the server although its answer was lost. The run's name is unique, so a
                # run of that name is ours, and creating another one would run the pipeline twice.
                for run in _runs_named(client, name, experiment_id=group.experiment_id):
                    return run.run_id
                account = config.cluster.service_account
                return client.run_pipeline(group.experiment_id, name, str(package), service_account=account).run_id

            return self._ask(find_or_create)

    def status(self, run_id: str) -> RunStatus:
        """The state of a run and of its tasks, in the order in which they run."""
        client = self._client

        def read() -> RunStatus:
            run = client.get_run(run_id)
            if run is None or run.run_id is None:  # such as a login page
                raise InputError(f"{self.host} answers with something else than a run: check --host; {NEW_TOKEN}")
            if run_id not in self._plans:
                self._plans[run_id] = planned_tasks(self._definition(run))
            run.pipeline_spec = None  # which is most of the answer
            document = client._run_api.api_client.sanitize_for_serialization(run)
            workflow = self._workflows.setdefault(run_id, Workflow())
            document["run_id"] = run_id  # whatever the server calls it: addresses are made of it
            return read_run(document, plan=self._plans[run_id], workflow=workflow)

        return self._ask(read, run_id=run_id)

    def _definition(self, run: V2beta1Run) -> dict[str, Any] | None:
        """The definition of a run's pipeline: the run has it, or names the version that has it. None where it may not be read."""
        import kfp_server_api

        version = run.pipeline_version_reference
        if run.pipeline_spec or not (version and version.pipeline_version_id):
            return run.pipeline_spec
        try:
            return self._client.get_pipeline_version(version.pipeline_id, version.pipeline_version_id).pipeline_spec
        except kfp_server_api.ApiException as error:
            if error.status in UNAVAILABLE_STATUSES:
                raise
            return None

    def follow(self, run_id: str, *, poll_seconds: float) -> Iterator[RunStatus]:
        """Yields the status of a run at each poll, until the run and all of its tasks have ended.

        Raises:
            PipelineError: the run was deleted, or the server has not answered for PATIENCE seconds.
        """
        status, readings, silent_since = None, 0, None
        while status is None or not status.is_complete:
            if status is not None:
                time.sleep(min(poll_seconds, END_PAUSE) if status.ended else poll_seconds)
            try:
                status, silent_since = self.status(run_id), None
            except NoSuchRunError as error:
                if status is None:
                    raise
                raise PipelineError(f"run {run_id} was deleted on {self.host}", input_fault=False) from error
            except PipelineError as error:
                silent_since = silent_since or time.monotonic()
                if status is None or time.monotonic() - silent_since > PATIENCE:
                    raise
                print_line(f"{error}; asking again")
                continue
            yield status
            readings += status.ended
            if readings >= END_READINGS:
                return

    def pod_log(self, run_id: str, pod: str, *, at_a_glance: bool = False) -> str | None:
        """What a pod has printed by now. None if it has not started, or if its log is gone.

        Args:
            at_a_glance: Ask once and not for long, because the next poll will ask again.
        """
        # The API has logs in v1alpha1 only, and kfp.Client has no method for them.
        host = self.host or self._client._run_api.api_client.configuration.host
        url = f"{host.rstrip('/')}/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log"

        def get() -> str | None:
            seconds = GLANCE_TIMEOUT if at_a_glance else LOG_TIMEOUT
            answer = send("GET", url, name="--host", token=self.token, seconds=seconds, max_bytes=MAX_LOG_BYTES)
            if answer.status in NO_LOG_STATUSES:
                return None
            return answer.checked().content.decode("utf-8", "replace")

        return self._ask(get, run_id=run_id, attempts=1 if at_a_glance else ATTEMPTS)

    def pods_of(self, run_id: str) -> RunPods:
        """The pods of a run, as a kubeconfig shows them."""
        return RunPods(run_id, self.namespace or DEFAULT_NAMESPACE)

    def cancel(self, run_id: str) -> None:
        """Stops a run. Finished tasks stay cached."""
        self._ask(lambda: self._client.terminate_run(run_id), run_id=run_id)

    def run_url(self, run_id: str) -> str:
        """The address of a run in KFP's user interface."""
        return f"{(self.host or '').rstrip('/')}/#/runs/details/{run_id}"

    @cached_property
    def _client(self) -> kfp.Client:
        """Returns kfp's client, created after the server has answered once: kfp alone would wait half a minute and not say why."""
        if not self.host and "KUBERNETES_SERVICE_HOST" not in os.environ:
            raise InputError("no Kubeflow Pipelines server: give --host or KFP_HOST, such as http://localhost:8080")
        if self.host:
            check_address(self.host, token=self.token is not None, name="--host")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import kfp

            if self.host:
                self._ask(self._request_health)
            with contextlib.redirect_stdout(io.StringIO()):
                client = kfp.Client(
                    host=self.host, existing_token=self.token, namespace=self.namespace or DEFAULT_NAMESPACE
                )
        for pool in {api.api_client.rest_client.pool_manager for api in (client._experiment_api, client._run_api)}:
            # A redirect is then an answer that is no success. By default it is followed, also to another server.
            pool.connection_pool_kw["retries"] = Retry(3, redirect=0, raise_on_redirect=False)
            pool.request = _bounded(pool.request)
        return client

    def _request_health(self) -> None:
        url = f"{(self.host or '').rstrip('/')}/apis/v2beta1/healthz"
        send("GET", url, name="--host", token=self.token, seconds=TIMEOUT).checked()

    def _ask(self, request: Callable[[], Answer], *, run_id: str | None = None, attempts: int = ATTEMPTS) -> Answer:
        """Returns the answer to a request, which is retried while the server is unavailable.

        Raises:
            InputError: The server refuses the request; the message has the cure.
            PipelineError: The server is still unavailable after the last attempt.
        """
        import kfp_server_api

        request_errors = (kfp_server_api.ApiException, BadStatusError, NoAnswerError, HTTPError)

        def is_refusal(error: BaseException) -> bool:
            # A server that refuses will refuse again. Only one that is unavailable is asked again.
            answered = isinstance(error, kfp_server_api.ApiException | BadStatusError)
            return isinstance(error, RedirectError) or (answered and _http_status(error) not in UNAVAILABLE_STATUSES)

        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, request_errors) and not is_refusal(error)),
            stop=stop_after_attempt(attempts),
            wait=wait_exponential(multiplier=PAUSE),
            reraise=True,
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # kfp prints links of its own
                return retrying(lambda: within(CLIENT_TIMEOUT, request))
        except (ValueError, RecursionError, AttributeError, TypeError, LookupError) as error:
            # kfp's client expects every field to be of its type.
            raise InputError(
                f"{self.host} sent an answer that cannot be read ({type(error).__name__}: {str(error)[:200]}): check --host"
            ) from error
        except request_errors as error:
            status = _http_status(error)
            if status == 404 and run_id:
                raise NoSuchRunError(f"{self.host} has no run {run_id}: check the ID and the host") from error
            if status == 0:  # kfp's client could not read a moment, for example
                reason = getattr(error, "reason", None) or error
                raise InputError(f"{self.host} sent an answer that cannot be read ({reason}): check --host") from error
            if is_refusal(error):
                raise InputError(self._refusal(status, error, run_id)) from error
            reason = (
                f"HTTP {status}" if status else str(error) if isinstance(error, NoAnswerError) else type(error).__name__
            )
            again = f"; run {run_id} goes on: `star pipeline status {run_id}`" if run_id else ""
            cure = "try again later" if status else "check the address, the network and any port-forward, and try again"
            message = f"{self.host} is unavailable ({reason}): {cure}{again}"
            raise PipelineError(message, input_fault=False) from error

    def _refusal(self, status: int | None, error: Exception, run_id: str | None) -> str:
        if isinstance(error, RedirectError):
            return f"{self.host}: {error}; a login page instead of an API wants a token: {NEW_TOKEN}"
        if status == 401:
            unaffected = f"; run {run_id} is not affected" if run_id else ""
            if not self.token:
                return f"{self.host} wants a token: give one in KFP_TOKEN{unaffected}"
            return (
                f"{self.host} does not accept the token, which has expired or belongs to another server: "
                f"{NEW_TOKEN}{unaffected}"
            )
        if status == 403:
            namespace = self.namespace or DEFAULT_NAMESPACE
            return (
                f"{self.host}: this account may not do this in namespace {namespace}: "
                f"give the right one by --namespace, or {NEW_TOKEN}"
            )
        if status == 404:
            return f"{self.host} is not a KFP server: check --host"
        return f"{self.host} refuses with HTTP {status}: {_said(error)[:300]}"


def _bounded(request: Callable[..., Any]) -> Callable[..., HTTPResponse]:
    """The request of urllib3 that kfp's client uses, with a bound of the answer's size."""

    def request_within_bound(*arguments: Any, **options: Any) -> HTTPResponse:
        answer = request(*arguments, **options | {"preload_content": False})
        with contextlib.closing(answer):
            content = answer.read(MAX_BYTES + 1, decode_content=True)
        if len(content) > MAX_BYTES:
            raise NoAnswerError(f"the answer has more than {MAX_BYTES / 2**20:g} MiB")
        # Its headers still say how it was packed.
        return HTTPResponse(
            io.BytesIO(content),
            headers=answer.headers,
            status=answer.status,
            reason=answer.reason,
            decode_content=False,
            enforce_content_length=False,
        )

    return request_within_bound


def _runs_named(client: kfp.Client, name: str, *, experiment_id: str) -> Iterator[V2beta1Run]:
    """Yields the runs of an experiment that have this name. The server is asked for these alone; its answer comes in pages."""
    named = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
    token: str | None = ""
    while token is not None:
        page = client.list_runs(page_token=token, page_size=100, experiment_id=experiment_id, filter=named)
        yield from (run for run in page.runs or [] if run.display_name == name)
        token = page.next_page_token or None


def _said(error: Exception) -> str:
    """What a server says about a request that it refuses, in one line: the message of KFP's answer, or else all of it."""
    body = getattr(error, "body", None) or str(error)
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(body)
        body = (isinstance(content, dict) and (content.get("message") or content.get("error_message"))) or body
    return str(body).strip().partition("\n")[0]


def _http_status(error: BaseException) -> int | None:
    """The HTTP status that an error of kfp's client or of ours carries, or None without an answer."""
    return getattr(error, "status", None)
