"""Builds the parts of HTML pages: safe text, tables, word diffs, SVG charts (intervals, bars, lines), style sheet.

The report, the data card and the page of Sim-RL's completions use it. It does not know what the values are. Charts
are drawn at about the size that a phone shows them at, so that their text stays readable there. Colours come from the
style sheet, so that they follow light, dark and print.
"""

import difflib
import html
import math
import re
from collections.abc import Callable
from typing import NamedTuple

Point = tuple[float, float]

_SERIES_COLOURS = 5  # the colours c0 to c4 in STYLE
_MAX_TEXT_CHARACTERS = 4000  # shown of one model text; this also bounds the time that a diff takes
# C0 and C1 controls, text direction, lone surrogates, noncharacters: shown by number, never passed on
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


class Dot(NamedTuple):
    """One row of an interval chart: number of the colour, label, value, ends of its interval, the value as text."""

    colour: int
    label: str
    value: float
    low: float
    high: float
    shown: str


class Bar(NamedTuple):
    """One bar: number of the colour, label, value, the value as text, ends of its interval where known."""

    colour: int
    label: str
    value: float
    shown: str
    low: float | None = None
    high: float | None = None


class Line(NamedTuple):
    """One line: number of the colour, label ("" for none), points by rising x, (x, low, high) of known intervals."""

    colour: int
    label: str
    points: list[Point]
    band: list[tuple[float, float, float]]


def escape_html(value: object) -> str:
    """`value` as HTML text or attribute: escaped, and valid UTF-8 even if it holds lone surrogates."""
    return html.escape(visible(str(value)))


def escape_markdown(value: object) -> str:
    """`value` as literal text of one line of Markdown, also inside a table's cell."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(visible(" ".join(str(value).split())), quote=False))


def visible(raw: str) -> str:
    """`raw` with every character that could hide, reorder or break text spelled out, as in <U+202E>."""
    return _UNSAFE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", raw)


def table(caption: str, head: str, body: str, *, label: str) -> str:
    """A table that scrolls sideways inside its own box; `head` and `body` are HTML, `caption` and `label` are text."""
    return (
        f'<div class="scroll" role="region" aria-label="{escape_html(label)}" tabindex="0"><table>'
        f"<caption>{escape_html(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def swatch(colour: int) -> str:
    """The small square that ties a name to its colour in the charts."""
    return f'<i class="key c{colour % _SERIES_COLOURS}"></i>'


def legend(names: list[str]) -> str:
    """Names with their colours, in the order of the series."""
    items = "".join(f"<span>{swatch(i)}{escape_html(name)}</span>" for i, name in enumerate(names))
    return f'<p class="legend">{items}</p>'


def truncate(raw: str) -> str:
    """`raw`; if it is too long to show, its end is replaced by the number of missing characters."""
    missing = len(raw) - _MAX_TEXT_CHARACTERS
    return raw if missing <= 0 else f"{raw[:_MAX_TEXT_CHARACTERS]} … ({missing:,} more characters)"


def word_diff(expected: str, predicted: str) -> tuple[str, str]:
    """Both texts as HTML blocks, the words that only one of them has in a <mark>."""
    expected_words, predicted_words = (re.findall(r"\w+|\s+|[^\w\s]", visible(raw)) for raw in (expected, predicted))
    same = difflib.SequenceMatcher(None, expected_words, predicted_words).get_matching_blocks()
    left = _marked(expected_words, [(block.a, block.size) for block in same], "missing")
    right = _marked(predicted_words, [(block.b, block.size) for block in same], "extra")
    return _block(left), _block(right)


def _marked(words: list[str], same: list[tuple[int, int]], tone: str) -> str:
    """The words as HTML, those outside the `same` stretches (start, length) marked."""
    body, at = "", 0
    for start, length in same:
        changed = "".join(words[at:start])
        body += f'<mark class="{tone}">{escape_html(changed)}</mark>' if changed.strip() else escape_html(changed)
        body += escape_html("".join(words[start : start + length]))
        at = start + length
    return body


def _block(body: str) -> str:
    return f"<pre>{body}</pre>" if body else '<p class="none">nothing</p>'


def interval_chart(title: str, rows: list[Dot]) -> str:
    """One line per row: label, dot with its interval on a shared scale, value."""
    low, high = _padded(min(row.low for row in rows), max(row.high for row in rows))
    body = ""
    for i, row in enumerate(rows):
        y, (x, x_low, x_high) = 12 + 22 * i, (_scale(v, low, high, 70, 180) for v in (row.value, row.low, row.high))
        body += (
            f'<g class="c{row.colour % _SERIES_COLOURS}"><text x="0" y="{y + 4}">{escape_html(_clip(row.label, 11))}</text>'
            f'<path class="rule" d="M66 {y}H184"/><path class="whisker" d="M{x_low:.1f} {y}H{x_high:.1f}"/>'
            f'<circle class="dot" cx="{x:.1f}" cy="{y}" r="4.5"/>'
            f'<text class="end" x="236" y="{y + 4}">{escape_html(row.shown)}</text></g>'
        )
    return _svg(title, 236, 22 * len(rows) + 2, body)


def bar_chart(title: str, groups: list[tuple[str, list[Bar]]], *, low: float = 0.0, high: float = 1.0) -> str:
    """Groups of bars, each under its label, with intervals as thin lines.

    Bars start at 0. The scale spans [low, high] and all values.
    """
    values = [bar.value for _, bars in groups for bar in bars]
    low, high = min(low, *values), max(high, *values)
    # Bars span 1 to 352 of the chart's 400 units; the rest is room for the value beside the longest bar.
    body, y, zero = "", 0, _scale(0, low, high, 1, 352)
    for label, bars in groups:
        body += f'<text x="0" y="{y + 12}">{escape_html(_clip(label, 52))}</text>'
        y += 19
        body += f'<path class="axis" d="M{zero:.1f} {y - 2}v{13 * len(bars) + 1}"/>'
        for bar in bars:
            end = _scale(bar.value, low, high, 1, 352)
            # A value of 0 still gets a bar that can be seen and pointed at.
            left, width, right = min(zero, end), max(abs(end - zero), 1), max(zero, end)
            interval = ""
            if bar.low is not None and bar.high is not None:
                ends = [_scale(value, low, high, 1, 352) for value in (bar.low, bar.high)]
                interval, right = f'<path class="error" d="M{ends[0]:.1f} {y + 5}H{ends[1]:.1f}"/>', max(right, ends[1])
            body += (
                f'<g class="c{bar.colour % _SERIES_COLOURS}"><rect class="bar" x="{left:.1f}" y="{y}" width="{width:.1f}" '
                f'height="10" rx="1"><title>{escape_html(bar.label)}: {escape_html(bar.shown)}</title></rect>{interval}'
                f'<text class="small" x="{right + 5:.1f}" y="{y + 9}">{escape_html(bar.shown)}</text></g>'
            )
            y += 13
        y += 11
    return _svg(title, 400, y - 11, body)


def line_chart(
    title: str,
    lines: list[Line],
    *,
    x_ticks: list[tuple[float, str]],
    y_text: Callable[[float], str],
    width: int = 420,
    height: int = 240,
) -> str:
    """Lines over a light grid, with their intervals shaded and their labels at the right end."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for y in [*(y for _, y in line.points), *(y for band in line.band for y in band[1:])]]
    (y_low, y_high), right = _padded(min(ys), max(ys)), width - (70 if any(line.label for line in lines) else 8)

    def at(x: float, y: float) -> str:
        return f"{_scale(x, min(xs), max(xs), 44, right):.1f} {_scale(y, y_low, y_high, height - 24, 8):.1f}"

    body = ""
    for y in round_ticks(y_low, y_high):
        body += f'<path class="rule" d="M{at(min(xs), y)}H{right}"/>'
        body += f'<text class="small end" transform="translate({at(min(xs), y)})" x="-6" y="4">{y_text(y)}</text>'
    for x, label in x_ticks:
        body += f'<text class="small middle" transform="translate({at(x, y_low)})" y="16">{escape_html(label)}</text>'
    for line in lines:
        body += f'<g class="c{line.colour % _SERIES_COLOURS}">'
        if line.band:
            edge = [at(x, high) for x, _, high in line.band] + [at(x, low) for x, low, _ in reversed(line.band)]
            body += f'<path class="band" d="M{"L".join(edge)}Z"/>'
        body += f'<path class="line" d="M{"L".join(at(x, y) for x, y in line.points)}"/>'
        # More dots than that would hide the line.
        if len(line.points) <= 8:
            body += "".join(f'<circle class="dot" r="3.5" transform="translate({at(x, y)})"/>' for x, y in line.points)
        body += "</g>"
    return _svg(title, width, height, body + _end_labels(lines, y_low, y_high, right, height))


def _end_labels(lines: list[Line], y_low: float, y_high: float, right: int, height: int) -> str:
    """Every line's label beside its last point, from the top down, pushed apart where they would overlap."""
    body, free = "", 0.0
    for line in sorted((line for line in lines if line.label), key=lambda line: -line.points[-1][1]):
        y = max(_scale(line.points[-1][1], y_low, y_high, height - 24, 8), free)
        body += f'<text class="c{line.colour % _SERIES_COLOURS} series" x="{right + 9}" y="{y + 4:.1f}">'
        body += f"{escape_html(_clip(line.label, 10))}</text>"
        free = y + 13
    return body


def round_ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers inside [low, high]: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def thin_out(points: list[Point], *, limit: int = 240) -> list[Point]:
    """At most `limit` points that look the same when drawn: the lowest and the highest point of every stretch."""
    if len(points) <= limit:
        return points
    # Two points per stretch, so that a spike is still seen.
    size = math.ceil(2 * len(points) / limit)
    stretches = [points[i : i + size] for i in range(0, len(points), size)]
    ends = [(min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])) for part in stretches]
    return [point for pair in ends for point in sorted(set(pair))]


def _svg(title: str, width: int, height: float, body: str) -> str:
    name = escape_html(title)
    return f'<svg role="img" aria-label="{name}" viewBox="0 0 {width} {height}"><title>{name}</title>{body}</svg>'


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    """`value` of [low, high] as a coordinate of [start, end]."""
    return start + (value - low) / ((high - low) or 1) * (end - start)


def _padded(low: float, high: float) -> tuple[float, float]:
    """[low, high] a little wider, so that nothing lies on the chart's edge. An empty range gets a width too."""
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _clip(label: str, limit: int) -> str:
    shown = visible(label)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


STYLE = """
:root{--bg:#fcfbf9;--paper:#fff;--ink:#1f2328;--muted:#5f6771;--rule:#e4e1db;--good:#1a7048;--bad:#b3341f;
--s0:#737b88;--s1:#2f6fb3;--s2:#c25a17;--s3:#7a5aa8;--s4:#3b8a80;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media screen and (prefers-color-scheme:dark){:root{--bg:#14171b;--paper:#1a1e23;--ink:#e4e7ea;--muted:#9aa3ae;
--rule:#2d333b;--good:#63c393;--bad:#f0806c;--s0:#9aa4b1;--s1:#6cabea;--s2:#f0935a;--s3:#b79be0;--s4:#6cc3b8}}
.c0{--c:var(--s0)}.c1{--c:var(--s1)}.c2{--c:var(--s2)}.c3{--c:var(--s3)}.c4{--c:var(--s4)}
*{box-sizing:border-box}
body{margin:0 auto;padding:2.5rem clamp(1rem,4vw,3rem) 4rem;max-width:74rem;background:var(--bg);color:var(--ink);
font:1rem/1.55 var(--sans);font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%}
h1{margin:.1em 0 .35em;font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.15;letter-spacing:-.02em;text-wrap:balance;
overflow-wrap:anywhere}
h2{margin:0 0 1rem;font-size:1.25rem;letter-spacing:-.01em}
h3{margin:1.5rem 0 .5rem;font-size:.95rem;overflow-wrap:anywhere}
section{margin-top:2.25rem;padding-top:1.5rem;border-top:1px solid var(--rule)}
.eyebrow,.note,figcaption,caption,small,nav,.legend{color:var(--muted);font-size:.83rem}
.eyebrow,.note{margin:0;overflow-wrap:anywhere}
.lede{margin:0;overflow-wrap:anywhere;max-width:46rem;font-size:1.1rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin-top:1.25rem}
a{color:inherit;text-underline-offset:.2em;text-decoration-color:var(--rule)}a:hover{text-decoration-color:currentColor}
:focus-visible{outline:2px solid var(--s1);outline-offset:2px}
details{margin-top:.75rem}summary{cursor:pointer;color:var(--muted);font-size:.83rem}details .grid{margin-top:1rem}
.note+.cards,.note+.grid{margin-top:1rem}.grid+.scroll{margin-top:1.5rem}
.cards,.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,15.5rem),1fr))}
.grid{gap:1.5rem 2rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
.grid.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}.grid.wide svg{max-width:34rem}
.card{padding:1rem 1.15rem 1.05rem;background:var(--paper);border:1px solid var(--rule);border-radius:.5rem}
.card h3{margin:0;font-weight:500}.card svg{margin-top:.9rem}
.big{margin:.05em 0 .1em;font-size:2.1rem;font-weight:600;line-height:1.2;letter-spacing:-.03em}
figure{margin:0;min-width:0}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;margin-bottom:.35rem}
figcaption b,caption b{color:var(--ink);font-weight:600}
.solo{display:flex;flex-wrap:wrap;align-items:flex-start;gap:1rem 2.5rem}.solo svg{flex:1 1 21rem;max-width:31rem}
.solo figcaption{flex:1 1 14rem;max-width:24rem;margin:0;font-size:.9rem}
svg{display:block;width:100%;height:auto;font:12px var(--sans);fill:var(--ink);overflow:visible}
svg .small{font-size:11px;fill:var(--muted)}svg .end{text-anchor:end}svg .middle{text-anchor:middle}
svg .rule{fill:none;stroke:var(--rule)}svg .axis{stroke:var(--muted);stroke-width:.8}
svg .line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}svg .c0 .line{stroke-dasharray:5 3}
svg .whisker{stroke:var(--c);stroke-width:2.5;stroke-linecap:round;opacity:.55}
svg .error{stroke:var(--ink);stroke-width:1.5;opacity:.6}
svg .dot,svg .bar,svg .series{fill:var(--c)}svg .series{font-weight:600}svg .band{fill:var(--c);opacity:.13}
.key{display:inline-block;width:.7em;height:.7em;margin-right:.45em;border-radius:2px;background:var(--c)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:0 0 1rem}
.scroll{overflow-x:auto;position:relative}.scroll+.scroll{margin-top:1.75rem}
table{width:100%;border-collapse:collapse;font-size:.92rem}
caption{padding-bottom:.6rem;text-align:left}
th,td{padding:.5rem .6rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule)}
th:first-child,td:first-child{padding-left:0}th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:500;font-size:.83rem;white-space:nowrap}
td{white-space:nowrap}td small{display:block}
tbody th,.left{text-align:left;font-weight:500;white-space:normal}
code,pre{font:.82rem/1.5 var(--mono)}code{overflow-wrap:anywhere}
.good{color:var(--good)}.bad{color:var(--bad)}.muted{color:var(--muted)}
.confusion td{width:34%}.confusion :is(td,th):nth-child(n+2){padding:.5rem .7rem}
.right,.wrong{background:color-mix(in srgb,var(--t) calc(var(--share)*.3),transparent)}
.right{--t:var(--good)}.wrong{--t:var(--bad)}
.failure{margin-top:1rem;padding:1rem 1.15rem;background:var(--paper);border:1px solid var(--rule);border-radius:.5rem}
blockquote{margin:.4rem 0 .2rem;white-space:pre-wrap;overflow-wrap:anywhere}
.pair{display:grid;gap:.25rem 1.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.pair h3{margin:.6rem 0 .25rem;color:var(--muted);font-size:.83rem;font-weight:500}
pre{margin:0;padding:.65rem .8rem;background:var(--bg);border-radius:.35rem;white-space:pre-wrap;overflow-wrap:anywhere}
mark{color:inherit;border-radius:2px;background:color-mix(in srgb,var(--t) 18%,transparent);
text-decoration:underline;text-decoration-color:var(--t);text-underline-offset:.22em}
.missing{--t:var(--good)}.extra{--t:var(--bad);text-decoration-style:wavy}
.none{margin:0;padding:.65rem 0;color:var(--muted);font-size:.83rem;font-style:italic}
@media (max-width:30rem){body{padding-top:1.5rem}th,td{padding:.45rem .4rem}table{font-size:.86rem}
td small{white-space:normal}}
@media print{body{max-width:none;padding:0;font-size:9.5pt;background:none}nav{display:none}.scroll{overflow:visible}
.cards{grid-template-columns:1fr 1fr}.grid{grid-template-columns:repeat(3,1fr)}
.grid.wide,.pair{grid-template-columns:1fr 1fr}.solo svg{flex-basis:18rem}
.card,figure,tr,.failure,.confusion{break-inside:avoid}
h2,h3,caption,thead,.legend,.note{break-after:avoid}tbody tr:first-child{break-before:avoid}
.card,.failure,pre,mark,.key,td{print-color-adjust:exact;-webkit-print-color-adjust:exact}@page{margin:16mm}}
"""
