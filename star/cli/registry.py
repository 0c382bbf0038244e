"""Defines the commands on registered versions: models, promote, rollback, lineage, registry and tracking."""

from pathlib import Path
from typing import Annotated

import typer

from star.cli.fail import fail
from star.cli.options import MODEL_HELP, NameOption
from star.errors import InputError
from star.tracking.light_import import import_mlflow_without_pandas

models_app = typer.Typer(invoke_without_command=True)
registry_app = typer.Typer(no_args_is_help=True)
tracking_app = typer.Typer(help="Repair runs in MLflow.", no_args_is_help=True)

ReasonOption = Annotated[str, typer.Option(help="The reason, for the ledger.")]


@models_app.callback()
def models(
    context: typer.Context,
    name: NameOption = "star",
    page: Annotated[int, typer.Option(min=1, help="A hundred versions a page. Page 1 has the newest.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="All versions, whatever their number.")] = False,
) -> None:
    """List the registered versions with their scores, aliases and lineage; compare two, download one, delete one.

    Without an option it lists the newest hundred, and below them the champion, the challenger and the previous champion
    if they are older.

    Examples:

    `star models`

    `star models --page 2`

    `star models diff champion previous-champion`
    """
    if every and page > 1:
        raise InputError("--page and --all exclude each other: give one of them")
    import_mlflow_without_pandas()
    if context.invoked_subcommand is None:
        from star.registry.tables import print_versions

        print_versions(name, page=None if every else page)


@models_app.command("diff")
def models_diff(
    first: Annotated[str, typer.Argument(help=MODEL_HELP)],
    second: Annotated[str, typer.Argument(help="The version to compare it with.")],
    name: NameOption = "star",
) -> None:
    """Compare two versions: scores, lineage, files.

    Example: `star models diff champion previous-champion`
    """
    from star.registry.promotion.find import find_by_reference
    from star.registry.tables import print_difference

    print_difference(find_by_reference(first, name=name), find_by_reference(second, name=name))


@models_app.command("download")
def models_download(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[
        Path, typer.Option(help="Folder for the files: a new or empty one, or one that holds them already.")
    ],
    name: NameOption = "star",
) -> None:
    """Download a version's files, and compare each one with the sha256 that was registered.

    Examples:

    `star models download champion --out ./champion`

    `star models download star@champion --out /models/champion`
    """
    from star.registry.download import download_version_as
    from star.registry.promotion.find import find_by_reference, with_known_files

    version = with_known_files(find_by_reference(model, name=name))
    typer.echo(f"{version} is in {download_version_as(version, out)}")


@models_app.command("delete")
def models_delete(
    version: Annotated[int, typer.Argument(help="Version to delete.")], name: NameOption = "star"
) -> None:
    """Delete a version. A version with an alias is not deleted.

    Example: `star models delete 2`
    """
    from star.registry.promotion.promote_and_rollback import delete_version

    delete_version(name, version)
    typer.echo(f"{name} version {version} is deleted")


def promote(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    to: Annotated[str, typer.Option(help="Alias to give: champion or challenger.")] = "champion",
    reason: ReasonOption = "",
    to_registry: Annotated[
        str | None,
        typer.Option(
            help="Address of another MLflow, or env:NAME of a variable with it: copy the version there, and promote it there."
        ),
    ] = None,
    name: NameOption = "star",
) -> None:
    """Make a registered version the champion, whatever the gate decided. Its stored files are verified first.

    A version that STAR did not register is promoted by its number only: its files are taken as they are, and compared
    from then on.

    Examples:

    `star promote 2 --reason "fewer wrong dates"`

    `star promote 3 --to challenger`

    `star promote challenger`

    `star promote champion --to-registry https://mlflow.prod.example.com`
    """
    from star.registry.promotion.promote_by_reference import promote_model

    import_mlflow_without_pandas()
    promoted = promote_model(model, name=name, to=to, reason=reason, to_registry=to_registry)
    typer.echo(f"{promoted} is the {to}{' there' if to_registry is not None else ''}")


def rollback(reason: ReasonOption = "", name: NameOption = "star") -> None:
    """Make the previous champion the champion again. A second rollback undoes the first.

    Example: `star rollback --reason "more refusals in production"`
    """
    from star.registry.promotion.promote_and_rollback import rollback as roll_back

    import_mlflow_without_pandas()
    typer.echo(f"{roll_back(name, reason=reason)} is the champion again")


def lineage(
    model: Annotated[str, typer.Argument(help=f"{MODEL_HELP} Or a model folder, as ./FOLDER.")] = "champion",
    name: NameOption = "star",
) -> None:
    """Print where a model comes from, and check every digest that can be reached. Exits with 1 when one does not match.

    Examples:

    `star lineage`

    `star lineage star/3`

    `star lineage ./downloaded`
    """
    from star.registry.lineage_tree import print_lineage

    import_mlflow_without_pandas()
    if mismatches := print_lineage(model, name=name):
        fail(f"{len(mismatches)} of the lineage does not match: {'; '.join(mismatches)}", status=1)


@registry_app.callback()
def registry() -> None:
    """Read and repair the ledger of promotions."""
    import_mlflow_without_pandas()


@registry_app.command("reconcile")
def reconcile_command(name: NameOption = "star") -> None:
    """Complete interrupted promotions, record aliases that were moved in MLflow, and check the ledger.

    Example: `star registry reconcile --name star`
    """
    from star.registry.promotion.reconcile import reconcile

    done, wrong = reconcile(name)
    for line in done or ([] if wrong else ["nothing to put right"]):
        typer.echo(line)
    if wrong:
        fail("; ".join(wrong), status=1)


@registry_app.command("ledger")
def ledger_command(name: NameOption = "star") -> None:
    """List every attempt to promote a version: when, by whom, which version, the outcome and the reason.

    The whole ledger is checked. Exits with 1 when a record is not what was written.

    Example: `star registry ledger`
    """
    from star.registry.tables import print_ledger

    if wrong := print_ledger(name):
        fail("; ".join(wrong), status=1)


@registry_app.command("set-aside")
def set_aside_command(
    record: Annotated[str, typer.Argument(help="decisions/NAME (and all after it), or attempts/NAME.")],
    name: NameOption = "star",
) -> None:
    """Take a damaged or forged record out of the ledger. The decision before it holds again, and a copy is kept.

    Example: `star registry set-aside decisions/00000003`
    """
    from star.registry.promotion.repair import set_aside_record

    moved, newest = set_aside_record(name, record)
    for one in moved or ["there was nothing to move"]:
        typer.echo(one)
    aliases = (
        ", ".join(f"{alias} is version {number}" for alias, number in sorted(newest.aliases.items())) or "no alias"
    )
    typer.echo(f"the ledger ends with decision {newest.seq}: {aliases}")


@registry_app.command("sign")
def sign_command(name: NameOption = "star") -> None:
    """Sign a ledger that was begun without STAR_LEDGER_KEY. Read it first: the signature vouches for all decisions before it.

    Example: `star registry sign`
    """
    from star.registry.promotion.repair import sign_ledger

    typer.echo(f"decision {sign_ledger(name).seq} signs the ledger of {name}")


@tracking_app.command("replay")
def replay_command() -> None:
    """Send the tracking server what it could not receive earlier, and close the runs of killed processes.

    Example: `star tracking replay`
    """
    from star.home import spools_folder
    from star.tracking.sender import replay

    done, left = replay(spools_folder())
    typer.echo(f"{done} runs brought to their end" if done else "nothing was waiting")
    if left:
        fail(f"{left[0]}; start the server or correct MLFLOW_TRACKING_URI", status=2)


@tracking_app.command("reap")
def reap_command(
    hours: Annotated[float, typer.Option(min=0, help="Close runs without a metric for this many hours.")] = 24.0,
) -> None:
    """Close runs that MLflow still shows as running although their machine has gone.

    Example: `star tracking reap --hours 6`
    """
    from star.tracking.server import close_stale_runs

    for line in close_stale_runs(hours) or ["no stale runs"]:
        typer.echo(line)
