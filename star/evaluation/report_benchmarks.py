"""Draws the report's section on benchmarks such as BFCL: categories as chart and table, with notes."""

from dataclasses import dataclass
from typing import Any

from star import html_kit, svg_charts
from star.evaluation.number_format import format_range, format_score
from star.evaluation.report_values import Evaluation, Model, models_of
from star.evaluation.suites import SUITES, Suite
from star.html_kit import escape_html

# The share of right entries is formatted like exact match, in percent.
_SHARE = "exact_match"


@dataclass(frozen=True)
class _Result:
    """One model's result on a benchmark. `series` is the model's place among all models, which gives its colour."""

    series: int
    name: str
    details: dict[str, Any]

    @property
    def categories(self) -> dict[str, dict[str, float]]:
        return self.details.get("categories") or {}


def benchmarks_section(evaluation: Evaluation) -> str:
    """The categories of every suite that has some, one bar per model, and what must be known to read them."""
    models = models_of(evaluation)
    figures = "".join(_benchmark(suite, models) for suite in SUITES.values())
    return f"{html_kit.legend([model['name'] for model in models])}{figures}" if figures else ""


def _benchmark(suite: Suite, models: list[Model]) -> str:
    results = [_Result(i, model["name"], model[suite.name]) for i, model in enumerate(models) if model.get(suite.name)]
    names = list(dict.fromkeys(name for result in results for name in result.categories))
    if not names:
        return ""
    chart = svg_charts.bar_chart(
        f"{suite.label}, share of entries right by category", [_category_bars(name, results) for name in names]
    )
    notes = "".join(f"<p class='note'>{escape_html(note)}</p>" for note in _notes(suite, results))
    figure = f'<div class="grid wide"><figure>{chart}</figure></div>'
    return f"<h3>{suite.label}</h3>{notes}{figure}{_categories_table(suite.label, names, results)}"


def _category_bars(name: str, results: list[_Result]) -> tuple[str, list[svg_charts.Bar]]:
    """The label of a category and one bar per model that has it."""
    scores = [(result, result.categories[name]) for result in results if name in result.categories]
    bars = [
        svg_charts.Bar(
            result.series,
            result.name,
            score["mean"],
            format_score(_SHARE, score["mean"]),
            score["low"],
            score["high"],
        )
        for result, score in scores
    ]
    return f"{name.replace('_', ' ')} · {scores[0][1]['rows']:,} entries", bars


def _categories_table(label: str, names: list[str], results: list[_Result]) -> str:
    """The same shares as a table, with their intervals."""
    body = ""
    for name in names:
        scores = (result.categories.get(name) for result in results)
        cells = "".join(f"<td>{_share_with_interval(score)}</td>" if score else "<td>–</td>" for score in scores)
        body += f'<tr><th scope="row">{escape_html(name.replace("_", " "))}</th>{cells}</tr>'
    heads = "".join(
        f'<th scope="col">{html_kit.swatch(result.series)}{escape_html(result.name)}</th>' for result in results
    )
    return html_kit.table(
        f"{label} by category with 95% intervals.", f"<td></td>{heads}", body, label=f"{label} categories"
    )


def _share_with_interval(score: dict[str, float]) -> str:
    interval = format_range(_SHARE, score["low"], score["high"])
    return f"{format_score(_SHARE, score['mean'])}<small>{interval}</small>"


def _notes(suite: Suite, results: list[_Result]) -> list[str]:
    notes = _bfcl_notes(results[0].details) if suite.name == "bfcl" else []
    for result in results:
        if began_call := result.details.get("began_call"):
            notes.append(_began_call_note(result, began_call))
        if unanswered := result.details.get("unanswered"):
            notes.append(f"{result.name} left {unanswered:,} questions unanswered: longer than its context.")
    return notes


def _began_call_note(result: _Result, began_call: dict[str, int]) -> str:
    counts = (
        f"{count:,} of {result.categories[name]['rows']:,} in {name.replace('_', ' ')}"
        for name, count in began_call.items()
    )
    note = f"Answers of {result.name} that hold the start of a call: {', '.join(counts)}."
    return f"{note} The harness counts a call that it cannot read as no call, which is right in irrelevance."


def _bfcl_notes(details: dict[str, Any]) -> list[str]:
    floor = ", ".join(
        f"{format_score(f'bfcl_{name}', value)} {name.replace('_', ' ')}" for name, value in details["floor"].items()
    )
    notes = [f"Official harness {details['package']}, data {details['data']} ({details['data_sha256'][:12]})."]
    if floor:
        notes.append(f"A model that never calls anything scores: {floor}.")
    notes.append("The ground truth itself scores 99.8% (v3): a few entries, most of them live, refuse it.")
    return notes
