"""Turn one evaluation into a page to read and a table to paste.

`write_report` writes a single HTML file: its style and its charts (html_kit.py) are inside, it has no script and asks the
network for nothing, and a content security policy forbids both. What models wrote is hostile until escaped: every text
goes through `html_kit.text`. A part that the evaluation does not hold is left out, heading and all.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

from star import html_kit
from star.evaluation.labels import (
    SUITE_NAMES,
    Evaluation,
    Model,
    as_number,
    comparison_rows,
    draws_of,
    final_model,
    interval_text,
    metric_of,
    models_of,
    pass_names,
    score_of,
    show,
    show_range,
    title_of,
)
from star.evaluation.report_benchmarks import benchmarks
from star.html_kit import text
from star.number_format import format_axis_tick, format_count, format_number

_MAX_FAILURES = 30  # shown, worst first
# Learning curves that say how a training went; a trainer's other figures are folded away.
_TELLING = ("loss", "fkl", "tail", "overlap", "reward", "content", "format_rate", "kept_fraction", "entropy", "kl")


def write_report(path: Path, evaluation: Evaluation) -> None:
    """Write `evaluation` to `path` as one self-contained HTML file, valid UTF-8 whatever the models wrote.

    All keys are optional: title, created, suite, models, comparisons, curves, failures, lineage. A score is
    {"mean", "low", "high"}; one that is not a finite number counts as missing. Folders are made as needed.
    """
    parts = [(anchor, heading, render(evaluation)) for anchor, heading, render in _SECTIONS]
    parts = [part for part in parts if part[2]]
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in parts)
    sections = "\n".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-h"><h2 id="{anchor}-h">{heading}</h2>\n{body}</section>'
        for anchor, heading, body in parts
    )
    navigation = f'<nav aria-label="Sections">{links}</nav>' if links else ""
    document = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{text(title_of(evaluation))}</title>\n<style>{html_kit.STYLE}</style>\n</head>\n<body>\n"
        f"<header>{_masthead(evaluation)}{navigation}</header>\n<main>\n{sections}\n</main>\n</body>\n</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document, encoding="utf-8", newline="\n")


def markdown_table(evaluation: Evaluation) -> str:
    """The comparison of the models as a GitHub table, one column a model, intervals in brackets; "" without models."""
    models = models_of(evaluation)
    if not models:
        return ""
    rows = [
        "| | " + " | ".join(html_kit.markdown(model["name"]) for model in models) + " |",
        "|---|" + "---:|" * len(models),
    ]
    for label, cells in comparison_rows(models):
        shown = [f"{value} [{interval}]" if interval else value for value, interval in cells]
        rows.append(f"| {html_kit.markdown(label)} | {' | '.join(shown)} |")
    return "\n".join(rows) + "\n"


# ---- the page's parts: each takes the evaluation and gives HTML, "" when there is nothing to show


def _masthead(evaluation: Evaluation) -> str:
    """When and on how many rows, the title, the outcome in one sentence."""
    facts = [str(evaluation["created"])] if evaluation.get("created") else []
    for name, suite in (evaluation.get("suite") or {}).items():
        if suite.get("rows"):
            facts.append(f"{suite['rows']:,} {SUITE_NAMES.get(name, name)} rows")
    eyebrow = f'<p class="eyebrow">{text(" · ".join(facts))}</p>' if facts else ""
    return f"{eyebrow}<h1>{text(title_of(evaluation))}</h1>{_summary(models_of(evaluation))}"


def _summary(models: list[Model]) -> str:
    """One sentence: the final model against the teacher in quality, size and speed."""
    final, teacher = final_model(models), next((model for model in models if model["name"] == "teacher"), None)
    if final is None or teacher is None or final is teacher:
        return ""
    mine, its = score_of(final, "exact_match"), score_of(teacher, "exact_match")
    if mine is None or its is None:
        return ""
    said = f"<strong>{text(final['name'])}</strong> answers {show('exact_match', mine['mean'])} of the rows exactly"
    said += f" right against the teacher's {show('exact_match', its['mean'])}"
    size, teacher_size = as_number(final.get("parameters")), as_number(teacher.get("parameters"))
    if size and teacher_size and size < teacher_size:
        said += f", with {format_count(size)} parameters instead of {format_count(teacher_size)}"
    speed, teacher_speed = as_number(final.get("tokens_per_second")), as_number(teacher.get("tokens_per_second"))
    if speed and teacher_speed and speed > 1.05 * teacher_speed:
        said += f" and {speed / teacher_speed:.1f} times the tokens per second"
    return f'<p class="lede">{said}.</p>'


def _headline(evaluation: Evaluation) -> str:
    """A card a metric: the final model's number in large, all models with their intervals beneath."""
    models = models_of(evaluation)
    final = final_model(models)
    if final is None:
        return ""
    names = ["exact_match", *pass_names(models)[-1:], "mean_reward", "format_errors"]
    names += ["bfcl_overall_v3", "acebench_normal"]
    cards = [_card(name, models, score) for name in names if (score := score_of(final, name))]
    note = f"Numbers of {text(final['name'])}; the bars are 95% intervals of the mean."
    return f'<p class="note">{note}</p><div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(name: str, models: list[Model], score: dict) -> str:
    dots = []
    for i, model in enumerate(models):
        if found := score_of(model, name):
            mean = found["mean"]
            low, high = (found["low"], found["high"]) if interval_text(name, found) else (mean, mean)
            dots.append(html_kit.Dot(i, model["name"], mean, low, high, show(name, mean)))
    label = metric_of(name).label
    title = f"{label}: " + ", ".join(f"{dot.label} {dot.shown}" for dot in dots)
    chart = html_kit.interval_chart(title, dots) if len(dots) > 1 else ""
    return (
        f'<article class="card"><h3>{label}</h3><p class="big">{show(name, score["mean"])}</p>'
        f'<p class="note">{interval_text(name, score)}</p>{chart}</article>'
    )


def _comparison(evaluation: Evaluation) -> str:
    """All scores of all models, then the paired differences."""
    models = models_of(evaluation)
    head = "".join(f'<th scope="col">{html_kit.swatch(i)}{text(model["name"])}</th>' for i, model in enumerate(models))
    body = ""
    for label, cells in comparison_rows(models):
        columns = (f"<td>{value}{f'<small>{interval}</small>' if interval else ''}</td>" for value, interval in cells)
        body += f'<tr><th scope="row">{text(label)}</th>{"".join(columns)}</tr>'
    caption = (
        "Mean of each score with its 95% interval (Wilson's for bounded scores, the studentized bootstrap for entropy)."
    )
    scores = html_kit.table(caption, f"<td></td>{head}", body, label="Scores by model") if body else ""
    return scores + _differences(evaluation.get("comparisons") or [])


def _differences(comparisons: list[dict]) -> str:
    """The paired comparisons: difference, interval, p value, and what they allow to say."""
    body = "".join(_difference_row(item) for item in comparisons if as_number(item.get("difference")) is not None)
    caption = (
        "Paired differences on the same rows with their 95% intervals; p of a sign-flip permutation test, "
        "not corrected for the number of comparisons."
    )
    columns = {"Comparison": "left", "Metric": "left", "Difference": "", "p": "", "Reading": "left"}
    head = "".join(f'<th scope="col" class="{side}">{name}</th>' for name, side in columns.items())
    return html_kit.table(caption, head, body, label="Paired differences") if body else ""


def _difference_row(item: dict) -> str:
    name, metric = item["metric"], metric_of(item["metric"])
    low, high, p_value = (as_number(item.get(key)) for key in ("low", "high", "p_value"))
    known = low is not None and high is not None
    sign = 0 if not known else 1 if low > 0 else -1 if high < 0 else 0
    reading, tone = {1: ("better", "good"), -1: ("worse", "bad"), 0: ("", "muted")}[sign * metric.better]
    reading = reading or ("unclear" if not sign else "higher" if sign > 0 else "lower")
    interval = f"<small>{show_range(name, low, high, signed=True)}</small>" if known else ""
    p_shown = "" if p_value is None else "&lt; 0.001" if p_value < 0.001 else f"{p_value:.3f}"
    return (
        f'<tr><th scope="row">{text(item["a"])} − {text(item["b"])}</th><td class="left">{text(metric.label)}</td>'
        f"<td>{show(name, item['difference'], signed=True)}{interval}</td><td>{p_shown}</td>"
        f'<td class="left {tone}">{reading}</td></tr>'
    )


def _kinds(evaluation: Evaluation) -> str:
    """Exact match and mean reward of every kind of row, a bar a model."""
    models, figures = models_of(evaluation), ""
    kinds: dict[str, int | None] = {}
    for model in models:
        kinds |= {kind: found.get("rows") for kind, found in (model.get("by_kind") or {}).items()}
    for name in ("exact_match", "mean_reward"):
        groups = []
        for kind, rows in kinds.items():
            bars = []
            for i, model in enumerate(models):
                found = (model.get("by_kind") or {}).get(kind, {})
                value = as_number(found.get(name))
                # The interval of a kind is that of its exact match.
                ends = (as_number(found.get(end)) for end in ("low", "high") if name == "exact_match")
                if value is not None:
                    bars.append(html_kit.Bar(i, model["name"], value, show(name, value), *ends))
            if bars:
                groups.append((f"{kind} · {rows:,} rows" if rows else kind, bars))
        if groups:
            label = metric_of(name).label
            chart = html_kit.bar_chart(f"{label} by kind of row", groups)
            figures += f"<figure><figcaption><b>{label}</b></figcaption>{chart}</figure>"
    return (
        f'{html_kit.legend([model["name"] for model in models])}<div class="grid wide">{figures}</div>'
        if figures
        else ""
    )


def _mistakes(evaluation: Evaluation) -> str:
    """What was wrong with the final model's held-out answers, by kind."""
    model = final_model(models_of(evaluation))
    found = (model or {}).get("mistakes") or {}
    kinds = sorted({kind for counts in found.values() for kind in counts})
    body = ""
    for mistake, counts in found.items():
        cells = "".join(f"<td>{counts.get(kind, 0) or ''}</td>" for kind in kinds)
        body += f'<tr><th scope="row">{text(mistake)}</th><td>{sum(counts.values())}</td>{cells}</tr>'
    head = '<th scope="col" class="left">Mistake</th><th scope="col">Rows</th>'
    head += "".join(f'<th scope="col">{text(kind)}</th>' for kind in kinds)
    caption = f"The first thing wrong with each answer of {(model or {}).get('name')}, by kind of row."
    return html_kit.table(caption, head, body, label="Mistakes") if body else ""


def _pass_at_k(evaluation: Evaluation) -> str:
    """pass@k against k, k on a doubling axis."""
    models = models_of(evaluation)
    names, lines = pass_names(models), []
    for i, model in enumerate(models):
        scores = [(math.log2(draws_of(name)), score) for name in names if (score := score_of(model, name))]
        band = [(x, score["low"], score["high"]) for x, score in scores if interval_text("exact_match", score)]
        if scores:
            lines.append(html_kit.Line(i, model["name"], [(x, score["mean"]) for x, score in scores], band))
    if len(names) < 2 or not lines:
        return ""
    ticks = [(math.log2(draws_of(name)), f"k = {draws_of(name)}") for name in names]
    ends = ", ".join(f"{line.label} {line.points[0][1]:.1%} to {line.points[-1][1]:.1%}" for line in lines)
    chart = html_kit.line_chart(f"pass@k: {ends}", lines, x_ticks=ticks, y_text=lambda y: f"{100 * y:.4g}%")
    note = "The chance that at least one of k samples is exactly right (unbiased estimate), with its 95% interval. "
    note += "A line that stays flat as k grows belongs to a model whose samples are all alike."
    return f'<figure class="solo">{chart}<figcaption>{note}</figcaption></figure>'


def _curves(evaluation: Evaluation) -> str:
    """Learning curves, one small chart a stage and metric; those that tell most in sight."""
    stages = ""
    for stage, records in (evaluation.get("curves") or {}).items():
        names = dict.fromkeys(name for record in records for name in record if name != "step")
        charts = {name: chart for name in names if (chart := _learning_curve(stage, name, records))}
        shown = [charts.pop(name) for name in _TELLING if name in charts]
        body = f'<div class="grid">{"".join(shown)}</div>' if shown else ""
        if charts:
            others = "figure" if len(charts) == 1 else "figures"
            body += f"<details><summary>{len(charts)} more {others}</summary>"
            body += f'<div class="grid">{"".join(charts.values())}</div></details>'
        stages += f"<h3>{text(stage)}</h3>{body}" if body else ""
    note = '<p class="note">Against the training step; beside the name, the first and the last value.</p>'
    return note + stages if stages else ""


def _learning_curve(stage: str, name: str, records: list[dict]) -> str:
    pairs = [(as_number(record.get("step", i)), as_number(record.get(name))) for i, record in enumerate(records)]
    points = sorted((x, y) for x, y in pairs if x is not None and y is not None)
    if len({step for step, _ in points}) < 2:
        return ""
    first, last, label = points[0], points[-1], name.replace("_", " ")
    ticks = [(x, f"{x:,.0f}") for x in html_kit.ticks(first[0], last[0]) if x == int(x)]
    span = f"{format_number(first[1])} → {format_number(last[1])}"
    title = f"{label} of {stage}: {span} over steps {first[0]:.0f} to {last[0]:.0f}"
    line = html_kit.Line(1, "", html_kit.thin(points), [])
    chart = html_kit.line_chart(title, [line], x_ticks=ticks, y_text=format_axis_tick, width=340, height=150)
    return f"<figure><figcaption><b>{text(label)}</b><span>{span}</span></figcaption>{chart}</figure>"


def _confusion(evaluation: Evaluation) -> str:
    """A two by two table a model: was a call due, did it call. Keys read expected_predicted."""
    tables = ""
    for i, model in enumerate(models_of(evaluation)):
        counts = model.get("call_confusion") or {}
        total = sum(counts.values())
        if not total:
            continue
        right = (counts.get("call_call", 0) + counts.get("none_none", 0)) / total
        rows = _confusion_row(counts, "call", "Call due") + _confusion_row(counts, "none", "No call due")
        tables += (
            f'<table class="confusion"><caption>{html_kit.swatch(i)}<b>{text(model["name"])}</b> decides right in '
            f'{right:.1%} of {total:,} rows</caption><thead><tr><td></td><th scope="col">Called</th>'
            f'<th scope="col">Did not</th></tr></thead><tbody>{rows}</tbody></table>'
        )
    return f'<div class="grid">{tables}</div>' if tables else ""


def _confusion_row(counts: dict[str, int], expected: str, label: str) -> str:
    found = {predicted: counts.get(f"{expected}_{predicted}", 0) for predicted in ("call", "none")}
    total, cells = sum(found.values()), ""
    for predicted, count in found.items():
        share, tone = (100 * count / total if total else 0), ("right" if predicted == expected else "wrong")
        cells += f'<td class="{tone}" style="--share:{share:.0f}%">{count:,}<small>{share:.1f}%</small></td>'
    return f'<tr><th scope="row">{label}</th>{cells}</tr>'


def _failures(evaluation: Evaluation) -> str:
    """The rows with the lowest reward: expected and predicted side by side, the words that differ marked."""
    failures = sorted(evaluation.get("failures") or [], key=lambda item: as_number(item.get("reward")) or 0)
    articles = "".join(_failure(item) for item in failures[:_MAX_FAILURES])
    shown = f"The {_MAX_FAILURES} worst of {len(failures):,}. " if len(failures) > _MAX_FAILURES else ""
    marks = 'Words <mark class="missing">expected but missing</mark> and <mark class="extra">not expected</mark>.'
    return f'<p class="note">{shown}{marks}</p>{articles}' if articles else ""


def _failure(item: dict) -> str:
    reward = as_number(item.get("reward"))
    facts = [text(item[key]) for key in ("model", "kind", "id", "mistake") if item.get(key)]
    facts += [] if reward is None else [f"reward {show('mean_reward', reward)}"]
    query = f"<blockquote>{text(html_kit.cut(str(item['query'])))}</blockquote>" if item.get("query") else ""
    expected, predicted = html_kit.word_diff(_readable(item.get("expected")), _readable(item.get("predicted")))
    return (
        f'<article class="failure"><p class="note">{" · ".join(facts)}</p>{query}<div class="pair">'
        f"<div><h3>Expected</h3>{expected}</div><div><h3>Predicted</h3>{predicted}</div></div></article>"
    )


def _lineage(evaluation: Evaluation) -> str:
    """What the models were made from, and the stages above the final one."""
    parts = {key: {"version": value} for key, value in (evaluation.get("lineage") or {}).items()}
    models = _digests("What these models and numbers were made from.", "Part", parts, ("version",))
    stages = {stage["stage"]: stage for stage in evaluation.get("stages") or []}
    names = ("digest", "config_digest", "code_digest", "code_version")
    return models + _digests(
        "The stages that made the final model, which the command star lineage checks.", "Stage", stages, names
    )


def _digests(caption: str, heading: str, rows: dict[str, dict], names: tuple[str, ...]) -> str:
    body = ""
    for key, row in rows.items():
        cells = "".join(
            f'<td class="left"><code>{text(_short_digest(row.get(name, "")))}</code></td>' for name in names
        )
        body += f'<tr><th scope="row">{text(key)}</th>{cells}</tr>'
    headings = (heading, *(name.replace("_digest", "").replace("_", " ").capitalize() for name in names))
    head = "".join(f'<th scope="col" class="left">{title}</th>' for title in headings)
    return html_kit.table(caption, head, body, label=f"Lineage by {heading.lower()}") if body else ""


def _short_digest(value: object) -> str:
    """The first digits of a sha256, anything else as it is."""
    return str(value)[:12] if re.fullmatch(r"[0-9a-f]{64}", str(value)) else str(value)


_SECTIONS: tuple[tuple[str, str, Callable[[Evaluation], str]], ...] = (
    ("headline", "Headline", _headline),
    ("comparison", "Comparison", _comparison),
    ("kinds", "By kind", _kinds),
    ("benchmarks", "Benchmarks", benchmarks),
    ("mistakes", "Mistakes", _mistakes),
    ("pass", "pass@k", _pass_at_k),
    ("curves", "Learning curves", _curves),
    ("calls", "Call or no call", _confusion),
    ("failures", "Worst failures", _failures),
    ("lineage", "Lineage", _lineage),
)


def _readable(value: object) -> str:
    """A model text without its blank lines, parsed calls as indented JSON."""
    raw = "" if value is None else value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return html_kit.cut(re.sub(r"\n\s*\n", "\n", raw.strip()))
