"""Says before a study starts what it will do, and how long that takes."""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean

from star.study.work import Work, finished
from star.units import format_seconds


def seconds_by_label(work: Iterable[Work], *, done: Collection[str], expected: Mapping[str, float]) -> dict[str, float]:
    """Seconds that a piece of work takes, by its label: the mean of what is done already, else what the profile expects."""
    measured: dict[str, list[float]] = {}
    for one in work:
        if one.key in done:
            measured.setdefault(one.label, []).append(one.metrics()["seconds"])
    return {**expected, **{label: fmean(seconds) for label, seconds in measured.items()}}


def duration(work: Iterable[Work], *, done: Collection[str], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds until all of the work is done that is not done yet, if every process takes the first work that is ready.

    Args:
        work: in the order of `all_work`.
        done: keys of the finished work.
        seconds: of a piece of work, by its label.
    """
    waiting = [one for one in work if one.key not in done]
    unfinished = {one.key for one in waiting}
    running: list[tuple[float, str]] = []  # when it ends, and its key
    now = 0.0
    while waiting or running:
        ready = [one for one in waiting if not any(before.key in unfinished for before in one.inputs.values())]
        for one in ready[: workers - len(running)]:
            heapq.heappush(running, (now + seconds.get(one.label, 0.0), one.key))
            waiting.remove(one)
        now, key = heapq.heappop(running)
        unfinished.remove(key)
    return now


def plan_lines(work: list[Work], *, cells: int, expected: Mapping[str, float], workers: int) -> list[str]:
    """The plan as people read it: how much of what, what is done already, and about how long the rest takes."""
    done = finished(work)
    seconds = seconds_by_label(work, done=done, expected=expected)
    counts, finished_counts = Counter(one.label for one in work), Counter(one.label for one in work if one.key in done)
    lines = [f"{cells} cells in {len(work)} pieces of work, {len(done)} of them done"]
    for label, count in counts.items():
        each = format_seconds(round(seconds[label])) if label in seconds else "unknown"
        lines.append(f"  {label:<17} {count:>4}, {finished_counts[label]} done, {each} each")
    total = format_seconds(round(duration(work, done=done, seconds=seconds, workers=workers)))
    unknown = sorted(label for label in counts if label not in seconds)
    lines.append(
        f"about {total} with {workers} processes of one thread each"
        + (f", and the time of {', '.join(unknown)}, which `study.seconds` does not say" if unknown else "")
    )
    return lines
