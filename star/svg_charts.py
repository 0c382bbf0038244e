"""Draws the charts of HTML pages as SVG: intervals, bars, lines.

Charts are drawn at about the size that a phone shows them at, so that their text stays readable there. They know nothing
of models or scores: the report gives them labels, values and texts.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from star.html_kit import SERIES_COLOURS, escape_html, visible

Point = tuple[float, float]
LABEL_CHARACTERS = 12  # of a series: the length of "student-base"
LABEL_HEIGHT = 13


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


def interval_chart(title: str, rows: list[Dot]) -> str:
    """One line per row: label, dot with its interval on a shared scale, value."""
    low, high = _padded(min(row.low for row in rows), max(row.high for row in rows))
    body = ""
    for i, row in enumerate(rows):
        y, (x, x_low, x_high) = 12 + 22 * i, (_scale(v, low, high, 82, 180) for v in (row.value, row.low, row.high))
        body += (
            f'<g class="c{row.colour % SERIES_COLOURS}"><text x="0" y="{y + 4}">{escape_html(_clip(row.label, LABEL_CHARACTERS))}</text>'
            f'<path class="rule" d="M78 {y}H184"/><path class="whisker" d="M{x_low:.1f} {y}H{x_high:.1f}"/>'
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
                f'<g class="c{bar.colour % SERIES_COLOURS}"><rect class="bar" x="{left:.1f}" y="{y}" width="{width:.1f}" '
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
    is_log: bool = False,
) -> str:
    """Lines over a light grid, with their intervals shaded and their labels at the right end.

    Args:
        is_log: equal factors are equally high, where all values are positive.
    """
    if is_log and (logs := _logarithms(lines)):
        lines, ticks_of, shown = logs, _log_ticks, lambda y: y_text(10**y)
    else:
        ticks_of, shown = round_ticks, y_text
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for y in [*(y for _, y in line.points), *(y for band in line.band for y in band[1:])]]
    (y_low, y_high), right = _padded(min(ys), max(ys)), width - (92 if any(line.label for line in lines) else 8)

    def at(x: float, y: float) -> str:
        return f"{_scale(x, min(xs), max(xs), 44, right):.1f} {_scale(y, y_low, y_high, height - 24, 8):.1f}"

    body = ""
    for y in ticks_of(y_low, y_high):
        body += f'<path class="rule" d="M{at(min(xs), y)}H{right}"/>'
        body += f'<text class="small end" transform="translate({at(min(xs), y)})" x="-6" y="4">{shown(y)}</text>'
    for x, label in x_ticks:
        body += f'<text class="small middle" transform="translate({at(x, y_low)})" y="16">{escape_html(label)}</text>'
    for line in lines:
        body += f'<g class="c{line.colour % SERIES_COLOURS}">'
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
    labelled = sorted((line for line in lines if line.label), key=lambda line: -line.points[-1][1])
    heights, free = list[float](), 0.0
    for line in labelled:
        heights.append(max(_scale(line.points[-1][1], y_low, y_high, height - 24, 8), free))
        free = heights[-1] + LABEL_HEIGHT
    body, most = "", height - 24.0
    for line, y in zip(reversed(labelled), reversed(heights), strict=True):
        # Upwards again, so that the lowest does not leave the chart.
        y, most = min(y, most), min(y, most) - LABEL_HEIGHT
        body += f'<text class="c{line.colour % SERIES_COLOURS} series" x="{right + 9}" y="{y + 4:.1f}">'
        body += f"{escape_html(_clip(line.label, LABEL_CHARACTERS))}</text>"
    return body


def _logarithms(lines: list[Line]) -> list[Line] | None:
    """The lines with the logarithms of their values to base 10; None if there is a value that has none."""
    if any(y <= 0 for line in lines for y in [*(y for _, y in line.points), *(low for _, low, _ in line.band)]):
        return None
    return [
        line._replace(
            points=[(x, math.log10(y)) for x, y in line.points],
            band=[(x, math.log10(low), math.log10(high)) for x, low, high in line.band],
        )
        for line in lines
    ]


def _log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of round numbers inside [low, high]: 1, 2 and 5 times powers of ten, or the powers alone where these are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [power + math.log10(factor) for power in powers for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


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
