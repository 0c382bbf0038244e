"""Reads the recorded values of a study by cell and seed, and writes them as the tables of its page.

scores = Scores(rows, seeds=(11, 12, 13))
scores.percent("ckd+none")                         # "52.3 ± 1.9", or "52.3 ± 9.1 (n=2)" where a seed is missing
scores.difference("ckd+none", "fkl+none")          # paired by seed
"""

import textwrap
from collections.abc import Callable, Sequence
from statistics import fmean

from star.study.results import Row, read_pairs
from star.study.statistics import Estimate, difference, estimate
from star.units import format_seconds

KD_NAMES = {
    "none": "none (the base)", "ce": "CE, hard labels", "fkl": "forward KL", "rkl": "reverse KL", "akl": "AKL",
    "rskd": "RSKD", "ckd": "CKD", "cold-start": "cold start: CE on the rows", "on-policy-fkl": "on-policy, forward KL",
    "on-policy-rkl": "on-policy, reverse KL",
}  # fmt: skip
RL_NAMES = {"none": "no RL", "binary": "binary", "toolrl": "ToolRL's", "similarity": "similarity (Sim-RL)"}
# Columns that are no shares of the held-out rows. All others change in steps of one row.
NUMBERS = ("mean_reward", "entropy", "before_rl_entropy")
# The work that trains a student, without what cells share: data, teacher, its samples, the base.
TRAININGS = ("distill", "fine-tune", "distill-on-policy", "refine")


class Scores:
    """The recorded values by cell, column and seed.

    Args:
        rows: lines of cells that have a result.
        seeds: those of the study. A mean over fewer is marked.
    """

    def __init__(self, rows: Sequence[Row], *, seeds: Sequence[int]) -> None:
        self.rows, self.seeds = list(rows), seeds

    def of(self, cell: str) -> list[Row]:
        """The lines of a cell, one per recorded seed."""
        return [row for row in self.rows if row["cell"] == cell]

    def by_seed(self, cell: str, column: str) -> dict[int, float]:
        """Seed -> value of a cell; empty if it is not recorded."""
        return {int(row["seed"]): float(row[column]) for row in self.of(cell) if row[column]}

    def resolution(self, column: str, *cells: str) -> float:
        """The least step in which a column can change: one held-out row of a share, 0 of other numbers."""
        held = [float(row["heldout_rows"]) for cell in cells for row in self.of(cell) if row["heldout_rows"]]
        return 0.0 if column in NUMBERS or not held else 1 / min(held)

    def difference(self, left: str, right: str, column: str = "exact_match") -> Estimate | None:
        """The mean of left - right, paired by seed; None if no seed has both."""
        return difference(
            self.by_seed(left, column), self.by_seed(right, column), resolution=self.resolution(column, left, right)
        )

    def percent(self, cell: str, column: str = "exact_match") -> str:
        """The mean over seeds of a share, in percent, with its interval."""
        return self._mean(cell, column, percent)

    def number(self, cell: str, column: str) -> str:
        """The mean over seeds of any number, with its interval."""
        return self._mean(cell, column, "{:.3f}".format)

    def gain(self, left: str, right: str) -> str:
        """The difference of two cells' exact match in points, with its sign and interval."""
        found = self.difference(left, right)
        return self.shown(found, signed_percent) if found else "-"

    def training_time(self, cell: str) -> str:
        """The mean over seeds of the time that the cell's distillation and Sim-RL took."""
        seconds = [
            sum(taken for work, taken in read_pairs(row["seconds"]).items() if label_of(work) in TRAININGS)
            for row in self.of(cell)
        ]
        return format_seconds(round(fmean(seconds))) if seconds else "-"

    def are_same(self, cell: str, other: str) -> bool:
        """Whether two cells have the same students, because their settings are the same."""
        students = [{row["seed"]: row["student"] for row in self.of(name)} for name in (cell, other)]
        return bool(students[0]) and students[0] == students[1]

    def shown(self, found: Estimate, text: Callable[[float], str]) -> str:
        """A mean with its interval, and with the number of its seeds where that is less than the study's."""
        half = "" if found.half is None else f" ± {text(found.half).lstrip('+')}"
        return text(found.mean) + half + (f" (n={found.seeds})" if found.seeds < len(self.seeds) else "")

    def _mean(self, cell: str, column: str, text: Callable[[float], str]) -> str:
        values = self.by_seed(cell, column)
        if not values:
            return "-"
        return self.shown(estimate(list(values.values()), resolution=self.resolution(column, cell)), text)


def label_of(work: str) -> str:
    """The label of a piece of work as it stands in the column `seconds`: `distill-on-policy-3f1c9a0b` is one of distill-on-policy."""
    return work.rpartition("-")[0]


def percent(share: float) -> str:
    """0.523 as 52.3."""
    return f"{100 * share:.1f}"


def signed_percent(share: float) -> str:
    """0.023 as +2.3."""
    return f"{100 * share:+.1f}"


def table(head: Sequence[str], body: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table. The first columns are texts, the others numbers, which stand to the right."""
    rule = ["---" if number < text_columns else "---:" for number in range(len(head))]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(rule) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)]) + "\n"


def paragraph(text: str) -> str:
    """Text in lines as wide as those of the documentation, with an empty line after it."""
    return textwrap.fill(" ".join(text.split()), width=140, break_on_hyphens=False, break_long_words=False) + "\n\n"
