"""Makes the data set of a run: generates and imports rows, cleans them together, and splits them into training and held-out rows."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from star.config.data import Data
from star.data.data_card import write_card
from star.data.generate_offline import generate_rows
from star.data.importers import import_rows
from star.data.rows import Reject, json_line, read_rows
from star.data.set_statistics import SetStatistics
from star.data.splits import choose_heldout_ranks, choose_heldout_tools, row_rank, split_by_tool
from star.data.tool_coverage import add_tool_coverage, coverage_lines
from star.data.tool_files import load_tools
from star.data.write_set import REJECTS, ROWS, STATISTICS, reject_line, write_set
from star.errors import InputError
from star.json_file import write_json
from star.progress import print_line


def make_data_set(settings: Data, *, seed: int, out: Path, state: Path) -> dict[str, float]:
    """Writes train.jsonl, heldout.jsonl, rejects.jsonl, figures.json and the card (card.md, card.html).

    Args:
        state: folder that outlives a kill; what is finished there is not done again.

    Returns:
        number of train and held-out rows, imported rows, and rejected rows in all and by reason; number of tools that no row
        calls, where there are any.
    """
    tools = load_tools(settings.tools.read_verified())
    seed_data = settings.seed_data.read_verified() if settings.seed_data else None
    # A folder that was fetched has another name, and must make the same rejects.
    label = "seed_data" if seed_data and seed_data.is_dir() else None

    def records(position: int) -> Iterator[dict | Reject]:
        imported = 0
        if seed_data:
            given = import_rows(seed_data, source="seed", label=label)
            # A resumed run skips the imported rows that are done; the generator starts at its own position.
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

    # In the state, because a run that was killed during the split finds the cleaned rows there.
    set_folder = state / "set"
    set_folder.mkdir(parents=True, exist_ok=True)
    statistics = write_set(records, out=set_folder, state=state, total=settings.generated_rows, label="make rows")
    if statistics.rows <= settings.heldout_rows:
        raise InputError(
            f"only {statistics.rows} of {statistics.read} rows are clean ({dict(statistics.rejects)}), too few to hold out "
            f"{settings.heldout_rows}: make or give more rows, or hold out fewer"
        )
    # A copy: the split appends its own rejects, and a resumed run needs the set as it was committed.
    shutil.copyfile(set_folder / REJECTS, out / REJECTS)
    statistics = _split(
        set_folder / ROWS, statistics, heldout=settings.heldout_rows, by=settings.split, seed=seed, out=out
    )
    write_json(out / STATISTICS, statistics.to_json())
    # Nobody asked for calls of the package's tools where no rows are generated. By content, as all inputs count.
    are_asked_for = settings.generated_rows > 0 or settings.tools.sha256 != Data().tools.sha256
    coverage = add_tool_coverage(statistics, tools if are_asked_for else [], folder=out, masked=settings.masked)
    for line in coverage_lines(statistics.uncalled, statistics.tool_notes):
        print_line(line)
    write_card(out)
    imported = statistics.read - settings.generated_rows
    counts: dict[str, float] = {
        **statistics.split,
        "imported": imported,
        "rejected": statistics.rejects.total(),
        "fitted": statistics.fitted,
    }
    if coverage.get("uncalled"):
        counts["tools_not_called"] = len(statistics.uncalled)
    return counts | {f"rejected_{reason}": count for reason, count in statistics.rejects.most_common()}


def _split(rows: Path, statistics: SetStatistics, *, heldout: int, by: str, seed: int, out: Path) -> SetStatistics:
    """Writes train.jsonl and heldout.jsonl; returns the statistics with the number of rows of both."""
    # One pass chooses and a second one writes, because the rows need not fit into memory.
    if by == "tool":
        tools = choose_heldout_tools(read_rows(rows), heldout=heldout, seed=seed)
        sides = split_by_tool(read_rows(rows), tools=tools, heldout=heldout)
    else:
        chosen = choose_heldout_ranks(read_rows(rows), heldout=heldout, seed=seed)
        sides = (("heldout" if row_rank(row, seed) in chosen else "train", row) for row in read_rows(rows))
    # A copy: the caller still needs the statistics from before the split.
    statistics = SetStatistics.from_json(statistics.to_json())
    with (
        (out / "train.jsonl").open("wb") as train,
        (out / "heldout.jsonl").open("wb") as held,
        (out / REJECTS).open("ab") as rejects,
    ):
        files = {"train": train, "heldout": held}
        for side, row in sides:
            if isinstance(row, Reject):
                statistics.add_reject(row)
                rejects.write(reject_line(row))
            else:
                statistics.split[side] += 1
                files[side].write(json_line(row))
    return statistics
