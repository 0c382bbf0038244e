"""Writes numbers for people: sizes, durations, rates."""


def short(value: float) -> str:
    """A number in three digits: 0.0174, 3.1e−06, 12,345."""
    return (f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}").replace("-", "−")


def tick(value: float) -> str:
    """A round number as it is: 0.25, 3e−06."""
    return f"{value:.6g}".replace("-", "−")


def size(count: float) -> str:
    """A count in three digits: 596M, 8.19B."""
    scale, unit = next((pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if count >= pair[0]), (1, ""))
    return f"{count / scale:.3g}{unit}"


def memory(count: float) -> str:
    """Bytes in three digits: 937 kB, 1.19 GB."""
    scale, unit = next((pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= pair[0]), (1, "B"))
    return f"{count / scale:.3g} {unit}"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Seconds as the two units that matter: 41 s, 6 min 3 s, 2 h 15 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def readable_size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def readable_time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
