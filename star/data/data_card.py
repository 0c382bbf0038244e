"""The data card: what a set holds, where it comes from, what was left out and why; as Markdown and as one HTML page with plots."""

import re
from collections import Counter
from pathlib import Path

from star.data.set_statistics import WORD_BINS, Figures
from star.data.write_set import read_figures
from star.html_kit import STYLE, Bar, bar_chart, escape_html, table, visible

MOST = 20  # entries of a chart or table
# The charts flow down the columns: side by side in rows, a long one would leave the page empty beside it.
COLUMNS = ".columns{columns:24rem 2;column-gap:2rem}.columns figure{break-inside:avoid;padding-bottom:1.5rem}"
WORD_ORDER = [*map(str, WORD_BINS), f"over {WORD_BINS[-1]}"]


def write_card(folder: Path) -> None:
    """Writes card.md and card.html beside the figures.json they are made of; all that came from outside is escaped.

    Raises:
        InputError: the folder holds no figures.
    """
    figures = read_figures(folder)
    (folder / "card.md").write_text(markdown_card(figures), encoding="utf-8")
    (folder / "card.html").write_text(html_card(figures), encoding="utf-8")


def _tables(figures: Figures) -> list[tuple[str, str, Counter]]:
    """(title, what is counted, counts) of every table of the card, the empty ones left out."""
    words = Counter({f"up to {edge}" if edge.isdigit() else edge: figures.query_words[edge] for edge in WORD_ORDER})
    shown = [
        ("Split", "side", figures.split),
        ("Kinds", "kind", figures.kinds),
        ("Sources", "source", figures.sources),
        ("Licences", "licence", figures.licences),
        ("Generators", "generator", figures.generators),
        ("Words of the conversation before the answer", "words", +words),
        ("User turns", "turns", figures.turns),
        ("Calls in the answer", "calls", figures.calls),
        ("Tools shown", "tools", figures.shown_tools),
        ("Tools called", "tool", figures.called),
        ("Rejects by reason", "reason", figures.rejects),
        ("Rejects by source", "source: reason", figures.rejects_by_source),
        ("Overlaps of kept rows with the benchmark", "overlap", figures.overlaps),
        ("Rows short of their quota", "kind", figures.shortfalls),
    ]
    return [entry for entry in shown if entry[2]]


NUMBERED = ("User turns", "Calls in the answer", "Tools shown", "Words of the conversation before the answer")


def _entries(title: str, counts: Counter) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The entries in their order, by number where they are numbers, else the largest first; and, as one more, those beyond MOST."""
    if title in NUMBERED:
        in_order = title.startswith("Words")
        return list(counts.items()) if in_order else sorted(counts.items(), key=lambda pair: int(pair[0])), []
    listed = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in listed[MOST:])
    return listed[:MOST], [(f"{len(listed) - MOST:,} more together", rest)] if rest else []


def _summary(figures: Figures) -> str:
    fitted = f" In {figures.fitted:,} rows a value was given the type that its tool declares." if figures.fitted else ""
    left_out = f"{figures.rejects.total():,} left out, each with its reason in rejects.jsonl."
    return f"{figures.rows:,} rows kept of {figures.read:,} read; {left_out}{fitted}"


def _warnings(figures: Figures) -> list[str]:
    said = []
    if unknown := figures.licences.get("unknown"):
        said.append(
            f"{unknown:,} rows have no known licence: find it out before a model that was trained on them is given away."
        )
    if not figures.rows:
        said.append("No row was kept.")
    return said


def markdown_card(figures: Figures) -> str:
    parts = ["# Data card\n", _summary(figures) + "\n", *(f"**{warning}**\n" for warning in _warnings(figures))]
    for title, counted, counts in _tables(figures):
        total = counts.total()
        parts.append(f"## {title}\n\n| {counted} | count | share |\n|---|---:|---:|")
        entries, rest = _entries(title, counts)
        parts += [f"| {_cell(name)} | {count:,} | {count / total:.1%} |" for name, count in entries + rest]
        parts.append("")
    return "\n".join(parts)


def _cell(name: str) -> str:
    """A name as Markdown that can be nothing but text."""
    return re.sub(r"[\\`*\[\]<>|&]", lambda found: f"&#{ord(found[0])};", visible(name).replace("\n", " "))


def html_card(figures: Figures) -> str:
    warnings = "".join(f'<p class="lede bad">{escape_html(warning)}</p>' for warning in _warnings(figures))
    charts = "".join(_chart(*entry) for entry in _tables(figures))
    tables = "".join(_table(*entry) for entry in _tables(figures))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>Data card</title><style>{STYLE}{COLUMNS}</style></head><body><header><p class="eyebrow">STAR</p><h1>Data card</h1>'
        f'<p class="lede">{escape_html(_summary(figures))}</p>{warnings}</header>'
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
        f"<tr><th>{escape_html(name)}</th><td>{count:,}</td><td>{count / total:.1%}</td></tr>"
        for name, count in entries + rest
    )
    return table(title, head, body, label=title)
