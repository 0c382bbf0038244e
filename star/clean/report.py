"""Prints what a clean found: each thing that goes, and a line for each reason why others stay."""

from collections import defaultdict

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from star.clean.clean import Plan
from star.clean.entry import DAY, NOT_OURS, Entry
from star.terminal import console
from star.units import format_bytes

NAMED_PATHS = 10  # of a reason that a person should look at


def print_plan(plan: Plan) -> None:
    """Prints both tables, with counts and bytes, and what a person should look at."""
    if plan.going:
        console().print(_table_of_going(plan.going, plan.sizes))
    staying = [entry for entry in plan.entries if not entry.goes]
    if staying:
        console().print(_table_of_staying(staying, plan.sizes))
    odd = [entry.detail for entry in staying if entry.why == NOT_OURS]
    unknown = [f"{folder} was not made by STAR" for folder in plan.unknown]
    for lines in (odd, unknown):
        more = [f"and {len(lines) - NAMED_PATHS} more"] if len(lines) > NAMED_PATHS else []
        for line in (*lines[:NAMED_PATHS], *more):
            console().print(Text(f"not touched: {line}"), soft_wrap=True)
    for line in plan.remarks:
        console().print(Text(line), soft_wrap=True)


def _table_of_going(entries: list[Entry], sizes: dict[str, int]) -> Table:
    total = sum(sizes[entry.place] for entry in entries)
    table = Table(title=f"Goes: {len(entries)}, {format_bytes(total)}", box=SIMPLE)
    for heading in ("what", "where", "size", "why"):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for entry in sorted(entries, key=lambda entry: (entry.kind, -entry.age)):
        table.add_row(entry.kind, entry.place, format_bytes(sizes[entry.place]), entry.why)
    return table


def _table_of_staying(entries: list[Entry], sizes: dict[str, int]) -> Table:
    groups: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.kind, entry.why].append(entry)
    total = sum(sizes[entry.place] for entry in entries)
    table = Table(title=f"Stays: {len(entries)}, {format_bytes(total)}", box=SIMPLE)
    for heading in ("what", "number", "size", "oldest", "why"):
        table.add_column(heading, justify="left" if heading in ("what", "why") else "right", overflow="fold")
    for (kind, why), members in sorted(groups.items()):
        size = format_bytes(sum(sizes[entry.place] for entry in members))
        oldest = f"{max(entry.age for entry in members) / DAY:.0f} days"
        example = f" ({members[0].detail})" if members[0].detail and why != NOT_OURS else ""
        table.add_row(kind, str(len(members)), size, oldest, why + example)
    return table
