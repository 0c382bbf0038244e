"""Makes the data set of a run: generates and imports rows, cleans and samples them, and splits them into training and held-out rows."""

import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from star.config.data import Data
from star.data.data_card import write_card
from star.data.filters import checks_of
from star.data.generate_offline import generate_rows
from star.data.row_sources import (
    all_shortfalls,
    choose_samples,
    is_sampled,
    read_seed_data,
    read_source,
    within_samples,
)
from star.data.rows import Reject, json_line, read_rows
from star.data.set_statistics import SetStatistics
from star.data.splits import (
    choose_heldout_rows,
    choose_heldout_tools,
    count_heldout_without_call,
    split_by_row,
    split_by_tool,
)
from star.data.tool_coverage import add_tool_coverage, coverage_lines
from star.data.tool_files import load_tools
from star.data.write_set import (
    REJECTS,
    ROWS,
    STATISTICS,
    first_reasons,
    reject_line,
    write_selection,
    write_set,
)
from star.errors import InputError
from star.json_file import write_json
from star.progress import print_line
from star.terminal import continued


def make_data_set(settings: Data, *, seed: int, out: Path, state: Path) -> dict[str, float]:
    """Writes train.jsonl, heldout.jsonl, rejects.jsonl, figures.json and the card (card.md, card.html).

    Args:
        state: folder that outlives a kill; what is finished there is not done again.

    Returns:
        number of train and held-out rows, imported rows, and rejected rows in all and by reason; number of rows without an
        answer and of tools that no row calls, where there are any.
    """
    tools = load_tools(settings.tools.read_verified())

    def records(position: int) -> Iterator[dict | Reject]:
        given = _imported_rows(settings)
        # A resumed run skips the imported rows that are done; the generator starts at its own position.
        skipped = sum(1 for _ in islice(given, position))
        yield from given
        yield from generate_rows(
            tools,
            settings.generated_rows,
            seed=seed,
            tools_per_prompt=settings.tools_per_prompt,
            kinds=settings.kinds,
            masked=settings.masked,
            reasoning=settings.reasoning,
            start=position - skipped,
        )

    # In the state, because a run that was killed during the split finds the cleaned rows there.
    set_folder = state / "set"
    set_folder.mkdir(parents=True, exist_ok=True)
    statistics = write_set(
        records,
        out=set_folder,
        state=state,
        checks=checks_of(settings),
        total=settings.generated_rows,
        label="make rows",
    )
    if settings.sources:
        _say_rejects_of_sources(settings, statistics, set_folder)
        set_folder, statistics = _select_rows_of_sources(settings, set_folder, out=state / "sampled", seed=seed)
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
    _say_coverage(statistics, tools if are_asked_for else [], out=out, masked=settings.masked)
    write_card(out)
    imported = statistics.read - settings.generated_rows
    counts: dict[str, float] = {
        **statistics.split,
        "imported": imported,
        "rejected": statistics.rejects.total(),
        "fitted": statistics.fitted,
    }
    if statistics.unanswered:
        counts["unanswered"] = statistics.unanswered
    if statistics.uncalled:
        counts["tools_not_called"] = len(statistics.uncalled)
    return counts | {f"rejected_{reason}": count for reason, count in statistics.rejects.most_common()}


def _say_coverage(statistics: SetStatistics, tools: list[dict], *, out: Path, masked: float) -> None:
    add_tool_coverage(statistics, tools, folder=out, masked=masked)
    for line in coverage_lines(statistics.uncalled, statistics.tool_notes):
        print_line(line)


def _imported_rows(settings: Data) -> Iterator[dict | Reject]:
    yield from read_seed_data(settings)
    # Whole sets first: of copies the first is kept, and that of a sampled set may be left out later.
    for source in sorted(settings.sources, key=is_sampled):
        yield from read_source(source)


def _say_rejects_of_sources(settings: Data, statistics: SetStatistics, folder: Path) -> None:
    """Prints why records of a set were left out, if more than a tenth was, as `star data import` does."""
    for name in (source.source for source in settings.sources):
        counts = statistics.rejects_by_source.items()
        left_out = sum(count for said, count in counts if said.startswith(f"{name}: "))
        if left_out * 10 > left_out + statistics.sources[name]:
            print_line(f"more than a tenth of {name} was left out; the first reasons (all are in {REJECTS}):")
            for reason in first_reasons(folder, source=name):
                print_line(f"  {continued(reason[:300])}")


def _select_rows_of_sources(settings: Data, folder: Path, *, out: Path, seed: int) -> tuple[Path, SetStatistics]:
    """Writes the set of the rows that are used to `out`. Returns that folder and the set's statistics.

    Raises:
        InputError: no row of a source is used.
    """
    samples = choose_samples(read_rows(folder / ROWS), settings.sources, seed=seed)
    missing = all_shortfalls(samples)
    for name, count in missing.items():
        print_line(f"{count} rows short of {name}")
    out.mkdir(exist_ok=True)
    # A second pass over the file, because the rows to keep are known only after all were seen.
    used: Counter = Counter()
    selection = within_samples(read_rows(folder / ROWS), samples, settings.sources, seed=seed, used=used)
    statistics = write_selection(folder, selection, out=out, shortfalls=lambda kept: missing)
    for number, source in enumerate(settings.sources):
        if not used[source.source]:
            reasons = "; ".join(reason[:300] for reason in first_reasons(out, source=source.source))
            raise InputError(
                f"`data.sources.{number}`: no row of {source.source} is used ({reasons or 'it has no records'}): correct the set, or "
                "leave it out"
            )
    return out, statistics


def _split(rows: Path, statistics: SetStatistics, *, heldout: int, by: str, seed: int, out: Path) -> SetStatistics:
    """Writes train.jsonl and heldout.jsonl; returns the statistics with the number of rows of both.

    Rows without an answer are training rows: there is nothing to compare a model's answer with.
    """
    # One pass chooses and a second one writes, because the rows need not fit into memory.
    if by == "tool":
        tools = choose_heldout_tools(read_rows(rows), heldout=heldout, seed=seed)
        without_call = count_heldout_without_call(read_rows(rows), tools=tools, heldout=heldout)
        sides = split_by_tool(read_rows(rows), tools=tools, heldout=heldout, without_call=without_call)
    else:
        chosen = choose_heldout_rows(read_rows(rows), heldout=heldout, seed=seed)
        sides = split_by_row(read_rows(rows), chosen, seed=seed)
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
    if not statistics.split["train"]:
        raise InputError(f"no row is left to train on beside {heldout} held-out ones: hold out fewer")
    return statistics
