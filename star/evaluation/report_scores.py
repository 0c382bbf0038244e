"""Draws the report's sections that are charts: headline cards, scores by kind of row, pass@k, learning curves."""

import math

from star import html_kit, svg_charts
from star.evaluation.labels import metric_of
from star.evaluation.number_format import format_score
from star.evaluation.report_values import (
    Evaluation,
    Model,
    ShownScore,
    as_number,
    final_model,
    interval_text,
    k_of,
    models_of,
    pass_at_k_names,
    score_of,
)
from star.html_kit import escape_html
from star.units import format_axis_tick, format_number

# Curves of the reward that Sim-RL trains on, which reads answers as the official code does, and of its parts.
_REWARD_CURVES = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "sampled_reward",
    "content",
    "name_accuracy",
    "argument_similarity",
    "call_count_error",
)
# Learning curves that say how a training went. A trainer's other metrics are folded away.
_MAIN_CURVES = ("loss", "fkl", "tail", "overlap", "reward", "content", "format_rate", "kept_fraction", "entropy", "kl")


def headline_section(evaluation: Evaluation) -> str:
    """One card per score: the final model's number in large, all models with their intervals beneath."""
    models = models_of(evaluation)
    final = final_model(models)
    if final is None:
        return ""
    # Of pass@k only the largest k: a smaller one says little beside exact match.
    names = ["exact_match", *pass_at_k_names(models)[-1:], "mean_reward", "format_errors"]
    names += ["bfcl_overall_v3", "acebench_normal"]
    cards = [_card(name, models, score) for name in names if (score := score_of(final, name))]
    note = f"Numbers of {escape_html(final['name'])}; the bars are 95% intervals of the mean."
    if score_of(final, "mean_reward"):
        note += (
            " Format errors are answers that <code>star call</code> cannot parse. The official reading is that of the reward, "
            "on which Sim-RL trains: it also accepts a call that is never closed."
        )
    return f'<p class="note">{note}</p><div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(name: str, models: list[Model], final_score: ShownScore) -> str:
    dots = []
    for series, model in enumerate(models):
        if score := score_of(model, name):
            low, high = score.interval or (score.mean, score.mean)
            dots.append(svg_charts.Dot(series, model["name"], score.mean, low, high, format_score(name, score.mean)))
    label = metric_of(name).label
    title = f"{label}: " + ", ".join(f"{dot.label} {dot.shown}" for dot in dots)
    chart = svg_charts.interval_chart(title, dots) if len(dots) > 1 else ""
    return (
        f'<article class="card"><h3>{label}</h3><p class="big">{format_score(name, final_score.mean)}</p>'
        f'<p class="note">{interval_text(name, final_score)}</p>{chart}</article>'
    )


def kinds_section(evaluation: Evaluation) -> str:
    """Exact match and mean reward of every kind of row, one bar per model."""
    models = models_of(evaluation)
    figures = "".join(_kinds_chart(name, models) for name in ("exact_match", "mean_reward"))
    if not figures:
        return ""
    return f'{html_kit.legend([model["name"] for model in models])}<div class="grid wide">{figures}</div>'


def _kinds_chart(name: str, models: list[Model]) -> str:
    row_counts: dict[str, int | None] = {}
    for model in models:
        row_counts |= {kind: found.get("rows") for kind, found in (model.get("by_kind") or {}).items()}
    groups = []
    for kind, rows in row_counts.items():
        bars = [bar for series, model in enumerate(models) if (bar := _kind_bar(name, kind, series, model))]
        if bars:
            groups.append((f"{kind} · {rows:,} rows" if rows else kind, bars))
    if not groups:
        return ""
    label = metric_of(name).label
    chart = svg_charts.bar_chart(f"{label} by kind of row", groups)
    return f"<figure><figcaption><b>{label}</b></figcaption>{chart}</figure>"


def _kind_bar(name: str, kind: str, series: int, model: Model) -> svg_charts.Bar | None:
    found = (model.get("by_kind") or {}).get(kind, {})
    value = as_number(found.get(name))
    if value is None:
        return None
    # The interval of a kind is that of its exact match.
    low, high = (as_number(found.get(end)) if name == "exact_match" else None for end in ("low", "high"))
    return svg_charts.Bar(series, model["name"], value, format_score(name, value), low, high)


def pass_at_k_section(evaluation: Evaluation) -> str:
    """pass@k against k, with a logarithmic axis for k."""
    models = models_of(evaluation)
    names, lines = pass_at_k_names(models), []
    for series, model in enumerate(models):
        scores = [(math.log2(k_of(name)), score) for name in names if (score := score_of(model, name))]
        points = [(x, score.mean) for x, score in scores]
        band = [(x, *score.interval) for x, score in scores if score.interval]
        if points:
            lines.append(svg_charts.Line(series, model["name"], points, band))
    if len(names) < 2 or not lines:
        return ""
    ticks = [(math.log2(k_of(name)), f"k = {k_of(name)}") for name in names]
    ends = ", ".join(f"{line.label} {line.points[0][1]:.1%} to {line.points[-1][1]:.1%}" for line in lines)
    chart = svg_charts.line_chart(f"pass@k: {ends}", lines, x_ticks=ticks, y_text=lambda y: f"{100 * y:.4g}%")
    note = "The chance that at least one of k samples is exactly right (unbiased estimate), with its 95% interval. "
    note += "A line that stays flat as k grows belongs to a model whose samples are all alike."
    return f'<figure class="solo">{chart}<figcaption>{note}</figcaption></figure>'


def curves_section(evaluation: Evaluation) -> str:
    """Learning curves, one small chart per stage and metric, with the less important ones folded away."""
    stages = ""
    for stage, records in (evaluation.get("curves") or {}).items():
        names = dict.fromkeys(name for record in records for name in record if name != "step")
        charts = {name: chart for name in names if (chart := _learning_curve(stage, name, records))}
        shown = [charts.pop(name) for name in _MAIN_CURVES if name in charts]
        body = f'<div class="grid">{"".join(shown)}</div>' if shown else ""
        if charts:
            others = "figure" if len(charts) == 1 else "figures"
            body += f"<details><summary>{len(charts)} more {others}</summary>"
            body += f'<div class="grid">{"".join(charts.values())}</div></details>'
        stages += f"<h3>{escape_html(stage)}</h3>{body}" if body else ""
    note = '<p class="note">Against the training step; beside the name, the first and the last value.</p>'
    return note + stages if stages else ""


def _curve_label(name: str) -> str:
    is_reward = name in _REWARD_CURVES or name.startswith("rewards/")
    return name.replace("_", " ") + (" (official reading)" if is_reward else "")


def _learning_curve(stage: str, name: str, records: list[dict]) -> str:
    pairs = [(as_number(record.get("step", i)), as_number(record.get(name))) for i, record in enumerate(records)]
    points = sorted((x, y) for x, y in pairs if x is not None and y is not None)
    # One step is no curve, and would leave the axis without a length.
    if len({step for step, _ in points}) < 2:
        return ""
    first, last, label = points[0], points[-1], _curve_label(name)
    ticks = [(x, f"{x:,.0f}") for x in svg_charts.round_ticks(first[0], last[0]) if x == int(x)]
    span = f"{format_number(first[1])} → {format_number(last[1])}"
    title = f"{label} of {stage}: {span} over steps {first[0]:.0f} to {last[0]:.0f}"
    line = svg_charts.Line(1, "", svg_charts.thin_out(points), [])
    chart = svg_charts.line_chart(title, [line], x_ticks=ticks, y_text=format_axis_tick, width=340, height=150)
    return f"<figure><figcaption><b>{escape_html(label)}</b><span>{span}</span></figcaption>{chart}</figure>"
