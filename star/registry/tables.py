"""Prints tables for the terminal: the registered versions, the difference of two, and the ledger."""

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from star.evaluation.labels import is_same_in_both_readings
from star.registry.promotion import audit
from star.registry.promotion.open_ledger import open_ledger
from star.registry.promotion.overview import look_at_versions
from star.registry.versions import PAGE, Version, require_versions
from star.terminal import console
from star.tracking.server import connect

OLDER_MARK = "*"  # beside format errors that an older STAR counted by the official reading
# Tags of a version -> headings and labels that fit into 80 columns.
SCORE_HEADINGS = {"exact_match": "exact", "mean_reward": "reward", "format_errors": "format", "pass_at_8": "pass@8"}
LINEAGE_LABELS = {"data": "data", "teacher": "teacher", "refined": "model"}
OUTCOME_COLOURS = {audit.WON: "green", audit.LOST: "yellow", audit.REFUSED: "red", audit.CUT_SHORT: "yellow"}


def print_versions(name: str, *, page: int | None = 1) -> None:
    """Prints one row per version, the newest first, in 80 columns; of the folders' digests the first digits.

    Args:
        page: 1 for the newest versions, with the older ones that are champion, challenger or previous champion below; None
            for all.

    Raises:
        InputError: nothing is registered under that name, or it has no such page.
    """
    overview = look_at_versions(name, page=page)
    versions, elsewhere = overview.versions, overview.elsewhere
    caption = "Rewards are by the official reading."
    if any(version.older_reading and "format_errors" in version.scores for version in (*versions, *elsewhere)):
        caption += f"\n{OLDER_MARK} By the official reading too: an older STAR counted these format errors."
    # A table per page, because rich lays out a whole table before it prints the first line.
    for start in range(0, len(versions), PAGE):
        is_last = start + PAGE >= len(versions)
        table = _table_of_versions(versions[start : start + PAGE], elsewhere=elsewhere if is_last else ())
        table.title = f"Registered versions of {name}" if start == 0 else None
        table.caption = caption if is_last else None
        console().print(table)
    if overview.older and page:
        older = f"`star models --page {page + 1} --name {name}` shows older versions, and --all shows all."
        console().print(Text(older))
    for remark in overview.remarks:
        console().print(Text(f"{remark[:1].upper()}{remark[1:]}."))


def _table_of_versions(versions: Sequence[Version], *, elsewhere: Sequence[Version]) -> Table:
    table = Table(box=SIMPLE)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("alias", style="green", no_wrap=True)
    for heading in SCORE_HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("lineage", no_wrap=True)
    for version in (*versions, *elsewhere):
        scores = [_shown_score(version, key) for key in SCORE_HEADINGS]
        lineage = [f"{label:<8}{version.lineage.get(key, '?')[:6]}" for key, label in LINEAGE_LABELS.items()]
        made = f"{'made':<8}{version.created:%y-%m-%d}"
        is_last = version is versions[-1]
        table.add_row(
            str(version.version),
            "\n".join(version.aliases),
            *scores,
            "\n".join([*lineage, made]),
            end_section=is_last and bool(elsewhere),
        )
    return table


def _shown_score(version: Version, key: str) -> str:
    if key not in version.scores:
        return ""
    return f"{version.scores[key]:.3f}" + (OLDER_MARK if key == "format_errors" and version.older_reading else "")


def print_difference(first: Version, second: Version) -> None:
    """Prints what differs between two versions: scores with their difference, lineage, files.

    A score has no difference where an older STAR counted other answers as valid in one of the versions.
    """
    same_reading = first.older_reading == second.older_reading
    caption = None
    if not same_reading:
        older = first if first.older_reading else second
        caption = (
            f"An older STAR measured version {older.version} and counted other answers as valid: evaluate it again."
        )
    table = Table(title=f"{first} against {second}", caption=caption)
    for heading in ("", str(first.version), str(second.version), "difference"):
        table.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    for score in sorted(first.scores.keys() | second.scores.keys()):
        before, after = first.scores.get(score), second.scores.get(score)
        comparable = same_reading or is_same_in_both_readings(score)
        change = f"{after - before:+.4f}" if comparable and before is not None and after is not None else ""
        table.add_row(score, *("" if value is None else f"{value:.4f}" for value in (before, after)), change)
    table.add_section()
    for title, mine, theirs in (("", first.lineage, second.lineage), ("file ", first.files, second.files)):
        for key in sorted(mine.keys() | theirs.keys()):
            a, b = mine.get(key, ""), theirs.get(key, "")
            if a != b:
                table.add_row(title + key, a[:12], b[:12], "differs" if a and b else "only one has it")
    console().print(table)


def print_ledger(name: str) -> list[str]:
    """Prints every attempt of the ledger, the oldest first; returns what is wrong with the ledger, one sentence each.

    Raises:
        InputError: nothing is registered under that name.
    """
    require_versions(name)
    table = Table(title=f"Attempts to promote a version of {name}")
    for heading in ("when", "who", "what", "version", "outcome", "why"):
        table.add_column(heading, overflow="fold")
    history, wrong = audit.read_history(open_ledger(name, connect()))
    for attempt, outcome in history:
        version = "" if attempt.version is None else str(attempt.version)
        coloured = Text(outcome, style=OUTCOME_COLOURS[outcome])
        why = attempt.refused or attempt.reason
        table.add_row(
            attempt.at[:19].replace("T", " "),
            attempt.actor,
            attempt.action,
            version,
            coloured,
            why,
        )
    console().print(table)
    return wrong
