"""Defines `star pipeline upload` and `star pipeline schedule`: named pipelines with versions on a KFP server, and runs by the clock."""

import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.options import ConfigOption
from star.cli.pipeline import ExperimentOption, HostOption, ImageOption, NamespaceOption, pipeline_app
from star.errors import InputError
from star.redaction import redacted
from star.terminal import continued

if TYPE_CHECKING:
    from star.pipelines.kfp_pipelines import KfpPipelines, Schedule

schedule_app = typer.Typer(help="Start the pipeline again and again, by the server's clock.", no_args_is_help=True)
pipeline_app.add_typer(schedule_app, name="schedule")

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PipelineNameOption = Annotated[
    str, typer.Option("--pipeline", help="Name of the pipeline on the server, of which this is a version.")
]
ScheduleArgument = Annotated[str, typer.Argument(help="Name of the schedule, or its id.")]


@pipeline_app.command("upload")
def upload_command(
    image: ImageOption,
    config: ConfigOption = "tiny",
    pipeline: PipelineNameOption = "star",
    host: HostOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Compile the pipeline and make it a version of a named pipeline on the server. Prints the id of the version.

    The version's name is the commit of the code and the digest of the compiled pipeline, so the same upload finds the same version.

    Example: `star pipeline upload --config my.yaml --image registry.example.com/star-python:1`
    """
    from star.config.load import load_config

    client = _client(host, namespace)
    version = client.upload(load_config(config), image=image, pipeline=pipeline)
    typer.echo(version.version_id)
    state = "uploaded" if version.is_new else "is there already"
    typer.echo(f"version {version.name} of pipeline {version.pipeline}: {state}", err=True)


@schedule_app.command("create")
def create_command(
    image: ImageOption,
    config: ConfigOption = "tiny",
    cron: Annotated[
        str | None,
        typer.Option(
            help="When, as in crontab: minute, hour, day, month, weekday (`0 3 * * *`); six fields have the second first. "
            "In the time zone of KFP's controller, usually UTC."
        ),
    ] = None,
    every: Annotated[str | None, typer.Option(help="Or how often: 90m, 6h or 1d.")] = None,
    start: Annotated[datetime | None, typer.Option(help="No run before this moment (UTC).")] = None,
    end: Annotated[datetime | None, typer.Option(help="No run after this moment (UTC).")] = None,
    catch_up: Annotated[
        bool,
        typer.Option(
            "--catch-up/--no-catch-up",
            help="Whether to start the runs that were missed while the schedule was disabled.",
        ),
    ] = False,
    max_concurrency: Annotated[int, typer.Option(min=1, max=10, help="Most runs of it at the same time.")] = 1,
    name: Annotated[
        str | None, typer.Option(help="Name of the schedule. Default: the name in the configuration.")
    ] = None,
    pipeline: PipelineNameOption = "star",
    experiment: ExperimentOption = "star",
    host: HostOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Upload the pipeline as `star pipeline upload` does, and start this version again and again. Prints the id of the schedule.

    Example: `star pipeline schedule create --config my.yaml --image registry.example.com/star-python:1 --cron "0 3 * * *"`
    """
    from star.config.load import load_config
    from star.pipelines.kfp_pipelines import Recurrence, six_cron_fields

    if (cron is None) == (every is None):
        raise InputError("a schedule needs --cron or --every, and not both")
    if start and end and start >= end:
        raise InputError("no run can start: --end must be after --start")
    recurrence = Recurrence(
        cron=six_cron_fields(cron) if cron is not None else None,
        every=_seconds(every) if every is not None else None,
        start=_utc(start),
        end=_utc(end),
        catch_up=catch_up,
        max_concurrency=max_concurrency,
    )
    client, profile = _client(host, namespace), load_config(config)
    version = client.upload(profile, image=image, pipeline=pipeline)
    schedule = client.schedule(
        version,
        recurrence,
        name=name or profile.name,
        experiment=experiment,
        account=profile.cluster.service_account,
    )
    typer.echo(schedule.schedule_id)
    # An equal one that was there already may have been disabled since.
    disabled = "" if schedule.enabled else f"; it is disabled: `star pipeline schedule enable {schedule.name}`"
    line = f"schedule {schedule.name}: version {version.name} of pipeline {pipeline}, {recurrence}{disabled}"
    typer.echo(line, err=True)


@schedule_app.command("list")
def list_command(
    experiment: ExperimentOption = "star", host: HostOption = None, namespace: NamespaceOption = None
) -> None:
    """Print the schedules of an experiment: state, name, version, times, id.

    Example: `star pipeline schedule list`
    """
    schedules = _client(host, namespace).schedules(experiment=experiment)
    if not schedules:
        typer.echo(f"the experiment {experiment} has no schedule", err=True)
    for schedule in schedules:
        state = "enabled" if schedule.enabled else "disabled"
        line = f"{state:<8} {schedule.name}  {schedule.description}  {schedule.recurrence}  {schedule.schedule_id}"
        typer.echo(continued(redacted(line)))


@schedule_app.command("disable")
def disable_command(
    name: ScheduleArgument,
    experiment: ExperimentOption = "star",
    host: HostOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Let a schedule start no more runs until it is enabled. Runs that it has started go on.

    Example: `star pipeline schedule disable nightly`
    """
    client = _client(host, namespace)
    client.set_enabled(_find(client, name, experiment), enabled=False)
    typer.echo(f"schedule {name} is disabled")


@schedule_app.command("enable")
def enable_command(
    name: ScheduleArgument,
    experiment: ExperimentOption = "star",
    host: HostOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Let a disabled schedule start runs again.

    Example: `star pipeline schedule enable nightly`
    """
    client = _client(host, namespace)
    client.set_enabled(_find(client, name, experiment), enabled=True)
    typer.echo(f"schedule {name} is enabled")


@schedule_app.command("delete")
def delete_command(
    name: ScheduleArgument,
    experiment: ExperimentOption = "star",
    host: HostOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Delete a schedule. Runs that it has started go on, and the pipeline's versions stay.

    Example: `star pipeline schedule delete nightly`
    """
    client = _client(host, namespace)
    client.delete_schedule(_find(client, name, experiment))
    typer.echo(f"schedule {name} is deleted")


def _find(client: "KfpPipelines", name: str, experiment: str) -> "Schedule":
    schedules = client.schedules(experiment=experiment)
    found = [schedule for schedule in schedules if name in (schedule.name, schedule.schedule_id)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(schedule.schedule_id for schedule in found)
        raise InputError(f"the experiment {experiment} has {len(found)} schedules {name}: give the id of one ({ids})")
    there = ", ".join(schedule.name for schedule in schedules) or "none"
    raise InputError(f"the experiment {experiment} has no schedule {name}: it has {there}")


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not match or not int(match[1]):
        raise InputError(f"--every {text!r} cannot be read: give a number and s, m, h or d, such as 6h")
    return int(match[1]) * SECONDS[match[2]]


def _utc(moment: datetime | None) -> datetime | None:
    # Typer's moments have no time zone.
    return moment.replace(tzinfo=UTC) if moment else None


def _client(host: str | None, namespace: str | None) -> "KfpPipelines":
    from star.pipelines.kfp_pipelines import KfpPipelines

    return KfpPipelines(host, os.environ.get("KFP_TOKEN"), namespace)
