"""The data set of a run: generated and imported rows, cleaned together and split, nothing left out without a reason."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from star.config.data import Data
from star.data.data_card import write_card
from star.data.generate import generate_rows
from star.data.importers import import_rows
from star.data.rows import Reject, json_line, read_rows
from star.data.set_statistics import Figures
from star.data.splits import heldout_ranks, heldout_tools, rank, split_by_tool
from star.data.tool_files import load_tools
from star.data.write_set import FIGURES, REJECTS, ROWS, reject_line, write_set
from star.errors import InputError
from star.json_file import write_json


def make_data_set(settings: Data, *, seed: int, out: Path, state: Path) -> dict[str, float]:
    """Writes train.jsonl, heldout.jsonl, rejects.jsonl, figures.json and the card (card.md, card.html).

    Args:
        state: a folder that outlives a kill; work that was done there is not done again.

    Returns:
        counts: train and held-out rows, imported rows, rejected rows in all and by reason.
    """
    tools = load_tools(settings.tools.read_verified())
    seed_data = settings.seed_data.read_verified() if settings.seed_data else None

    def records(position: int) -> Iterator[dict | Reject]:
        imported = 0
        if seed_data:
            given = import_rows(seed_data, source="seed")
            imported = sum(1 for _ in islice(given, position))
            yield from given
        yield from generate_rows(
            tools,
            settings.generated_rows,
            seed=seed,
            tools_per_prompt=settings.tools_per_prompt,
            kinds=settings.kinds,
            masked=settings.masked,
            start=position - imported,
        )

    work = state / "set"
    work.mkdir(parents=True, exist_ok=True)
    figures = write_set(records, out=work, state=state, total=settings.generated_rows, label="make rows")
    if figures.rows <= settings.heldout_rows:
        raise InputError(
            f"only {figures.rows} of {figures.read} rows are clean ({dict(figures.rejects)}), too few to hold out "
            f"{settings.heldout_rows}: make or give more rows, or hold out fewer"
        )
    shutil.copyfile(work / REJECTS, out / REJECTS)
    figures = _split(work / ROWS, figures, heldout=settings.heldout_rows, by=settings.split, seed=seed, out=out)
    write_json(out / FIGURES, figures.to_json())
    write_card(out)
    imported = figures.read - settings.generated_rows
    counts = {**figures.split, "imported": imported, "rejected": figures.rejects.total(), "fitted": figures.fitted}
    return counts | {f"rejected_{reason}": count for reason, count in figures.rejects.most_common()}


def _split(rows: Path, figures: Figures, *, heldout: int, by: str, seed: int, out: Path) -> Figures:
    """Writes train.jsonl and heldout.jsonl; returns the figures with the rows of both."""
    if by == "tool":
        tools = heldout_tools(read_rows(rows), heldout=heldout, seed=seed)
        sides = split_by_tool(read_rows(rows), tools=tools, heldout=heldout)
    else:
        chosen = heldout_ranks(read_rows(rows), heldout=heldout, seed=seed)
        sides = (("heldout" if rank(row, seed) in chosen else "train", row) for row in read_rows(rows))
    figures = Figures.from_json(figures.to_json())
    with (
        (out / "train.jsonl").open("wb") as train,
        (out / "heldout.jsonl").open("wb") as held,
        (out / REJECTS).open("ab") as rejects,
    ):
        files = {"train": train, "heldout": held}
        for side, row in sides:
            if isinstance(row, Reject):
                figures.add_reject(row)
                rejects.write(reject_line(row))
            else:
                figures.split[side] += 1
                files[side].write(json_line(row))
    return figures
