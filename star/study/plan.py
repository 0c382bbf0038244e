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
    lines.append(_total(work, done=done, seconds=seconds, workers=workers))
    return lines


def _total(work: list[Work], *, done: Collection[str], seconds: Mapping[str, float], workers: int) -> str:
    if len(done) == len(work):
        return "nothing is left to do"
    unknown = sorted({one.label for one in work if one.key not in done and one.label not in seconds})
    total = duration(work, done=done, seconds=seconds, workers=workers)
    processes = "one process of one thread" if workers == 1 else f"{workers} processes of one thread each"
    if not unknown:
        return f"about {format_seconds(round(total))} with {processes}"
    without = f"`study.seconds` does not say how long {', '.join(unknown)} takes"
    known = f"at least {format_seconds(round(total))}" if total else "for an unknown time"
    return f"{known} with {processes}, because {without}"


def time_left(
    work: list[Work], *, done: Collection[str], ended: Collection[str], expected: Mapping[str, float], workers: int
) -> float | None:
    """Seconds until the rest of the work is done; None if nobody knows how long some of it takes. Work in progress counts in full.

    Args:
        done: keys of the finished work, which is measured.
        ended: those with the work that failed, which is not done again.
    """
    seconds = seconds_by_label(work, done=done, expected=expected)
    if any(one.label not in seconds for one in work if one.key not in ended):
        return None
    return duration(work, done=ended, seconds=seconds, workers=workers)
