"""Writes the report of an evaluation: one HTML page to read, and one Markdown table to paste.

The page is a single file. Its style and its charts (star/html_kit.py) are inside, it has no script and asks the
network for nothing, and a content security policy forbids both. What models wrote is hostile until it is escaped:
every text goes through `html_kit.escape_html`. A section that the evaluation has nothing for is left out with its
heading.

The sections are in report_scores.py, report_tables.py and report_benchmarks.py. report_values.py reads the
evaluation's values for them.
"""

from collections.abc import Callable
from pathlib import Path

from star import html_kit
from star.evaluation.number_format import format_score
from star.evaluation.report_benchmarks import benchmarks_section
from star.evaluation.report_scores import curves_section, headline_section, kinds_section, pass_at_k_section
from star.evaluation.report_tables import (
    calls_section,
    comparison_section,
    failures_section,
    lineage_section,
    mistakes_section,
)
from star.evaluation.report_values import (
    Evaluation,
    Model,
    as_number,
    comparison_rows,
    final_model,
    models_of,
    score_of,
    title_of,
    unscored_text,
)
from star.evaluation.suites import SUITES
from star.html_kit import escape_html
from star.units import format_count

# Anchor, heading, and the function that returns the section's HTML ("" for nothing to show), in the order of the page.
_SECTIONS: tuple[tuple[str, str, Callable[[Evaluation], str]], ...] = (
    ("headline", "Headline", headline_section),
    ("comparison", "Comparison", comparison_section),
    ("kinds", "By kind", kinds_section),
    ("benchmarks", "Benchmarks", benchmarks_section),
    ("mistakes", "Mistakes", mistakes_section),
    ("pass", "pass@k", pass_at_k_section),
    ("curves", "Learning curves", curves_section),
    ("calls", "Call or no call", calls_section),
    ("failures", "Worst failures", failures_section),
    ("lineage", "Lineage", lineage_section),
)


def write_report(path: Path, evaluation: Evaluation) -> None:
    """Writes `evaluation` to `path` as one self-contained HTML file, valid UTF-8 whatever the models wrote.

    Args:
        path: the file to write; its folder is created if needed.
        evaluation: evaluation.json with the timing in its models. All keys are optional: title, created, suite,
            models, comparisons, curves, failures (the worst), failure_count, lineage, stages. A score is
            {"mean", "low", "high"}; what is not a finite number counts as missing.
    """
    parts = [(anchor, heading, render(evaluation)) for anchor, heading, render in _SECTIONS]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in parts)
    sections = "\n".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{heading}</h2>\n{body}</section>'
        for anchor, heading, body in parts
    )
    navigation = f'<nav aria-label="Sections">{links}</nav>' if links else ""
    # The page shows what models wrote. Where an escape were missed, the policy still runs no script.
    document = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape_html(title_of(evaluation))}</title>\n<style>{html_kit.STYLE}</style>\n</head>\n<body>\n"
        f"<header>{_masthead(evaluation)}{navigation}</header>\n<main>\n{sections}\n</main>\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document, encoding="utf-8", newline="\n")


def markdown_table(evaluation: Evaluation) -> str:
    """The comparison as a GitHub table, one column per model, intervals in brackets; "" without models.

    Rows that could not be scored are named below it.
    """
    models = models_of(evaluation)
    if not models:
        return ""
    rows = [
        "| | " + " | ".join(html_kit.escape_markdown(model["name"]) for model in models) + " |",
        "|---|" + "---:|" * len(models),
    ]
    for label, cells in comparison_rows(models):
        shown = [f"{value} [{interval}]" if interval else value for value, interval in cells]
        rows.append(f"| {html_kit.escape_markdown(label)} | {' | '.join(shown)} |")
    if unscored := unscored_text(evaluation):
        rows += ["", html_kit.escape_markdown(unscored)]
    return "\n".join(rows) + "\n"


def _masthead(evaluation: Evaluation) -> str:
    """The date and the number of rows, the title, the result in one sentence, and the rows that were left out."""
    facts = [str(evaluation["created"])] if evaluation.get("created") else []
    for name, found in (evaluation.get("suite") or {}).items():
        if found.get("rows"):
            label = SUITES[name].label if name in SUITES else name
            facts.append(f"{found['rows']:,} {label} rows")
    eyebrow = f'<p class="eyebrow">{escape_html(" · ".join(facts))}</p>' if facts else ""
    unscored = unscored_text(evaluation)
    warning = f'<p class="note">{escape_html(unscored)}</p>' if unscored else ""
    return f"{eyebrow}<h1>{escape_html(title_of(evaluation))}</h1>{_summary(models_of(evaluation))}{warning}"


def _summary(models: list[Model]) -> str:
    """The final model against the teacher in quality, size and speed, and against its base; "" without a teacher."""
    final, teacher = final_model(models), next((model for model in models if model["name"] == "teacher"), None)
    if final is None or teacher is None or final is teacher:
        return ""
    final_score, teacher_score = score_of(final, "exact_match"), score_of(teacher, "exact_match")
    if final_score is None or teacher_score is None:
        return ""
    final_share, teacher_share = (format_score("exact_match", score.mean) for score in (final_score, teacher_score))
    sentence = f"<strong>{escape_html(final['name'])}</strong> answers {final_share} of the rows exactly"
    sentence += f" right against the teacher's {teacher_share}"
    size, teacher_size = as_number(final.get("parameters")), as_number(teacher.get("parameters"))
    if size and teacher_size and size < teacher_size:
        sentence += f", with {format_count(size)} parameters instead of {format_count(teacher_size)}"
    speed, teacher_speed = as_number(final.get("tokens_per_second")), as_number(teacher.get("tokens_per_second"))
    if speed and teacher_speed and speed > 1.05 * teacher_speed:  # less is within what two runs differ by
        sentence += f" and {speed / teacher_speed:.1f} times the tokens per second"
    return f'<p class="lede">{sentence}.{_base_sentence(final, models)}</p>'


def _base_sentence(final: Model, models: list[Model]) -> str:
    """What the pretrained base of the final model reaches; "" where it is not evaluated."""
    base = next((model for model in models if model["name"] == final.get("base")), None)
    score = base and score_of(base, "exact_match")
    if not base or not score:
        return ""
    sentence = f" Its base, before any training, answers {format_score('exact_match', score.mean)}"
    errors = score_of(base, "format_errors")
    # A base that was never taught the format scores 0, so beating it says little.
    if errors and errors.mean > 0.5:
        sentence += f"; {format_score('format_errors', errors.mean)} of its answers break the format"
    return escape_html(f"{sentence}.")
