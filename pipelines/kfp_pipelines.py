"""Keeps named pipelines with versions on a KFP server, and schedules that start one of them again and again.

    server = KfpPipelines("http://localhost:8080")
    version = server.upload(config, image=IMAGE, pipeline="star")           # Version(name="0eedf8e01234-1f2e3d4c5b6a", ...)
    nightly = Recurrence(cron="0 0 3 * * *")                                # second, minute, hour, day, month, weekday
    server.schedule(version, nightly, name="nightly", experiment="star", account=config.cluster.service_account)

KFP calls a schedule a recurring run. It starts the version that it was made with, and no later one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from star.config.experiment import Config
from star.errors import InputError
from star.pipelines.kfp_client import KfpClient
from star.registry.lineage import git_state

if TYPE_CHECKING:
    from kfp_server_api.models import V2beta1PipelineVersion, V2beta1RecurringRun

PAGE = 100  # entries of a list in one answer
CRON_FIELDS = (5, 6)
CRON_FIELD = re.compile(r"[\w*?/,-]+")


@dataclass(frozen=True)
class Version:
    """A version of a named pipeline on the server.

    Attributes:
        name: Commit of the code and digest of the compiled pipeline, which holds configuration, image and code digests.
        is_new: Whether this upload has made it.
    """

    pipeline: str
    name: str
    pipeline_id: str
    version_id: str
    is_new: bool


@dataclass(frozen=True)
class Recurrence:
    """When a schedule starts runs: by `cron` or each `every` seconds.

    Attributes:
        cron: Six fields: second, minute, hour, day of the month, month, day of the week. In the time zone of the cluster's controller,
            which is UTC unless its administrator set CRON_SCHEDULE_TIMEZONE.
        start, end: The first and the last moment at which a run may start.
        catch_up: Whether runs that were missed while the schedule was disabled, or before it was made, are started afterwards.
        max_concurrency: Most runs of the schedule at the same time.
    """

    cron: str | None = None
    every: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    catch_up: bool = False
    max_concurrency: int = 1

    def __str__(self) -> str:
        """Says all of it: `cron 0 0 3 * * *, missed runs are not made up for, at most 1 run at a time`."""
        when = f"cron {self.cron}" if self.cron else f"every {self.every} s"
        bounds = [
            f"{word} {moment.isoformat()}" for word, moment in (("from", self.start), ("until", self.end)) if moment
        ]
        missed = "missed runs are made up for" if self.catch_up else "missed runs are not made up for"
        runs = "run" if self.max_concurrency == 1 else "runs"
        return ", ".join([when, *bounds, missed, f"at most {self.max_concurrency} {runs} at a time"])


@dataclass(frozen=True)
class Schedule:
    """A schedule on the server."""

    name: str
    schedule_id: str
    enabled: bool
    recurrence: Recurrence
    description: str
    version_id: str


class KfpPipelines(KfpClient):
    """A client of one KFP server for its named pipelines and its schedules."""

    def upload(self, config: Config, *, image: str, pipeline: str) -> Version:
        """Uploads the inputs of this machine, compiles the configuration's pipeline and makes it a version of a named pipeline.

        A pipeline of that name is made if there is none.
        What is there already, under the same name of pipeline and version, is found and not uploaded again.
        """
        from star.pipelines.star_pipeline import upload_and_compile

        with TemporaryDirectory() as folder:
            package = Path(folder) / "star.yaml"
            upload_and_compile(config, package, image=image)
            name = version_name(package)
            pipeline_id = self._ask(lambda: self._find_or_create_pipeline(pipeline))
            made = []

            def find_or_upload() -> V2beta1PipelineVersion:
                # The request before this retry may have reached the server although its answer was lost.
                for version in self._versions_named(name, pipeline_id=pipeline_id):
                    return version
                made.append(name)
                description = f"{config.name}, image {image}"
                return self._client.upload_pipeline_version(
                    str(package), name, pipeline_id=pipeline_id, description=description
                )

            version = self._ask(lambda: self._unless_made_meanwhile(find_or_upload))
        return Version(pipeline, name, pipeline_id, version.pipeline_version_id, is_new=bool(made))

    def schedule(
        self, version: Version, recurrence: Recurrence, *, name: str, experiment: str, account: str | None
    ) -> Schedule:
        """Makes a schedule that starts runs of a version in an experiment. An equal one that is there already is found.

        Raises:
            InputError: the experiment has a schedule of this name with another version or other times.
        """
        group = self._ask(lambda: self._client.create_experiment(experiment, namespace=self.namespace))

        def find_or_create() -> Schedule:
            for found in self._schedules_named(name, experiment_id=group.experiment_id):
                return found
            trigger = {"cron_expression": recurrence.cron} if recurrence.cron else {"interval_second": recurrence.every}
            return _read(
                self._client.create_recurring_run(
                    group.experiment_id,
                    name,
                    description=f"{version.pipeline} {version.name}",
                    start_time=_rfc3339(recurrence.start),
                    end_time=_rfc3339(recurrence.end),
                    max_concurrency=recurrence.max_concurrency,
                    no_catchup=not recurrence.catch_up,
                    pipeline_id=version.pipeline_id,
                    version_id=version.version_id,
                    service_account=account,
                    **trigger,
                )
            )

        found = self._ask(find_or_create)
        if (found.version_id, found.recurrence) != (version.version_id, recurrence):
            raise InputError(
                f"the experiment {experiment} has a schedule {name} already: {found.description}, {found.recurrence}. "
                f"KFP cannot change one: run `star pipeline schedule delete {name}` first, or give another --name"
            )
        return found

    def schedules(self, *, experiment: str) -> list[Schedule]:
        """The schedules of an experiment, in the order of their creation. Empty without such an experiment."""
        group = self._ask(lambda: self._find_experiment(experiment))
        return self._ask(lambda: list(self._schedules_of(group))) if group else []

    def set_enabled(self, schedule: Schedule, *, enabled: bool) -> None:
        """Lets a schedule start runs again, or no more. Runs that it has started go on."""
        change = self._client.enable_recurring_run if enabled else self._client.disable_recurring_run
        self._ask(lambda: change(schedule.schedule_id))

    def delete_schedule(self, schedule: Schedule) -> None:
        """Deletes a schedule. Runs that it has started go on."""
        api = self._client._recurring_run_api
        # By default the cluster would delete the workflows of the schedule with it.
        self._ask(
            lambda: api.recurring_run_service_delete_recurring_run(schedule.schedule_id, propagation_policy="ORPHAN")
        )

    def _find_or_create_pipeline(self, name: str) -> str:
        """The ID of the pipeline of this name; one without a version is made if there is none."""
        from kfp_server_api.models import V2beta1Pipeline

        api = self._client._pipelines_api

        def find_or_create() -> str:
            found = _all_pages("pipelines", self._client.list_pipelines, namespace=self.namespace, filter=_named(name))
            for pipeline in found:
                if name in (pipeline.name, pipeline.display_name):
                    return pipeline.pipeline_id
            new = V2beta1Pipeline(name=name, display_name=name, namespace=self.namespace)
            # `upload_pipeline` would also make a version, under the name of the pipeline.
            return api.pipeline_service_create_pipeline(pipeline=new).pipeline_id

        return self._unless_made_meanwhile(find_or_create)

    @staticmethod
    def _unless_made_meanwhile(find_or_create: Callable[[], Any]) -> Any:
        from kfp_server_api import ApiException

        try:
            return find_or_create()
        except ApiException as error:
            if error.status != 409:
                raise
            return find_or_create()  # another upload was faster, and now it is found

    def _versions_named(self, name: str, *, pipeline_id: str) -> Iterator[V2beta1PipelineVersion]:
        pages = _all_pages("pipeline_versions", self._client.list_pipeline_versions, pipeline_id, filter=_named(name))
        return (version for version in pages if name in (version.name, version.display_name))

    def _find_experiment(self, name: str) -> str | None:
        pages = _all_pages("experiments", self._client.list_experiments, namespace=self.namespace, filter=_named(name))
        return next((group.experiment_id for group in pages if group.display_name == name), None)

    def _schedules_named(self, name: str, *, experiment_id: str) -> Iterator[Schedule]:
        return (schedule for schedule in self._schedules_of(experiment_id) if schedule.name == name)

    def _schedules_of(self, experiment_id: str) -> Iterator[Schedule]:
        pages = _all_pages("recurring_runs", self._client.list_recurring_runs, experiment_id=experiment_id)
        return map(_read, pages)


def version_name(package: Path) -> str:
    """Names a compiled pipeline: `0eedf8e01234-1f2e3d4c5b6a`, the commit of the code and the digest of the file."""
    state = git_state()
    commit = state.get("commit", "")[:12] or "no-commit"
    changed = "-changed" if state.get("dirty") == "yes" else ""
    return f"{commit}{changed}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"


def six_cron_fields(expression: str) -> str:
    """Returns a cron expression with six fields, the first of which is the second, as KFP wants it.

    Five fields are those of crontab, and get a zero before them: KFP itself would take the minutes for seconds.

    Raises:
        InputError: the expression has another number of fields, or other characters.
    """
    fields = expression.split()
    if len(fields) not in CRON_FIELDS or not all(CRON_FIELD.fullmatch(part) for part in fields):
        raise InputError(
            f"--cron {expression!r} cannot be read: give the five fields of crontab (`0 3 * * *` is each night at three), "
            "or six with the second before them"
        )
    return " ".join(fields if len(fields) == max(CRON_FIELDS) else ["0", *fields])


def _all_pages(kind: str, ask_list: Callable[..., Any], *arguments: str, **options: Any) -> Iterator[Any]:
    token: str | None = ""
    while token is not None:
        page = ask_list(*arguments, page_token=token, page_size=PAGE, **options)
        yield from getattr(page, kind) or []
        token = page.next_page_token or None


def _named(name: str) -> str:
    """A filter of KFP's lists. Answers are compared again: a server that knows no filter lists everything."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _read(answer: V2beta1RecurringRun) -> Schedule:
    cron, periodic = answer.trigger.cron_schedule, answer.trigger.periodic_schedule
    times = cron or periodic
    recurrence = Recurrence(
        cron=cron.cron if cron else None,
        every=int(periodic.interval_second) if periodic else None,
        start=times.start_time,
        end=times.end_time,
        catch_up=not answer.no_catchup,
        max_concurrency=int(answer.max_concurrency),
    )
    reference = answer.pipeline_version_reference
    return Schedule(
        name=answer.display_name or "",
        schedule_id=answer.recurring_run_id,
        enabled=answer.status == "ENABLED",
        recurrence=recurrence,
        description=answer.description or "",
        version_id=(reference.pipeline_version_id if reference else None) or "",
    )


def _rfc3339(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
