"""The registered versions as a table for the terminal."""

from rich.console import Console
from rich.table import Table

from star.errors import InputError
from star.registry.publish import list_versions

SCORES = {"exact_match": "exact match", "mean_reward": "mean reward", "format_errors": "format errors", "pass_at_8": "pass@8"}


def print_versions(name: str) -> None:
    """Prints one row a version, the newest first.

    Raises:
        InputError: nothing is registered under that name.
    """
    versions = list_versions(name)
    if not versions:
        raise InputError(f"no model {name!r} is registered: run `star run` first, or check MLFLOW_TRACKING_URI and STAR_HOME")
    table = Table(title=f"Registered versions of {name}")
    table.add_column("version", justify="right")
    table.add_column("aliases", style="green")
    for heading in SCORES.values():
        table.add_column(heading, justify="right")
    table.add_column("data")
    table.add_column("teacher")
    table.add_column("model")
    table.add_column("registered")
    for version in versions:
        lineage = [version.lineage.get(key, "")[:8] for key in ("data", "teacher", "refined")]
        scores = [f"{version.scores[key]:.3f}" if key in version.scores else "" for key in SCORES]
        created = version.created.strftime("%Y-%m-%d %H:%M")
        table.add_row(str(version.version), ", ".join(version.aliases), *scores, *lineage, created)
    Console().print(table)
