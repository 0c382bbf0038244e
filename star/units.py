"""Writes numbers for people: in the report, in progress lines, in estimates and in error messages.

format_number(12345.6)       12,346         any number, three digits
format_axis_tick(0.25)       0.25           a round number at a chart's axis
format_count(596_049_920)    596M           how many there are of something
format_bytes(1_192_099_840)  1.19 GB        decimal units: 1 kB is 1,000 bytes
format_rate(4321.5)          4,322          so many per second
format_seconds(8100)         2 h 15 min     a duration
"""

COUNT_UNITS = ("", "k", "M", "B")
BYTE_UNITS = (" B", " kB", " MB", " GB", " TB")


def format_number(value: float) -> str:
    """Formats any number with three digits: 0.0174, 3.1e−06, 12,345."""
    return _with_minus_sign(f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}")


def format_axis_tick(value: float) -> str:
    """Formats a round number with all of its digits: 0.25, 3e−06."""
    return _with_minus_sign(f"{value:.6g}")


def format_count(count: float) -> str:
    """Formats a count with three digits: 41, 596M, 8.19B."""
    return _in_largest_unit(count, COUNT_UNITS)


def format_bytes(size: float) -> str:
    """Formats a number of bytes with three digits: 512 B, 937 kB, 1.19 GB."""
    return _in_largest_unit(size, BYTE_UNITS)


def format_rate(per_second: float) -> str:
    """Formats a rate: whole numbers from 10 on, two digits below."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def format_seconds(seconds: float) -> str:
    """Formats a duration with its two largest units: 41 s, 6 min 3 s, 2 h 15 min. Round an estimate before."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _in_largest_unit(value: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        # Compared after rounding to three digits: 999,600 bytes are 1 MB, and not 1e+03 kB.
        if float(f"{value:.3g}") < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}{units[-1]}" if value < 1000 else f"{value:,.0f}{units[-1]}"


def _with_minus_sign(text: str) -> str:
    """Typographic minus signs, which are as wide as digits."""
    return text.replace("-", "−")
