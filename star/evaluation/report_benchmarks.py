"""The report's part on BFCL and ACEBench: a bar and an interval for every category of every model, and how to read them."""

from collections.abc import Iterable

from star import html_kit
from star.evaluation.labels import SUITE_NAMES, Evaluation, Model, models_of, show, show_range
from star.html_kit import text


def benchmarks(evaluation: Evaluation) -> str:
    """The categories of BFCL and ACEBench, a bar a model, and what must be known to read them."""
    models = models_of(evaluation)
    figures = "".join(_benchmark(suite, models) for suite in ("bfcl", "acebench"))
    return f"{html_kit.legend([model['name'] for model in models])}{figures}" if figures else ""


def _benchmark(suite: str, models: list[Model]) -> str:
    found = [(i, model, model[suite]) for i, model in enumerate(models) if model.get(suite)]
    names = dict.fromkeys(name for _, _, part in found for name in part.get("categories") or {})
    groups = []
    for name in names:
        scores = [(i, model, part["categories"][name]) for i, model, part in found if name in part["categories"]]
        bars = [
            html_kit.Bar(i, model["name"], s["mean"], show("exact_match", s["mean"]), s["low"], s["high"])
            for i, model, s in scores
        ]
        groups.append((f"{name.replace('_', ' ')} · {scores[0][2]['rows']:,} entries", bars))
    if not groups:
        return ""
    label = SUITE_NAMES[suite]
    chart = html_kit.bar_chart(f"{label}, share of entries right by category", groups)
    notes = "".join(f"<p class='note'>{text(note)}</p>" for note in _benchmark_notes(suite, found))
    return f'<h3>{label}</h3>{notes}<div class="grid wide"><figure>{chart}</figure></div>{_categories(label, names, found)}'


def _categories(label: str, names: Iterable[str], found: list[tuple[int, Model, dict]]) -> str:
    """The same shares as a table, with their intervals."""
    body = ""
    for name in names:
        scores = (part["categories"].get(name) for _, _, part in found)
        cells = "".join(f"<td>{_share(score)}</td>" if score else "<td>–</td>" for score in scores)
        body += f'<tr><th scope="row">{text(name.replace("_", " "))}</th>{cells}</tr>'
    heads = "".join(f'<th scope="col">{html_kit.swatch(i)}{text(model["name"])}</th>' for i, model, _ in found)
    return html_kit.table(
        f"{label} by category with 95% intervals.", f"<td></td>{heads}", body, label=f"{label} categories"
    )


def _share(score: dict) -> str:
    interval = show_range("exact_match", score["low"], score["high"])
    return f"{show('exact_match', score['mean'])}<small>{interval}</small>"


def _benchmark_notes(suite: str, found: list[tuple[int, Model, dict]]) -> list[str]:
    notes = []
    if suite == "bfcl":
        part = found[0][2]
        floor = ", ".join(
            f"{show(f'bfcl_{name}', value)} {name.replace('_', ' ')}" for name, value in part["floor"].items()
        )
        notes.append(f"Official harness {part['package']}, data {part['data']} ({part['data_sha256'][:12]}).")
        notes.append(f"A model that never calls anything scores: {floor}." if floor else "")
        notes.append("The ground truth itself scores 99.8% (v3): a few entries, most of them live, refuse it.")
    for _, model, part in found:
        if part.get("unanswered"):
            notes.append(f"{model['name']} left {part['unanswered']:,} questions unanswered: longer than its context.")
    return [note for note in notes if note]
