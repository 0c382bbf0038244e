"""Defines `star pipeline`: compile the pipeline for Kubeflow Pipelines, and start and follow its runs on a server."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from star.cli.options import ConfigOption
from star.redaction import redacted
from star.terminal import continued

if TYPE_CHECKING:
    from star.pipelines.kfp_client import KfpClient

pipeline_app = typer.Typer(help="Compile, start and follow the pipeline on Kubeflow Pipelines.", no_args_is_help=True)

IMAGE_HELP = "Container image of the tasks, built from this checkout, under the name by which the nodes pull it."
ImageOption = Annotated[str, typer.Option(help=IMAGE_HELP)]
HostOption = Annotated[
    str | None,
    typer.Option(
        envvar="KFP_HOST",
        help="Address of the Kubeflow Pipelines server. Inside the cluster it is found automatically. "
        "If the server requires a bearer token, give it in KFP_TOKEN.",
    ),
]
NamespaceOption = Annotated[
    str | None, typer.Option(envvar="KFP_NAMESPACE", help="Namespace of the user, if the server has several.")
]
ExperimentOption = Annotated[str, typer.Option(envvar="KFP_EXPERIMENT", help="KFP experiment that groups the runs.")]
RunArgument = Annotated[str, typer.Argument(help="Id of the run, as printed by `star pipeline submit`.")]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="Wait until the run ends and print every change, the progress of the tasks, and why one fails or waits. "
        "Exit with 1 if the run fails or is cancelled, with 2 if the input of a task is at fault.",
    ),
]
PollOption = Annotated[
    float, typer.Option("--poll", min=0.0, help="Seconds between two requests for the state of the run.")
]


@pipeline_app.command("compile")
def compile_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="YAML file to write.")],
    config: ConfigOption = "tiny",
    image: Annotated[str | None, typer.Option(help=f"{IMAGE_HELP} Without it a placeholder, for a look.")] = None,
) -> None:
    """Compile the pipeline of a configuration for Kubeflow Pipelines.

    Example: `star pipeline compile --config my.yaml --image registry.example.com/star-python:1 --output star.yaml`
    """
    from star.config.load import load_config
    from star.pipelines.star_pipeline import IMAGE, compile_pipeline

    profile = load_config(config)
    compile_pipeline(profile, output, image=image or IMAGE)
    typer.echo(f"wrote {output}")
    if image is None:
        typer.echo(f"without --image the tasks have the image {IMAGE}, a placeholder that no node can pull", err=True)
    if account := profile.cluster.service_account:
        # A compiled pipeline cannot name it.
        typer.echo(f"who starts a run of it chooses the service account: give {account}, as the profile says", err=True)


@pipeline_app.command("submit")
def submit_command(
    image: ImageOption,
    config: ConfigOption = "tiny",
    host: HostOption = None,
    namespace: NamespaceOption = None,
    experiment: ExperimentOption = "star",
    wait: WaitOption = False,
    poll: PollOption = 10.0,
) -> None:
    """Compile the pipeline of a configuration and start a run on a server. Prints the id of the run.

    Example: `star pipeline submit --config my.yaml --image registry.example.com/star-python:1 --host http://localhost:8080 --wait`
    """
    from star.config.load import load_config

    client = _client(host, namespace)
    run_id = client.submit(load_config(config), image=image, experiment=experiment)
    typer.echo(run_id)
    typer.echo(client.run_url(run_id), err=True)
    if wait:
        _follow(client, run_id, poll)


@pipeline_app.command("status")
def status_command(
    run_id: RunArgument,
    host: HostOption = None,
    namespace: NamespaceOption = None,
    wait: WaitOption = False,
    poll: PollOption = 10.0,
) -> None:
    """Print the state of a run and of its tasks, and why one failed or waits.

    Example: `star pipeline status 5a1c... --wait`
    """
    client = _client(host, namespace)
    if wait:
        _follow(client, run_id, poll)
        return
    from star.pipelines.run_status import status_lines

    for line in status_lines(client, client.status(run_id)):
        typer.echo(continued(redacted(line)))


@pipeline_app.command("logs")
def logs_command(
    run_id: RunArgument,
    task: Annotated[
        str | None, typer.Option(help="Name of the tasks whose logs to print, such as rollout. Default: all.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what the tasks print as they do, until they have ended.")
    ] = False,
    host: HostOption = None,
    namespace: NamespaceOption = None,
    poll: PollOption = 10.0,
) -> None:
    """Print the logs of the tasks of a run: of all shards and attempts, also after their pods are gone.

    Example: `star pipeline logs 5a1c... --task rollout --follow`
    """
    from star.pipelines.run_logs import follow_logs, log_lines

    client = _client(host, namespace)
    lines = (
        follow_logs(client, run_id, task=task, poll_seconds=poll) if follow else log_lines(client, run_id, task=task)
    )
    name = None
    for name, line in lines:
        typer.echo(continued(redacted(f"{name}: {line}")))
    if name is None:
        typer.echo(f"no task of run {run_id} has a log: `star pipeline status {run_id}` says how they stand", err=True)


@pipeline_app.command("cancel")
def cancel_command(run_id: RunArgument, host: HostOption = None, namespace: NamespaceOption = None) -> None:
    """Cancel a run. The results of its finished tasks stay cached, and a new run continues from them.

    Example: `star pipeline cancel 5a1c...`
    """
    from star.pipelines.run_status import cancel

    typer.echo(continued(redacted(cancel(_client(host, namespace), run_id))))


def _client(host: str | None, namespace: str | None) -> "KfpClient":
    """A client with the token of KFP_TOKEN. No option takes it: every user of a machine sees the options of all processes."""
    from star.pipelines.kfp_client import KfpClient

    return KfpClient(host, os.environ.get("KFP_TOKEN"), namespace)


def _follow(client: "KfpClient", run_id: str, poll: float) -> None:
    """Prints every change of a run until its end; raises Exit unless the run succeeds: 1, or 2 if the input of a task is at fault."""
    from star.pipelines.run_display import RunDisplay

    try:
        with RunDisplay(client, run_id) as display:
            for status in client.follow(run_id, poll_seconds=poll):
                display.show(status)
            display.show_end(status)
    except KeyboardInterrupt:
        typer.echo(f"run {run_id} goes on: `star pipeline status {run_id} --wait` follows it again", err=True)
        raise typer.Exit(130) from None
    typer.echo(client.run_url(run_id), err=True)
    if status.state != "SUCCEEDED":
        # What failed first is the cause. A cancelled run fails in the middle of its tasks, whose errors are none.
        first = next(iter(display.failures.values()), None)
        raise typer.Exit(2 if status.state == "FAILED" and first and first.input_fault else 1)
