"""Makes the page of a study, such as docs/study.md, from its CSV: tables with the paper's numbers beside, claims, sweeps, curves, compute.

    star study report --config configs/study-tiny.yaml --results docs/study/tiny.csv --out docs/study.md

The page holds nothing that is not in the CSV or the configuration, so it can be made again at any time. A test compares.
"""

import shlex
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from star.config.experiment import Config
from star.study.claims import claims_section, coverage_section
from star.study.curves import write_curves
from star.study.facts import task_section, trainings_section
from star.study.grid import GRID, Cell, cells_of
from star.study.results import Recorded, Row, lines_of, read_pairs
from star.study.scores import Scores, label_of, paragraph, table
from star.study.tables import exploration_section, grid_section, sweeps_section
from star.units import format_seconds

HEAD = """This page compares ways to train one student on one task, each with several seeds. `star study report` writes it from the
recorded values."""
HOW = """
## Make it again

```
export STAR_HOME=~/{home}     # a home of the study's own
{run}       # trains and evaluates every cell
{report}
```

`star study run` says beforehand how long it takes, goes on where a killed one stopped, and trains only what is not done yet. One cell
alone, from nothing, to compare its line with the recorded one:

```
STAR_HOME=/tmp/again {again} --results /tmp/again.csv
```

On one machine and with one set of installed packages the line is the same but for its seconds: the column `student` has the digest of the
trained model. Every process has one thread, so `--workers` changes no number. That needs a home of the study's own (`STAR_HOME`): in one
where `star run` has made an equal teacher, with as many threads as there are CPUs, the study takes that one. Other CPUs round differently,
and a few wrong roundings in training make another student; so expect other values there, within the intervals.
"""


class Names(NamedTuple):
    """What the arguments of `star study report` were, as the page's commands have them."""

    config: str
    results: str
    out: str
    seed_data: str | None = None
    notes: str | None = None


def write_report(config: Config, rows: list[Row], *, out: Path, names: Names, notes: str = "") -> Recorded:
    """Writes the page, and its charts into a folder of its name beside it: those of docs/study.md into docs/study.

    Args:
        rows: the lines of the CSV; with none, the page says what is compared.
        notes: what people write about the results, as Markdown.

    Returns:
        Which lines the page was made of.
    """
    study, cells = config.study, cells_of(config)
    assert study is not None  # noqa: S101 - cells_of refuses a configuration without it
    recorded = lines_of(cells, rows)
    done = [row for row in recorded.rows if not row["failed"]]
    parts = [
        _head(config),
        _how(cells, names, home=config.name),
        task_section(config, [row for row in done if row["sweep"] == GRID]),
        trainings_section(config),
    ]
    if done:
        scores = Scores(done, seeds=study.seeds)
        parts += [
            coverage_section(cells, recorded, study=study),
            claims_section(scores, names={cell.name for cell in cells}),
            f"\n## What was tried\n\n{notes.strip()}\n" if notes.strip() else "",
            grid_section(study, scores),
            exploration_section(study, scores),
            sweeps_section(study, scores),
            _curves(write_curves(done, folder=out.parent / out.stem), folder=out.stem),
            _compute(recorded.rows),
        ]
    else:
        parts.append("\nNo cell has been recorded yet.\n")
    out.write_text("".join(parts), encoding="utf-8")
    return recorded


def _head(config: Config) -> str:
    about = (config.study and config.study.about) or ""
    paragraphs = [text for text in about.split("\n\n") if text.strip()]
    return f"# The study {config.name}\n\n" + "".join(map(paragraph, [*paragraphs, HEAD])).removesuffix("\n")


def _how(cells: list[Cell], names: Names, *, home: str) -> str:
    shared = ["--config", names.config, *(["--seed-data", names.seed_data] if names.seed_data else [])]
    run = shlex.join(["star", "study", "run", *shared, "--results", names.results])
    notes = ["--notes", names.notes] if names.notes else []
    report = shlex.join(["star", "study", "report", *shared, "--results", names.results, "--out", names.out, *notes])
    grid = [cell for cell in cells if cell.sweep == GRID]
    one = ["--cell", grid[-1].name, "--seed", str(grid[0].seed)]
    again = shlex.join(["star", "study", "run", *shared, *one])
    return HOW.format(home=home, run=run, report=report, again=again)


def _curves(charts: dict[str, str], *, folder: str) -> str:
    if not charts:
        return ""
    text = "".join(f"\n![{title}]({folder}/{file})\n" for file, title in charts.items())
    return (
        "\n## Learning curves\n\nMeans over the seeds; the shade is from the lowest to the highest seed. The scales of cross-entropy and "
        f"entropy are logarithmic.\n{text}"
    )


def _compute(rows: list[Row]) -> str:
    done = [row for row in rows if not row["failed"]]
    # The union, because cells share work.
    seconds: dict[str, float] = {}
    for row in done:
        seconds |= read_pairs(row["seconds"])
    by_label: dict[str, float] = defaultdict(float)
    for work, taken in seconds.items():
        by_label[label_of(work)] += taken
    body = [
        [label, format_seconds(round(taken))] for label, taken in [*by_label.items(), ("total", sum(seconds.values()))]
    ]
    versions = ", ".join(sorted({row["code_version"] for row in done}))
    failed = "".join(f"- `{row['cell']}`, seed {row['seed']}: {row['failed']}\n" for row in rows if row["failed"])
    return (
        "\n## Compute\n\n"
        + paragraph(
            f"""{len(done)} cells of {len({row["cell"] for row in done})} ways to train, in {len(seconds)} pieces of work; version
            {versions}. A time is the wall time of one process with one thread, with other processes beside it. Of work that was killed
            and went on, it is that of the last start."""
        )
        + table(["work", "time"], body)
        + (f"\nCells without a result:\n\n{failed}" if failed else "")
    )
