"""Keeps the results of a study as a CSV: one line per cell and seed, with raw values, from which the report is made.

    cell,sweep,value,kd,rl,seed,exact_match,...
    ckd+similarity,grid,,ckd,similarity,11,0.62,...

The file belongs into the repository. Its lines stand in the order of the study's cells, whatever finished first. The column `key` is a
digest of the settings that made a line, so that a report is not made of lines of other settings. Files of older versions lack it.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from star.errors import InputError
from star.evaluation.evaluate import EVALUATION
from star.folders.manifest import read_manifest
from star.folders.owners import file_mode
from star.study.evaluate import MODEL
from star.study.grid import Cell
from star.study.work import Work

SCORES = ("exact_match", "mean_reward", "format_errors", "pass_at_1", "pass_at_4", "pass_at_8", "entropy")
SCORES_BEFORE_RL = ("exact_match", "pass_at_1", "pass_at_4", "pass_at_8", "entropy")
COLUMNS_BEFORE_RL = tuple(f"before_rl_{name}" for name in SCORES_BEFORE_RL)
CURVES = {"distill_ce": ("ckd", "ce"), "rl_reward": ("simrl", "sampled_reward"), "rl_entropy": ("simrl", "entropy")}
CURVE_POINTS = 25
COLUMNS = (
    "cell", "sweep", "value", "kd", "rl", "seed", "failed", *SCORES,
    *COLUMNS_BEFORE_RL, "by_kind", "teacher_exact_match", "parameters", "heldout_rows",
    *CURVES, "seconds", "student", "code_version", "key",
)  # fmt: skip
NUMBERS = ("seed", *SCORES, *COLUMNS_BEFORE_RL, "teacher_exact_match", "parameters", "heldout_rows")
Row = dict[str, str]


class Recorded(NamedTuple):
    """The lines of a file, by whether the study's settings made them.

    Attributes:
        rows: the lines of the study's cells.
        others: lines that other settings made, and those of cells that the study does not have.
        unknown: how many of `rows` do not say which settings made them.
    """

    rows: list[Row]
    others: list[Row]
    unknown: int


def row_of(cell: Cell) -> Row:
    """The line of a cell whose work is done."""
    evaluation = json.loads((cell.evaluation.folder / EVALUATION).read_text(encoding="utf-8"))
    [model] = evaluation["models"]
    scores, before, teacher = (
        work.metrics() for work in (cell.evaluation, cell.evaluation_before_rl, cell.evaluation_teacher)
    )
    manifest = read_manifest(cell.student.folder)
    values: dict[str, object] = {
        **_names(cell),
        **{name: _score(scores, name) for name in SCORES},
        **{f"before_rl_{name}": _score(before, name) for name in SCORES_BEFORE_RL},
        "by_kind": _pairs((kind, group["exact_match"]) for kind, group in model["by_kind"].items()),
        "teacher_exact_match": _score(teacher, "exact_match"),
        "parameters": model["parameters"],
        "heldout_rows": evaluation["suite"]["heldout"]["rows"],
        **{column: _curve(cell, phase, metric) for column, (phase, metric) in CURVES.items()},
        # By piece of work, because cells share some: a sum over the cells would count these several times.
        "seconds": _pairs((f"{work.label}-{work.key}", work.metrics()["seconds"]) for work in cell.work),
        "student": manifest.digest,
        "code_version": manifest.code_version,
    }
    return {column: str(values.get(column, "")) for column in COLUMNS}


def failed_row(cell: Cell, reason: str) -> Row:
    """The line of a cell that has no result."""
    values = {**_names(cell), "failed": " ".join(reason.split())}
    return {column: str(values.get(column, "")) for column in COLUMNS}


def read_results(file: Path) -> list[Row]:
    """The lines of a file; none if it does not exist.

    Raises:
        InputError: it is another table, or a line of it is damaged.
    """
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        if missing := sorted({*COLUMNS} - {*(reader.fieldnames or ()), "key"}):
            raise InputError(
                f"{file} is no table of a study's results, because it lacks the columns {', '.join(missing)}: name a file that "
                "`star study run` wrote"
            )
        return [_checked(row, place=f"{file}, line {reader.line_num}") for row in reader]


def _checked(row: Row, *, place: str) -> Row:
    """The line with all columns. Only a line of a failed cell has no numbers."""
    row = {"key": "", **row}
    if None in row or None in row.values():
        raise InputError(f"{place} has another number of values than there are columns: restore the file")
    for column in NUMBERS:
        if not (_is_number(row[column]) if row[column] else row["failed"]):
            raise InputError(f"{place}: `{column}` is {row[column]!r}, which is no number: restore the file")
    return row


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def lines_of(cells: Sequence[Cell], rows: Iterable[Row]) -> Recorded:
    """Sorts lines by whether the settings of these cells made them. Lines of files without the column `key` are taken."""
    keys = {(cell.name, str(cell.seed)): cell.evaluation.key for cell in cells}
    own, others = list[Row](), list[Row]()
    for row in rows:
        key = keys.get(_key(row))
        (own if key is not None and row["key"] in ("", key) else others).append(row)
    return Recorded(own, others, sum(not row["key"] for row in own))


def write_result(file: Path, row: Row, *, order: Sequence[Cell]) -> bool:
    """Puts a line into the file, in place of an older one of the same cell and seed. Returns whether that brought new values.

    Lines of cells that are not in `order` stay, behind the others. A failure does not replace a result of the same settings.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Other machines may write theirs at the same moment.
    with FileLock(file.with_name(f".{file.name}.lock"), mode=file_mode()):
        rows = {_key(line): line for line in read_results(file)}
        old = rows.get(_key(row))
        if old == row or (old and row["failed"] and not old["failed"] and old["key"] in ("", row["key"])):
            return False
        rows[_key(row)] = row
        position = {(cell.name, str(cell.seed)): number for number, cell in enumerate(order)}
        ordered = sorted(rows.values(), key=lambda line: position.get(_key(line), len(position)))
        temporary = file.with_name(f".{file.name}.tmp")
        with temporary.open("w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(ordered)
        temporary.replace(file)
    # A line of an older version gets its key.
    return old is None or {**old, "key": row["key"]} != row


def read_pairs(text: str) -> dict[str, float]:
    """Reads a column of names with numbers, such as a learning curve: `10:0.71 20:0.65`."""
    return {name: float(value) for name, _, value in (pair.rpartition(":") for pair in text.split())}


def _key(row: Row) -> tuple[str, str]:
    return row["cell"], row["seed"]


def _names(cell: Cell) -> dict[str, object]:
    return {
        "cell": cell.name,
        "sweep": cell.sweep,
        "value": cell.value,
        "kd": cell.kd,
        "rl": cell.rl,
        "seed": cell.seed,
        "key": cell.evaluation.key,
    }


def _score(metrics: dict[str, float], name: str) -> float:
    return round(metrics[f"{MODEL}_{name}"], 6)


def _curve(cell: Cell, phase: str, metric: str) -> str:
    """About CURVE_POINTS points of a learning curve, evenly spread, with the last one; "" where the cell has no such training."""
    trained: Work = cell.student if phase == "simrl" else cell.before_rl
    file = trained.folder / f"{phase}_curve.json"
    if not file.is_file():
        return ""
    entries = [entry for entry in json.loads(file.read_text(encoding="utf-8")) if metric in entry]
    stride = max(1, len(entries) // CURVE_POINTS)
    # Counted from the end, so that the last point is one of them.
    return _pairs((entry["step"], entry[metric]) for entry in entries[::-1][::stride][::-1])


def _pairs(pairs: Iterable[tuple[object, float]]) -> str:
    return " ".join(f"{str(name).replace(' ', '-')}:{value:.4g}" for name, value in pairs)
