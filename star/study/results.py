"""Keeps the results of a study as a CSV: one line per cell and seed, with raw values, from which the report is made.

    cell,sweep,value,kd,rl,seed,exact_match,...
    ckd+similarity,grid,,ckd,similarity,11,0.62,...

The file belongs into the repository. Its lines stand in the order of the study's cells, whatever finished first.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from star.evaluation.evaluate import EVALUATION
from star.folders.manifest import read_manifest
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
    *CURVES, "seconds", "student", "code_version",
)  # fmt: skip
Row = dict[str, str]


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
    """The lines of a file; none if it does not exist."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write_result(file: Path, row: Row, *, order: Sequence[Cell]) -> bool:
    """Puts a line into the file, in place of an older one of the same cell and seed. Returns whether that changed the file.

    Lines of cells that are not in `order` stay, behind the others.
    """
    rows = {_key(line): line for line in read_results(file)}
    if rows.get(_key(row)) == row:
        return False
    rows[_key(row)] = row
    position = {(cell.name, str(cell.seed)): number for number, cell in enumerate(order)}
    ordered = sorted(rows.values(), key=lambda line: position.get(_key(line), len(position)))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(ordered)
    temporary.replace(file)
    return True


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
