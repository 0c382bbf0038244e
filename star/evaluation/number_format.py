"""Formats scores, their intervals and their differences for people, each in the unit of its metric."""

from star.evaluation.labels import metric_of


def format_score(name: str, value: float, *, signed: bool = False) -> str:
    """A score in its metric's unit: 71.2% or 0.423. Signed it is a difference, of percentages in points: +3.1 pp."""
    unit = "" if not metric_of(name).percent else "\u00a0pp" if signed else "%"
    return _format_digits(name, value, signed=signed) + unit


def format_range(name: str, low: float, high: float, *, signed: bool = False) -> str:
    """An interval with its unit once: 70.1 to 74.3%."""
    return f"{_format_digits(name, low, signed=signed)} to {format_score(name, high, signed=signed)}"


def _format_digits(name: str, value: float, *, signed: bool) -> str:
    sign = "+" if signed else ""
    return (f"{100 * value:{sign}.1f}" if metric_of(name).percent else f"{value:{sign}.3f}").replace("-", "−")
