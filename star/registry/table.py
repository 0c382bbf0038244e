"""The registered versions as a table for the terminal."""

from rich.console import Console
from rich.table import Table

from star.errors import InputError
from star.registry.versions import list_versions

SCORES = {"exact_match": "exact", "mean_reward": "reward", "format_errors": "format", "pass_at_8": "pass@8"}
LINEAGE = ("data", "teacher", "refined")


def print_versions(name: str) -> None:
    """Prints one row a version, the newest first; lineage as the first digits of the folders' digests.

    Raises:
        InputError: nothing is registered under that name.
    """
    versions = list_versions(name)
    if not versions:
        raise InputError(
            f"no model {name!r} is registered: run `star run` first, or check MLFLOW_TRACKING_URI and STAR_HOME"
        )
    table = Table(title=f"Registered versions of {name}")
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("alias", style="green", no_wrap=True)
    for heading in SCORES.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("data > teacher > model", no_wrap=True)
    table.add_column("registered")
    for version in versions:
        scores = [f"{version.scores[key]:.3f}" if key in version.scores else "" for key in SCORES]
        lineage = " > ".join(version.lineage.get(key, "?")[:6] for key in LINEAGE)
        created = version.created.strftime("%m-%d %H:%M")
        table.add_row(str(version.version), "\n".join(version.aliases), *scores, lineage, created)
    Console().print(table)
