"""Reads the log of a task's pod: why the task failed, and how far its work is.

The log has what the task printed, and what KFP's executor and launcher and Argo print around it, which says nothing about the work.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# KFP's executor, its launcher (klog), Argo's wrapper of it, and how the launcher ends.
NOISE = re.compile(r"\[KFP Executor |[IWEF]\d{4} \d\d:\d\d:\d\d\.|time=\"|\{\"time\"|Error: exit status \d+$|exit status \d+$")
TRACEBACK = "Traceback (most recent call last):"
ERROR = re.compile(r"(?P<kind>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?")
INPUT_FAULTS = ("InputError",)
PROGRESS = re.compile(r"(?P<label>\S.{0,80}?): (?P<done>\d+)(?:/(?P<total>\d+))?(?:, about (?P<left>\S.{0,20}) left)?")
SHOWN_LINES, LONGEST_LINE = 5, 500  # of a failed task's log


@dataclass(frozen=True)
class Reason:
    """Why a task failed: one line or a few, and whether the user's input is at fault."""

    text: str
    input_fault: bool = False


@dataclass(frozen=True)
class Progress:
    """How far one piece of a task's work is. `left` is the task's own estimate, such as `3 min 20 s`."""

    label: str
    done: int
    total: int | None
    left: str | None


def work_lines(log: str) -> list[str]:
    """The lines of a log that the task itself printed."""
    return [line.rstrip() for line in log.splitlines() if line.strip() and not NOISE.match(line)]


def failure_reason(log: str) -> Reason | None:
    """Why a task failed, by its log: its error without the traceback, or else its last lines. None if it printed nothing."""
    lines = work_lines(log)
    if TRACEBACK in lines:
        last = len(lines) - 1 - lines[::-1].index(TRACEBACK)
        # The error stands behind the traceback's indented lines. Its own further lines follow it.
        told = [line for line in lines[last + 1 :] if not line.startswith(" ")]
        found = ERROR.fullmatch(told[0]) if told else None
        if found and found["kind"].rpartition(".")[2] in INPUT_FAULTS:
            return Reason(_shown([found["message"] or "", *told[1:]]), input_fault=True)
        lines = told or lines
        return Reason(_shown(lines[:SHOWN_LINES]))
    return Reason(_shown(lines[-SHOWN_LINES:])) if lines else None


def progress_of(log: str) -> Progress | None:
    """What the last progress line of a log says (star/progress.py prints them)."""
    found = next((match for line in reversed(work_lines(log)) if (match := PROGRESS.fullmatch(line))), None)
    if found is None:
        return None
    return Progress(found["label"], int(found["done"]), int(found["total"]) if found["total"] else None, found["left"])


def _shown(lines: list[str]) -> str:
    return "\n".join(_shortened(lines))


def _shortened(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."
