"""Writes the card of a set: what it holds, where it comes from, what was left out and why. As Markdown, and as an HTML page with plots."""

import re
from collections import Counter
from pathlib import Path

from star.data.set_statistics import WORD_BINS, SetStatistics
from star.data.write_set import read_statistics
from star.html_kit import STYLE, escape_html, table, visible
from star.svg_charts import Bar, bar_chart

MAX_EXPLAINED = 200  # tools in a table of explanations
MAX_ENTRIES = 20  # entries of a chart or table; the others are counted together
# The charts fill columns from top to bottom. In rows, a long chart would leave the page empty beside it.
COLUMNS = ".columns{columns:24rem 2;column-gap:2rem}.columns figure{break-inside:avoid;padding-bottom:1.5rem}"
WORD_ORDER = [*map(str, WORD_BINS), f"over {WORD_BINS[-1]}"]


def write_card(folder: Path) -> None:
    """Writes card.md and card.html beside the figures.json that they are made of. All text from outside is escaped.

    Raises:
        InputError: the folder has no statistics.
    """
    statistics = read_statistics(folder)
    (folder / "card.md").write_text(markdown_card(statistics), encoding="utf-8")
    (folder / "card.html").write_text(html_card(statistics), encoding="utf-8")


def _tables(statistics: SetStatistics) -> list[tuple[str, str, Counter]]:
    """Returns (title, what is counted, counts) of every table of the card that is not empty."""
    words = Counter({f"up to {edge}" if edge.isdigit() else edge: statistics.query_words[edge] for edge in WORD_ORDER})
    tables = [
        ("Split", "side", statistics.split),
        ("Kinds", "kind", statistics.kinds),
        ("Sources", "source", statistics.sources),
        ("Licences", "licence", statistics.licences),
        ("Generators", "generator", statistics.generators),
        ("Words of the conversation before the answer", "words", +words),
        ("User turns", "turns", statistics.turns),
        ("Labels of the last turn", "label", statistics.labels),
        ("Number of the last turn", "number", statistics.turn_numbers),
        ("Calls in the answer", "calls", statistics.calls),
        ("Tools shown", "tools", statistics.shown_tools),
        ("Tools called", "tool", statistics.called),
        ("Rejects by reason", "reason", statistics.rejects),
        ("Rejects by source", "source: reason", statistics.rejects_by_source),
        ("Overlaps of kept rows with the benchmark", "overlap", statistics.overlaps),
        ("Rows short of their quota", "quota", statistics.shortfalls),
    ]
    return [entry for entry in tables if entry[2]]


def _explanations(statistics: SetStatistics) -> list[tuple[str, str, dict[str, str]]]:
    """Returns (title, what the second column says, explanation by tool) of every list that is not empty."""
    lists = [
        ("Tools that no row calls", "why", statistics.uncalled),
        ("Tools whose schemas could not be used as a whole", "what was left out", statistics.tool_notes),
    ]
    return [entry for entry in lists if entry[2]]


def _first_explanations(explained: dict[str, str]) -> list[tuple[str, str]]:
    beyond = len(explained) - MAX_EXPLAINED
    first = list(explained.items())[:MAX_EXPLAINED]
    return [*first, (f"{beyond:,} more", "see figures.json")] if beyond > 0 else first


NUMBERED = (
    "User turns",
    "Number of the last turn",
    "Calls in the answer",
    "Tools shown",
    "Words of the conversation before the answer",
)


def _entries(title: str, counts: Counter) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Returns (entries, rest): sorted by number where they are numbers, else the largest first; rest sums up those beyond MAX_ENTRIES."""
    if title in NUMBERED:
        in_order = title.startswith("Words")
        return list(counts.items()) if in_order else sorted(counts.items(), key=lambda pair: int(pair[0])), []
    listed = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in listed[MAX_ENTRIES:])
    return listed[:MAX_ENTRIES], [(f"{len(listed) - MAX_ENTRIES:,} more together", rest)] if rest else []


def _summary(statistics: SetStatistics) -> str:
    fitted = (
        f" In {statistics.fitted:,} rows a value was given the type that its tool declares."
        if statistics.fitted
        else ""
    )
    left_out = f"{statistics.rejects.total():,} left out, each with its reason in rejects.jsonl."
    unanswered = (
        f" {statistics.unanswered:,} rows have no answer: the teacher gives it." if statistics.unanswered else ""
    )
    return f"{statistics.rows:,} rows kept of {statistics.read:,} read; {left_out}{fitted}{unanswered}"


def _warnings(statistics: SetStatistics) -> list[str]:
    warnings = []
    if unknown := statistics.licences.get("unknown"):
        warnings.append(
            f"{unknown:,} rows have no known licence: find it out before a model that was trained on them is given away."
        )
    if uncalled := len(statistics.uncalled):
        warnings.append(f"No row calls {uncalled:,} of the tools; their names and the reasons are below.")
    if not statistics.rows:
        warnings.append("No row was kept.")
    return warnings


def markdown_card(statistics: SetStatistics) -> str:
    """Returns the card as Markdown."""
    parts = ["# Data card\n", _summary(statistics) + "\n", *(f"**{warning}**\n" for warning in _warnings(statistics))]
    for title, counted, counts in _tables(statistics):
        total = counts.total()
        parts.append(f"## {title}\n\n| {counted} | count | share |\n|---|---:|---:|")
        entries, rest = _entries(title, counts)
        parts += [
            f"| {_escape_markdown(name)} | {count:,} | {count / max(1, total):.1%} |" for name, count in entries + rest
        ]
        parts.append("")
    for title, said, explained in _explanations(statistics):
        parts.append(f"## {title}\n\n| tool | {said} |\n|---|---|")
        parts += [
            f"| {_escape_markdown(name)} | {_escape_markdown(why)} |" for name, why in _first_explanations(explained)
        ]
        parts.append("")
    return "\n".join(parts)


def _escape_markdown(name: str) -> str:
    """Escapes a name so that Markdown shows it as text, whatever it contains."""
    return re.sub(r"[\\`*\[\]<>|&]", lambda found: f"&#{ord(found[0])};", visible(name).replace("\n", " "))


def html_card(statistics: SetStatistics) -> str:
    """Returns the card as one HTML page that loads nothing from elsewhere."""
    warnings = "".join(f'<p class="lede bad">{escape_html(warning)}</p>' for warning in _warnings(statistics))
    charts = "".join(_chart(*entry) for entry in _tables(statistics))
    tables = "".join(_table(*entry) for entry in _tables(statistics))
    tables += "".join(_explanation_table(*entry) for entry in _explanations(statistics))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>Data card</title><style>{STYLE}{COLUMNS}</style></head><body><header><p class="eyebrow">STAR</p><h1>Data card</h1>'
        f'<p class="lede">{escape_html(_summary(statistics))}</p>{warnings}</header>'
        f'<section><h2>Plots</h2><div class="columns">{charts}</div></section><section><h2>Tables</h2>{tables}</section></body></html>\n'
    )


def _chart(title: str, counted: str, counts: Counter) -> str:
    entries, rest = _entries(title, counts)
    beyond = "".join(f"<span>{name}: {count:,}</span>" for name, count in rest)
    groups = [(name, [Bar(1, name, count, f"{count:,}")]) for name, count in entries]
    chart = bar_chart(title, groups, high=max(count for _, count in entries))
    return f"<figure><figcaption><b>{escape_html(title)}</b>{beyond}</figcaption>{chart}</figure>"


def _table(title: str, counted: str, counts: Counter) -> str:
    total = counts.total()
    entries, rest = _entries(title, counts)
    head = f'<th class="left">{escape_html(counted)}</th><th>count</th><th>share</th>'
    body = "".join(
        f"<tr><th>{escape_html(name)}</th><td>{count:,}</td><td>{count / max(1, total):.1%}</td></tr>"
        for name, count in entries + rest
    )
    return table(title, head, body, label=title)


def _explanation_table(title: str, said: str, explained: dict[str, str]) -> str:
    head = f'<th class="left">tool</th><th class="left">{escape_html(said)}</th>'
    body = "".join(
        f'<tr><th>{escape_html(name)}</th><td class="left">{escape_html(why)}</td></tr>'
        for name, why in _first_explanations(explained)
    )
    return table(title, head, body, label=title)
