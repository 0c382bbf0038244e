"""A data set being written: kept rows, rejects with their reasons, figures; in steps that survive a kill.

Every CHECKPOINT records, what was written and what the duplicates' index remembers is committed together. A run that goes on cuts the files
back to the last commit and takes the input up from there, so its output is the bytes that a run left alone would have written. Memory does
not grow with the rows.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path

from star.data.cleaning import Check, examine, fault_of, is_fitted
from star.data.duplicates import Duplicates
from star.data.quotas import shortfalls, wanted_rows, within_quotas
from star.data.rows import Reject, json_line, ordered_row, read_rows
from star.data.set_statistics import Figures
from star.errors import InputError
from star.json_file import write_json
from star.progress import Bar

CHECKPOINT = 1000  # records
ROWS, REJECTS, FIGURES, TOOLS = "rows.jsonl", "rejects.jsonl", "figures.json", "tools.jsonl"

# Gives the records from a position on: (position) -> records. A generator begins there; a file is read up to there.
Records = Callable[[int], Iterable[dict | Reject]]


def from_start(records: Iterable[dict | Reject]) -> Records:
    """Records that can only be read from the beginning."""
    return lambda position: islice(records, position, None)


def write_set(
    records: Records,
    *,
    out: Path,
    state: Path,
    checks: tuple[Check, ...] = (),
    observe: Callable[[dict], Iterable[str]] | None = None,
    total: int | None = None,
    label: str = "rows",
) -> Figures:
    """Writes rows.jsonl, rejects.jsonl and figures.json to `out`; goes on where a killed run stopped.

    Args:
        records: rows and rejects, the same in the same order whenever they are asked for.
        state: a folder that outlives a kill, for the index of kept rows.
        checks: run between a row's own faults and the search for duplicates.
        observe: names what a kept row is counted under in the figures' overlaps.
        total: how many records there are, for the progress bar.

    Raises:
        InputError: whatever the records raise.
    """
    with closing(Duplicates(state / "kept.sqlite")) as duplicates:
        done, figures = _go_back_to_commit(duplicates, out)
        given: list = []
        examined = examine(_remembering(records(done), given), [fault_of, *checks, duplicates.admit])
        with (
            (out / ROWS).open("ab") as rows,
            (out / REJECTS).open("ab") as rejects,
            Bar(label, total, start=done) as bar,
        ):

            def commit() -> None:
                rows.flush()
                rejects.flush()
                sizes = {ROWS: rows.tell(), REJECTS: rejects.tell()}
                duplicates.commit(json.dumps({"done": figures.read, "sizes": sizes, "figures": figures.to_json()}))

            for result in examined:
                figures.read += 1
                if isinstance(result, Reject):
                    figures.add_reject(result)
                    rejects.write(reject_line(result))
                else:
                    figures.fitted += is_fitted(given[0], result)
                    figures.add(result)
                    figures.overlaps.update(observe(result) if observe else ())
                    rows.write(json_line(ordered_row(result)))
                given.clear()
                if figures.read % CHECKPOINT == 0:
                    commit()
                if bar.total is not None:
                    bar.total = max(bar.total, figures.read)
                bar.advance()
            commit()
    write_json(out / FIGURES, figures.to_json())
    return figures


def _remembering(records: Iterable[dict | Reject], last: list) -> Iterator[dict | Reject]:
    for record in records:
        last.append(record)
        yield record


def _go_back_to_commit(duplicates: Duplicates, out: Path) -> tuple[int, Figures]:
    """(records done, figures) of the last commit, with the files cut back to it."""
    kept = duplicates.committed()
    state = json.loads(kept) if kept else {"done": 0, "sizes": {ROWS: 0, REJECTS: 0}, "figures": {}}
    for name, size in state["sizes"].items():
        (out / name).touch()
        os.truncate(out / name, size)
    return state["done"], Figures.from_json(state["figures"])


def apply_quotas(folder: Path, *, shares: Mapping[str, float], total: int, seed: int) -> Figures:
    """Cuts a written set's rows down to `total` in these shares; the others join the rejects. Returns the new figures, also written."""
    before, wanted = read_figures(folder), wanted_rows(shares, total)
    after = Figures(
        read=before.read, fitted=before.fitted, rejects=before.rejects, rejects_by_source=before.rejects_by_source
    )
    after.overlaps = before.overlaps
    rows, cut = folder / ROWS, folder / f".{ROWS}"
    with cut.open("wb") as kept, (folder / REJECTS).open("ab") as rejects:
        for row in within_quotas(read_rows(rows), read_rows(rows), wanted=wanted, seed=seed):
            if isinstance(row, Reject):
                after.add_reject(row)
                rejects.write(reject_line(row))
            else:
                after.add(row)
                kept.write(json_line(row))
    after.shortfalls = shortfalls(after.kinds, wanted)
    write_json(folder / FIGURES, after.to_json())
    cut.replace(rows)
    return after


def reject_line(reject: Reject) -> bytes:
    """A reject as a line of the quarantine file; what cannot be JSON is kept as text."""
    try:
        return json_line(vars(reject))
    except (ValueError, RecursionError, TypeError):
        return json_line(
            {**vars(reject), "row": ascii(reject.row)[:10_000], "detail": ascii(reject.detail), "id": ascii(reject.id)}
        )


def read_figures(folder: Path) -> Figures:
    """The figures of a finished set.

    Raises:
        InputError: the folder holds none.
    """
    try:
        return Figures.from_json(json.loads((folder / FIGURES).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder} is no data set: give a folder that `star data` or `star synthesize` wrote"
        ) from error
