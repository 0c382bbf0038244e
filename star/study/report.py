"""Makes docs/study.md from the CSV of a study: tables with the paper's numbers beside, claims, sweeps, curves, compute.

    star study report --config configs/study-tiny.yaml --results docs/study/tiny.csv --out docs/study.md

The page holds nothing that is not in the CSV or the configuration, so it can be made again at any time. A test compares.
"""

import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from star.config.experiment import Config
from star.config.models import Architecture
from star.config.study import Study
from star.data.tool_files import load_tools
from star.study.curves import write_curves
from star.study.paper import CLAIMS, PAPER, QUESTIONS, Claim
from star.study.results import Row, read_pairs
from star.study.statistics import Estimate, difference, estimate
from star.units import format_count, format_seconds

KD_NAMES = {
    "none": "none (the base)", "ce": "CE, hard labels", "fkl": "forward KL", "rkl": "reverse KL", "akl": "AKL",
    "rskd": "RSKD", "ckd": "CKD", "cold-start": "cold start: CE on the rows", "on-policy-fkl": "on-policy, forward KL",
    "on-policy-rkl": "on-policy, reverse KL",
}  # fmt: skip
HEAD_OF_CLAIMS = ["claim", "difference", "points", "seeds", "here"]
RL_NAMES = {"none": "no RL", "binary": "binary", "toolrl": "ToolRL's", "similarity": "similarity (Sim-RL)"}
HEAD = """# The study

For everybody who asks whether CKD and Sim-RL do what the paper says. This page compares ways to train one student on one task: kinds of
distillation, rewards, and both together, each with several seeds. `star study report` writes it from the recorded values.
"""
HOW = """
## Make it again

```
star study run --config {config} --results {results}       # trains and evaluates every cell
star study report --config {config} --results {results} --out docs/study.md
```

The first command says beforehand how long it takes, goes on where a killed one stopped, and trains only what is not done yet. One cell
alone, from nothing, to compare its line with the recorded one:

```
STAR_HOME=/tmp/again star study run --config {config} --cell ckd+similarity --seed {seed} --results /tmp/again.csv
```

On one machine and with one set of installed packages the line is the same but for its seconds: the column `student` has the digest of the
trained model. Every process has one thread, so `--workers` changes no number. Other CPUs round differently, and a few wrong roundings in
training make another student; so expect other values there, within the intervals.
"""


def write_report(
    config: Config, rows: list[Row], *, out: Path, config_name: str, results_name: str, notes: str = ""
) -> None:
    """Writes the page, and its charts into the folder `study` beside it.

    Args:
        rows: the lines of the CSV; with none, the page says what is compared.
        notes: what people write about the results, as Markdown.
        config_name: the configuration as the page's commands name it; `results_name` likewise.
    """
    study = config.study
    assert study is not None  # noqa: S101 - the caller has listed its cells
    done = [row for row in rows if not row["failed"]]
    parts = [
        HEAD,
        HOW.format(config=config_name, results=results_name, seed=study.seeds[0]),
        _task(config, done, least=study.min_teacher_exact_match),
    ]
    if done:
        scores = Scores(done)
        charts = write_curves(done, folder=out.parent / "study")
        parts += [
            _claims(scores),
            _notes(notes),
            _ablation(study, scores),
            _exploration(study, scores),
            _sweeps(study, scores),
        ]
        parts += [_curves(charts), _compute(rows)]
    else:
        parts.append("\nNo cell has been recorded yet.\n")
    out.write_text("".join(parts), encoding="utf-8")


class Scores:
    """The recorded values by cell, column and seed."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def by_seed(self, cell: str, column: str) -> dict[int, float]:
        """Seed -> value of a cell; empty if it is not recorded."""
        return {int(row["seed"]): float(row[column]) for row in self.rows if row["cell"] == cell and row[column]}

    def percent(self, cell: str, column: str = "exact_match") -> str:
        """The mean over seeds of a share, in percent, with its interval."""
        values = self.by_seed(cell, column)
        return _shown(estimate(list(values.values())), _percent) if values else "-"

    def number(self, cell: str, column: str) -> str:
        """The mean over seeds of any number, with its interval."""
        values = self.by_seed(cell, column)
        return _shown(estimate(list(values.values())), "{:.3f}".format) if values else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _shown(found: Estimate, text: Callable[[float], str]) -> str:
    return text(found.mean) + (f" ± {text(found.half)}" if found.half is not None else "")


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)]) + "\n"


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=140) + "\n\n"


def _task(config: Config, done: list[Row], *, least: float) -> str:
    data, student = config.data, config.student.base
    tools = len(load_tools(data.tools.read_verified()))
    kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in data.kinds.items() if share)
    held = "whole tools, which no model has seen" if data.split == "tool" else "rows of all tools"
    facts = [
        ["tools", f"{tools:,}"],
        ["rows that are generated", f"{data.generated_rows:,}: {kinds}"],
        ["held out", f"{data.heldout_rows} rows: {held}"],
        ["tools in a prompt", f"up to {data.tools_per_prompt}"],
    ]
    if isinstance(student, Architecture):
        facts.append(["student", f"{student.num_hidden_layers} layers, {student.hidden_size} wide, from scratch"])
    if done:
        facts.append(["parameters of the student", format_count(float(done[0]["parameters"]))])
        facts.append(["teacher's exact match", f"{_percent(float(done[0]['teacher_exact_match']))}%"])
    return (
        "\n## The task\n\n"
        + _paragraph(
            f"""Its difficulty was set once, before any student was compared, and so that a teacher can reach {least:.0%} exact match:
            below that, the command trains no student. The student is short of capacity on purpose, because a student that can do
            everything tells no methods apart. Requests of the kind irrelevance ask for something that no tool of the prompt does. Those of
            the kind missing-parameter leave a value open, so that the right answer is to ask for it."""
        )
        + _table(["", ""], facts)
    )


def _claims(scores: Scores) -> str:
    asked = _compared(QUESTIONS, scores)
    return (
        "\n## What holds\n\n"
        + _paragraph(
            """Each claim of the paper as a difference of two cells, paired by seed, with its 95% interval (Student's t). *Holds* and *the
            opposite* mean that the whole interval lies on one side of zero. No correction is made for the number of claims: of twenty
            true equalities, one is expected to look like a difference by chance."""
        )
        + _table(HEAD_OF_CLAIMS, _compared(CLAIMS, scores))
        + (f"\nWhat the paper does not claim, and people ask:\n\n{_table(HEAD_OF_CLAIMS, asked)}" if asked else "")
    )


def _compared(claims: Sequence[Claim], scores: Scores) -> list[list[str]]:
    """A line of the table for each claim whose cells are recorded."""
    body = []
    for claim in claims:
        left, right = (scores.by_seed(cell, claim.column) for cell in (claim.better, claim.worse))
        found = difference(left, right)
        if found is not None:
            body.append([claim.text, f"`{claim.better}` − `{claim.worse}`", *_verdict(claim, found)])
    return body


def _notes(notes: str) -> str:
    return f"\n## What was tried\n\n{notes.strip()}\n" if notes.strip() else ""


def _verdict(claim: Claim, found: Estimate) -> list[str]:
    text: Callable[[float], str] = (
        "{:+.3f}".format if claim.column == "before_rl_entropy" else lambda v: f"{100 * v:+.1f}"
    )
    half = "" if found.half is None else f" ± {text(found.half).lstrip('+')}"
    said = {1: "holds", 0: "not decided", -1: "the opposite"}[found.sign]
    return [text(found.mean) + half, str(found.seeds), said]


def _ablation(study: Study, scores: Scores) -> str:
    ours = [[KD_NAMES[kd], *(scores.percent(f"{kd}+{rl}") for rl in study.rl)] for kd in study.kd]
    papers = [
        [KD_NAMES[kd]] + [_paper_cell(f"{kd}+{rl}", number) for number in (0, 1) for rl in study.rl] for kd in study.kd
    ]
    names = [RL_NAMES[rl] for rl in study.rl]
    return (
        "\n## Distillation and reward\n\n"
        + _paragraph(
            """Exact match on the held-out rows in percent: mean over the seeds ± half of the 95% interval. Rows are kinds of distillation,
            columns rewards of the reinforcement learning after it."""
        )
        + _table(["distillation", *names], ours)
        + _order(study, scores)
        + "\n"
        + _paragraph(
            """The paper's scores of the same ways to train (Qwen3-0.6B; BFCLv3 overall, then ACEBench normal). They are of another task
            and another student: compare the order, not the values."""
        )
        + _table(["distillation", *(f"{suite}, {name}" for suite in ("BFCL", "ACEBench") for name in names)], papers)
    )


def _order(study: Study, scores: Scores) -> str:
    """Both orders of the distillations after Sim-RL, best first."""
    cells = {kd: f"{kd}+similarity" for kd in study.kd if f"{kd}+similarity" in PAPER}
    here = {kd: fmean(values) for kd, cell in cells.items() if (values := scores.by_seed(cell, "exact_match").values())}
    if len(here) < 2:
        return ""
    ours = sorted(here, key=lambda kd: -here[kd])
    papers = sorted(here, key=lambda kd: -(PAPER[cells[kd]].bfcl or 0))
    same = "The two are the same." if ours == papers else "They differ."
    listed = [", ".join(KD_NAMES[kd] for kd in order) for order in (ours, papers)]
    return (
        "\n"
        + _paragraph(
            f"""By the means after Sim-RL, from the best: {listed[0]}. In the paper (BFCLv3): {listed[1]}. {same} Which differences between
        neighbours are more than chance is in the table of claims."""
        ).rstrip("\n")
        + "\n"
    )


def _paper_cell(cell: str, number: int) -> str:
    score = PAPER[cell][number] if cell in PAPER else None
    return "-" if score is None else f"{score:g}"


def _exploration(study: Study, scores: Scores) -> str:
    body = []
    further = [(f"{name}/", kd) for name, varied in study.sweeps.items() if not varied.values for kd in varied.kd]
    for place, kd in [*(("", kd) for kd in study.kd), *further]:
        before, after = f"{place}{kd}+none", f"{place}{kd}+similarity"
        gain = difference(scores.by_seed(after, "exact_match"), scores.by_seed(before, "exact_match"))
        body.append(
            [
                KD_NAMES[kd],
                *(scores.percent(before, column) for column in ("exact_match", "pass_at_1", "pass_at_4", "pass_at_8")),
                scores.number(before, "entropy"),
                _shown(gain, _percent) if gain else "-",
            ]
        )
    return (
        "\n## Exploration before Sim-RL\n\n"
        + _paragraph(
            """The paper explains CKD's gain by what it leaves to explore: a student that still finds right answers among several samples
            (pass@8), and is not sure too early (entropy, nats per token), has more to learn from. The last column is what Sim-RL then added
            to exact match."""
        )
        + _table(["distillation", "exact match", "pass@1", "pass@4", "pass@8", "entropy", "gained by Sim-RL"], body)
    )


def _sweeps(study: Study, scores: Scores) -> str:
    text = ""
    for sweep, varied in study.sweeps.items():
        if varied.values:
            arms = [(kd, rl) for kd in varied.kd for rl in varied.rl]
            head = [sweep, *(f"{KD_NAMES[kd]}, {RL_NAMES[rl]}" for kd, rl in arms)]
            body = [
                [value, *(scores.percent(f"{sweep}={value}/{kd}+{rl}") for kd, rl in arms)] for value in varied.values
            ]
        else:
            head = ["distillation", *(RL_NAMES[rl] for rl in varied.rl)]
            body = [[KD_NAMES[kd], *(scores.percent(f"{sweep}/{kd}+{rl}") for rl in varied.rl)] for kd in varied.kd]
        text += f"\n### {sweep}\n\n" + _table(head, body)
    return f"\n## Further cells\n\nExact match in percent, as above.\n{text}" if text else ""


def _curves(charts: dict[str, str]) -> str:
    text = "".join(f"\n![{title}](study/{file})\n" for file, title in charts.items())
    return (
        f"\n## Learning curves\n\nMeans over the seeds; the shade is from the lowest to the highest seed.\n{text}"
        if text
        else ""
    )


def _compute(rows: list[Row]) -> str:
    done = [row for row in rows if not row["failed"]]
    # The union, because cells share work.
    seconds: dict[str, float] = {}
    for row in done:
        seconds |= read_pairs(row["seconds"])
    by_label: dict[str, float] = defaultdict(float)
    for work, taken in seconds.items():
        by_label[work.rpartition("-")[0]] += taken
    body = [
        [label, format_seconds(round(taken))] for label, taken in [*by_label.items(), ("total", sum(seconds.values()))]
    ]
    versions = ", ".join(sorted({row["code_version"] for row in done}))
    failed = "".join(f"- `{row['cell']}`, seed {row['seed']}: {row['failed']}\n" for row in rows if row["failed"])
    return (
        "\n## Compute\n\n"
        + _paragraph(
            f"""{len(done)} cells of {len({row["cell"] for row in done})} ways to train, in {len(seconds)} pieces of work; version
            {versions}. The times are of one process with one thread."""
        )
        + _table(["work", "time"], body)
        + (f"\nCells without a result:\n\n{failed}" if failed else "")
    )
