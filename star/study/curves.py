"""Draws the learning curves of a study as SVG files."""

from pathlib import Path
from statistics import fmean

from star.html_kit import SERIES_COLOURS, STYLE
from star.study.results import Row, read_pairs
from star.study.scores import RL_NAMES
from star.svg_charts import Line, line_chart

# File -> column of the results, title, whether equal factors are equally high, and the cells that are drawn: at most as many as there are
# colours, and each kind of distillation at the same place, so that it has the same colour in all charts.
CHARTS = {
    "distillation.svg": (
        "distill_ce",
        "Cross-entropy on the teacher's samples during distillation",
        True,
        {"AKL": "akl+none", "CE": "ce+none", "FKL": "fkl+none", "RKL": "rkl+none", "CKD": "ckd+none"},
    ),
    "reward.svg": (
        "rl_reward",
        "Similarity reward of the samples during Sim-RL",
        False,
        {
            "none": "none+similarity",
            "CE": "ce+similarity",
            "FKL": "fkl+similarity",
            "RKL": "rkl+similarity",
            "CKD": "ckd+similarity",
        },
    ),
    "entropy.svg": (
        "rl_entropy",
        "Entropy of the policy during Sim-RL",
        True,
        {
            "none": "none+similarity",
            "CE": "ce+similarity",
            "FKL": "fkl+similarity",
            "RKL": "rkl+similarity",
            "CKD": "ckd+similarity",
        },
    ),
}


def write_curves(rows: list[Row], *, folder: Path) -> dict[str, str]:
    """Writes the charts for which there are values. Returns file -> title.

    A study of something else than the kinds of distillation has at most one of the cells of CHARTS. Then its own cells are drawn.
    """
    written = {}
    for file, (column, title, is_log, cells) in CHARTS.items():
        recorded = {row["cell"]: row for row in rows if row[column]}
        drawn = list(cells.items())
        if len(recorded.keys() & set(cells.values())) < 2:
            # Those of one reward, because cells with other rewards share their distillation.
            rl = min((row["rl"] for row in recorded.values()), key=list(RL_NAMES).index, default="")
            own = [(row["value"] or row["kd"], cell) for cell, row in recorded.items() if row["rl"] == rl]
            drawn = own[:SERIES_COLOURS]
        lines = [
            line
            for colour, (label, cell) in enumerate(drawn)
            if (line := _line(colour, label, [row[column] for row in rows if row["cell"] == cell and row[column]]))
        ]
        if not lines:
            continue
        steps = sorted({x for line in lines for x, _ in line.points})
        ticks = [(step, f"step {step:.0f}") for step in (steps[0], steps[-1])]
        chart = line_chart(title, lines, x_ticks=ticks, y_text="{:.3g}".format, width=640, height=300, is_log=is_log)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(standalone(chart) + "\n", encoding="utf-8")
        written[file] = title
    return written


def standalone(chart: str) -> str:
    """A chart of an HTML page as a file of its own: with its name space and the page's styles."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    return chart.replace("<svg ", head, 1).replace("<title>", f"<style>{STYLE}</style><title>", 1)


def _line(colour: int, label: str, curves: list[str]) -> Line | None:
    """The mean of the seeds' curves at the steps that all of them have."""
    seeds = [{float(step): value for step, value in read_pairs(curve).items()} for curve in curves]
    steps = sorted(set.intersection(*map(set, seeds))) if seeds else []
    if not steps:
        return None
    values = {step: [seed[step] for seed in seeds] for step in steps}
    points = [(step, fmean(found)) for step, found in values.items()]
    band = [(step, min(found), max(found)) for step, found in values.items()] if len(seeds) > 1 else []
    return Line(colour, label, points, band)
