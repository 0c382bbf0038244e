"""Draws the report's tables and texts: scores, differences, mistakes, calls made, worst failures, lineage."""

import json
import re

from star import html_kit
from star.evaluation.labels import metric_of
from star.evaluation.number_format import format_range, format_score
from star.evaluation.report_values import Evaluation, as_number, comparison_rows, final_model, models_of
from star.html_kit import escape_html

_MAX_FAILURES = 30  # shown, worst first


def comparison_section(evaluation: Evaluation) -> str:
    """All scores of all models, then the paired differences."""
    models = models_of(evaluation)
    head = "".join(
        f'<th scope="col">{html_kit.swatch(i)}{escape_html(model["name"])}</th>' for i, model in enumerate(models)
    )
    body = ""
    for label, cells in comparison_rows(models):
        columns = (f"<td>{value}{f'<small>{interval}</small>' if interval else ''}</td>" for value, interval in cells)
        body += f'<tr><th scope="row">{escape_html(label)}</th>{"".join(columns)}</tr>'
    caption = (
        "Mean of each score with its 95% interval (Wilson's for bounded scores, the studentized bootstrap for entropy)."
    )
    scores = html_kit.table(caption, f"<td></td>{head}", body, label="Scores by model") if body else ""
    return scores + _differences_table(evaluation.get("comparisons") or [])


def _differences_table(comparisons: list[dict]) -> str:
    """The paired comparisons: difference, interval, p value, and whether the first model is better."""
    body = "".join(_difference_row(item) for item in comparisons)
    caption = (
        "Paired differences on the same rows with their 95% intervals; p of a sign-flip permutation test, "
        "not corrected for the number of comparisons."
    )
    columns = {"Comparison": "left", "Metric": "left", "Difference": "", "p": "", "Reading": "left"}
    head = "".join(f'<th scope="col" class="{side}">{name}</th>' for name, side in columns.items())
    return html_kit.table(caption, head, body, label="Paired differences") if body else ""


def _difference_row(item: dict) -> str:
    name, metric = item["metric"], metric_of(item["metric"])
    difference, low, high, p_value = (as_number(item.get(key)) for key in ("difference", "low", "high", "p_value"))
    if difference is None:
        return ""
    interval, sign = "", 0
    if low is not None and high is not None:
        # Only an interval on one side of 0 says which model has more.
        sign = 1 if low > 0 else -1 if high < 0 else 0
        interval = f"<small>{format_range(name, low, high, signed=True)}</small>"
    reading, tone = {1: ("better", "good"), -1: ("worse", "bad"), 0: ("", "muted")}[sign * metric.better]
    reading = reading or ("unclear" if not sign else "higher" if sign > 0 else "lower")
    p_shown = "" if p_value is None else "&lt; 0.001" if p_value < 0.001 else f"{p_value:.3f}"
    return (
        f'<tr><th scope="row">{escape_html(item["a"])} − {escape_html(item["b"])}</th><td class="left">{escape_html(metric.label)}</td>'
        f"<td>{format_score(name, difference, signed=True)}{interval}</td><td>{p_shown}</td>"
        f'<td class="left {tone}">{reading}</td></tr>'
    )


def mistakes_section(evaluation: Evaluation) -> str:
    """Counts of the mistakes in the final model's held-out answers, by kind of row."""
    model = final_model(models_of(evaluation))
    found = (model or {}).get("mistakes") or {}
    kinds = sorted({kind for counts in found.values() for kind in counts})
    body = ""
    for mistake, counts in found.items():
        cells = "".join(f"<td>{counts.get(kind, 0) or ''}</td>" for kind in kinds)
        body += f'<tr><th scope="row">{escape_html(mistake)}</th><td>{sum(counts.values())}</td>{cells}</tr>'
    head = '<th scope="col" class="left">Mistake</th><th scope="col">Rows</th>'
    head += "".join(f'<th scope="col">{escape_html(kind)}</th>' for kind in kinds)
    caption = f"The first thing wrong with each answer of {(model or {}).get('name')}, by kind of row."
    return html_kit.table(caption, head, body, label="Mistakes") if body else ""


def calls_section(evaluation: Evaluation) -> str:
    """One two by two table per model: was a call due, did it call.

    The counts' keys are `expected_predicted`, as in `call_none`.
    """
    tables = ""
    for series, model in enumerate(models_of(evaluation)):
        counts = model.get("call_confusion") or {}
        total = sum(counts.values())
        if not total:
            continue
        right = (counts.get("call_call", 0) + counts.get("none_none", 0)) / total
        rows = _calls_row(counts, "call", "Call due") + _calls_row(counts, "none", "No call due")
        tables += (
            f'<table class="confusion"><caption>{html_kit.swatch(series)}<b>{escape_html(model["name"])}</b> decides right in '
            f'{right:.1%} of {total:,} rows</caption><thead><tr><td></td><th scope="col">Called</th>'
            f'<th scope="col">Did not</th></tr></thead><tbody>{rows}</tbody></table>'
        )
    return f'<div class="grid">{tables}</div>' if tables else ""


def _calls_row(counts: dict[str, int], expected: str, label: str) -> str:
    found = {predicted: counts.get(f"{expected}_{predicted}", 0) for predicted in ("call", "none")}
    total, cells = sum(found.values()), ""
    for predicted, count in found.items():
        share, tone = (100 * count / total if total else 0), ("right" if predicted == expected else "wrong")
        cells += f'<td class="{tone}" style="--share:{share:.0f}%">{count:,}<small>{share:.1f}%</small></td>'
    return f'<tr><th scope="row">{label}</th>{cells}</tr>'


def failures_section(evaluation: Evaluation) -> str:
    """The rows with the lowest reward: expected and predicted side by side, the words that differ marked."""
    # Sorting is stable: rows of equal reward keep the order of the evaluation.
    failures = sorted(evaluation.get("failures") or [], key=lambda item: as_number(item.get("reward")) or 0)
    articles = "".join(_failure_article(item) for item in failures[:_MAX_FAILURES])
    count = max(len(failures), int(as_number(evaluation.get("failure_count")) or 0))
    shown = f"The {_MAX_FAILURES} worst of {count:,}. All are in failures.parquet. " if count > _MAX_FAILURES else ""
    marks = 'Words <mark class="missing">expected but missing</mark> and <mark class="extra">not expected</mark>.'
    return f'<p class="note">{shown}{marks}</p>{articles}' if articles else ""


def _failure_article(item: dict) -> str:
    reward = as_number(item.get("reward"))
    facts = [escape_html(item[key]) for key in ("model", "kind", "id", "mistake") if item.get(key)]
    facts += [] if reward is None else [f"reward {format_score('mean_reward', reward)} (official reading)"]
    query = (
        f"<blockquote>{escape_html(html_kit.truncate(str(item['query'])))}</blockquote>" if item.get("query") else ""
    )
    expected, predicted = html_kit.word_diff(_readable(item.get("expected")), _readable(item.get("predicted")))
    return (
        f'<article class="failure"><p class="note">{" · ".join(facts)}</p>{query}<div class="pair">'
        f"<div><h3>Expected</h3>{expected}</div><div><h3>Predicted</h3>{predicted}</div></div></article>"
    )


def lineage_section(evaluation: Evaluation) -> str:
    """The digests of the models and data, and of the stages that made the final model."""
    parts = {key: {"version": value} for key, value in (evaluation.get("lineage") or {}).items()}
    models = _digests_table("What these models and numbers were made from.", "Part", parts, ("version",))
    stages = {stage["stage"]: stage for stage in evaluation.get("stages") or []}
    names = ("digest", "config_digest", "code_digest", "code_version")
    return models + _digests_table(
        "The stages that made the final model, which the command star lineage checks.", "Stage", stages, names
    )


def _digests_table(caption: str, heading: str, rows: dict[str, dict], names: tuple[str, ...]) -> str:
    body = ""
    for key, row in rows.items():
        cells = "".join(
            f'<td class="left"><code>{escape_html(_short_digest(row.get(name, "")))}</code></td>' for name in names
        )
        body += f'<tr><th scope="row">{escape_html(key)}</th>{cells}</tr>'
    headings = (heading, *(name.replace("_digest", "").replace("_", " ").capitalize() for name in names))
    head = "".join(f'<th scope="col" class="left">{title}</th>' for title in headings)
    return html_kit.table(caption, head, body, label=f"Lineage by {heading.lower()}") if body else ""


def _short_digest(value: object) -> str:
    """The first digits of a sha256; any other value unchanged."""
    return str(value)[:12] if re.fullmatch(r"[0-9a-f]{64}", str(value)) else str(value)


def _readable(value: object) -> str:
    """A model's text without its blank lines; parsed calls as indented JSON."""
    raw = "" if value is None else value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return html_kit.truncate(re.sub(r"\n\s*\n", "\n", raw.strip()))
