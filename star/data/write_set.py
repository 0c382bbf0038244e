"""Writes a set of rows: rows.jsonl with the kept rows, rejects.jsonl with the others and their reasons, figures.json with statistics.

Every COMMIT_EVERY records, the sizes of the files, the statistics and the index of duplicates are committed together in one SQLite
transaction. A resumed run truncates the files to the last commit and continues the input from there, so it writes the same bytes as a run
that was never killed. Memory does not grow with the number of rows.

    write_set(from_start(import_rows(Path("xlam.json"), source="xlam")), out=Path("set"), state=Path("state"))
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from star.data.cleaning import Check, check_row, fault_of, is_coerced
from star.data.duplicates import Duplicates
from star.data.quotas import shortfalls, wanted_rows, within_quotas
from star.data.rows import Reject, json_line, ordered_row, read_json_lines, read_rows
from star.data.set_statistics import SetStatistics
from star.errors import InputError
from star.json_file import write_json
from star.limits import REJECT_BYTES
from star.progress import Bar

COMMIT_EVERY = 1000  # records between two commits
ROWS, REJECTS, STATISTICS, TOOLS = "rows.jsonl", "rejects.jsonl", "figures.json", "tools.jsonl"

# Returns the records from a position on. A generator starts there; a file is read and skipped up to there.
Records = Callable[[int], Iterable[dict | Reject]]


def from_start(records: Iterable[dict | Reject]) -> Records:
    """Makes Records of an iterable that can only be read from its beginning."""
    return lambda position: islice(records, position, None)


def write_set(
    records: Records,
    *,
    out: Path,
    state: Path,
    checks: tuple[Check, ...] = (),
    find_overlaps: Callable[[dict], Iterable[str]] | None = None,
    total: int | None = None,
    label: str = "rows",
) -> SetStatistics:
    """Writes rows.jsonl, rejects.jsonl and figures.json to `out`, and resumes where a killed run stopped.

    Args:
        records: rows and rejects. A resumed run must get the same ones in the same order.
        state: folder that outlives a kill, for the index of kept rows.
        checks: checks to run after those of a single row and before the search for duplicates.
        find_overlaps: names what a kept row has in common with a benchmark, to be counted in the statistics.
        total: number of records, for the progress bar.
        label: what the progress bar is called.

    Raises:
        InputError: whatever the records raise.
    """
    with closing(Duplicates(state / "kept.sqlite")) as duplicates:
        done, statistics = _roll_back_to_commit(duplicates, out)
        all_checks = [fault_of, *checks, duplicates.check_and_add]
        with (
            (out / ROWS).open("ab") as rows,
            (out / REJECTS).open("ab") as rejects,
            Bar(label, total, start=done) as bar,
        ):

            def commit() -> None:
                # The files first: sizes that were committed must be on the disk.
                rows.flush()
                rejects.flush()
                sizes = {ROWS: rows.tell(), REJECTS: rejects.tell()}
                progress = {"done": statistics.read, "sizes": sizes, "figures": statistics.to_json()}
                duplicates.commit(json.dumps(progress))

            for record in records(done):
                statistics.read += 1
                result = check_row(record, all_checks)
                if isinstance(result, Reject):
                    statistics.add_reject(result)
                    rejects.write(reject_line(result))
                else:
                    statistics.fitted += is_coerced(record, result)
                    statistics.add(result)
                    statistics.overlaps.update(find_overlaps(result) if find_overlaps else ())
                    rows.write(json_line(ordered_row(result)))
                if statistics.read % COMMIT_EVERY == 0:
                    commit()
                # Imported rows come on top of the expected ones.
                if bar.total is not None:
                    bar.total = max(bar.total, statistics.read)
                bar.advance()
            commit()
    write_json(out / STATISTICS, statistics.to_json())
    return statistics


def _roll_back_to_commit(duplicates: Duplicates, out: Path) -> tuple[int, SetStatistics]:
    """Truncates the files to the last commit. Returns (number of records done, statistics) of that commit."""
    kept = duplicates.committed()
    state: dict[str, Any] = json.loads(kept) if kept else {"done": 0, "sizes": {ROWS: 0, REJECTS: 0}, "figures": {}}
    for name, size in state["sizes"].items():
        (out / name).touch()
        # What was written after the last commit is not in the index of duplicates, so it is written again.
        os.truncate(out / name, size)
    return state["done"], SetStatistics.from_json(state["figures"])


def apply_quotas(folder: Path, *, out: Path, shares: Mapping[str, float], total: int, seed: int) -> SetStatistics:
    """Writes a set of `total` rows of the set in `folder`, in these shares, as `write_selection` does."""
    rows, wanted = folder / ROWS, wanted_rows(shares, total)
    selection = within_quotas(read_rows(rows), read_rows(rows), wanted=wanted, seed=seed)
    return write_selection(folder, selection, out=out, shortfalls=lambda kept: shortfalls(kept.kinds, wanted))


def write_selection(
    folder: Path,
    selection: Iterable[dict | Reject],
    *,
    out: Path,
    shortfalls: Callable[[SetStatistics], Counter],
) -> SetStatistics:
    """Writes a set of some rows of the set in `folder`; the others follow the set's rejects.

    Args:
        folder: stays as it is. A resumed run goes on with it, which it could not with a set that has lost rows.
        selection: every row of the set, or a reject in its place.
        shortfalls: counts the rows that are missing, from the statistics of the kept ones.

    Returns:
        the statistics of the new set, which are also written to its figures.json.
    """
    before = read_statistics(folder)
    after = SetStatistics(
        read=before.read, fitted=before.fitted, rejects=before.rejects, rejects_by_source=before.rejects_by_source
    )
    after.overlaps = before.overlaps
    shutil.copyfile(folder / REJECTS, out / REJECTS)
    with (out / ROWS).open("wb") as kept, (out / REJECTS).open("ab") as rejects:
        for row in selection:
            if isinstance(row, Reject):
                after.add_reject(row)
                rejects.write(reject_line(row))
            else:
                after.add(row)
                kept.write(json_line(row))
    after.shortfalls = shortfalls(after)
    write_json(out / STATISTICS, after.to_json())
    return after


def first_reasons(folder: Path, *, source: str | None = None, most: int = 3) -> list[str]:
    """Returns the first rejects of a set that differ in their reasons, as "id: reason: detail".

    Args:
        source: of the rejects to look at; all by default.
    """
    seen: dict[tuple[str, str], str] = {}
    rejects = (reject for _, reject in read_json_lines(folder / REJECTS) if source in (None, _source_of(reject)))
    for reject in islice(rejects, COMMIT_EVERY):
        # The end of a detail often quotes the record, so its beginning says whether it is another reason.
        mark = (reject["reason"], reject["detail"][:70])
        seen.setdefault(mark, f"{reject['id']}: {reject['reason']}: {' '.join(reject['detail'].split())}")
        if len(seen) == most:
            break
    return list(seen.values())


def _source_of(reject: dict) -> object:
    row = reject["row"]
    return reject.get("source") or (row.get("source") if isinstance(row, dict) else None)


def reject_line(reject: Reject) -> bytes:
    """Returns a reject as a line of rejects.jsonl. What cannot be written as JSON, or is too long, is written as the start of its text."""
    fields = {key: value for key, value in vars(reject).items() if key != "source" or value}
    try:
        if len(line := json_line(fields)) <= REJECT_BYTES:
            return line
    # A reject holds what could not be read, so it may contain anything and must not stop the run.
    except (ValueError, RecursionError, TypeError):
        pass
    texts = {"row": reject.row, "detail": reject.detail, "id": reject.id}
    return json_line({**fields, **{key: _start_of(value) for key, value in texts.items()}})


def _start_of(value: object) -> str:
    try:
        return ascii(value)[:10_000]
    except (ValueError, RecursionError) as error:  # too many digits, too deep
        return f"cannot be written: {error}"


def read_statistics(folder: Path) -> SetStatistics:
    """Reads the statistics of a finished set.

    Raises:
        InputError: the folder has none.
    """
    try:
        return SetStatistics.from_json(json.loads((folder / STATISTICS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{folder} is not a data set: give a folder that `star data` or `star synthesize` wrote"
        ) from error
