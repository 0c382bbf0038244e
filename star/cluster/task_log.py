"""Reads the log of a task's pod: why the task failed, and how far its work is.

The log has what the task printed, and what KFP's executor and launcher and Argo print around it, which says nothing about the work.
"""

import json
import re
from dataclasses import dataclass
from itertools import takewhile

from star.cluster.supervisor import ATTEMPT_LINE

# KFP's executor, its launcher (klog), and Argo's wrapper of it. An error of the launcher's own, such as an upload that failed, is no noise.
KLOG = r"\d{4} \d\d:\d\d:\d\d\.\d+ .*"
NOISE = re.compile(rf"\[KFP Executor |[IW]{KLOG}|[EF]{KLOG}failed to execute component|time=\"|Error: exit status \d+$")
EXIT_CODE = re.compile(r"failed to execute component: exit status (\d+)")
TRACEBACK = "Traceback (most recent call last):"
ERROR = re.compile(r"(?P<kind>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?")
SENTENCE = "star: "  # what the last line of a failed task of ours starts with
INPUT_AT_FAULT = "2"  # exit code of a task
MEMORY_WAS_FULL = re.compile(r"container's memory( of [\d.]+ GiB)? was full")
PROGRESS = re.compile(r"(?P<label>\S.{0,80}?): (?P<done>\d+)(?:/(?P<total>\d+))?(?:, about (?P<left>\S.{0,20}) left)?")
CLOSING_TEXT = re.compile(r'^ "text": ("(?:[^"\\]|\\.)*"),?$', re.MULTILINE)
SHOWN_LINES, LONGEST_LINE = 5, 500  # of a failed task's log


@dataclass(frozen=True)
class Reason:
    """Why a task failed, in one line or a few.

    Attributes:
        headline: The line of it that says most.
        is_error: Whether the task itself said it, by an exception or an exit code; else these are just the last lines of its log.
        input_fault: Whether the user's input is at fault.
    """

    text: str
    headline: str
    is_error: bool = True
    input_fault: bool = False


@dataclass(frozen=True)
class Progress:
    """How far one piece of a task's work is. `left` is the task's own estimate, such as `3 min 20 s`."""

    label: str
    done: int
    total: int | None
    left: str | None

    def __str__(self) -> str:
        """As the task itself prints it."""
        of = f"/{self.total}" if self.total else ""
        return f"{self.label}: {self.done}{of}" + (f", about {self.left} left" if self.left else "")


def work_lines(log: str) -> list[str]:
    """The lines of a log that the task itself printed. Of a line that a bar redraws, what it shows last."""
    lines = [line.rstrip().rpartition("\r")[2] for line in log.split("\n")]
    return [line for line in lines if line.strip() and not NOISE.match(line)]


def failure_reason(log: str) -> Reason | None:
    """Why a task failed, by its log: the sentence or the error that it ended with, or else its last lines. None if it printed nothing."""
    lines = work_lines(log)
    code = next(iter(EXIT_CODE.findall(log)[-1:]), None)
    if told := _last_sentence(lines):
        kind = next((attempt["kind"] for line in reversed(lines) if (attempt := ATTEMPT_LINE.fullmatch(line))), None)
        if MEMORY_WAS_FULL.search(told[0]):
            told[0] = f"OOMKilled: {told[0]}"
        return Reason(_shown(told), _shown(told[:1]), input_fault=kind == "input" or code == INPUT_AT_FAULT)
    if told := _last_error(lines):
        found = ERROR.fullmatch(told[0])
        input_fault = found is not None and found["kind"].rpartition(".")[2] == "InputError"
        if found and input_fault:
            told[0] = found["message"] or ""
        return Reason(_shown(told), _shown(told[:1]), input_fault=input_fault)
    shown = [*lines[-SHOWN_LINES:], *([f"exit code {code}"] if code else [])]
    return Reason(_shown(shown), _shown((lines or shown)[-1:]), is_error=code is not None) if shown else None


def _last_sentence(lines: list[str]) -> list[str]:
    """The sentence that a task of ours ends with (failure.py), with its further lines; empty without one."""
    start = next((number for number in reversed(range(len(lines))) if lines[number].startswith(SENTENCE)), None)
    if start is None:
        return []
    further = list(takewhile(lambda line: line.startswith("    "), lines[start + 1 :]))
    # What is printed after the sentence is another attempt.
    is_last = start + 1 + len(further) == len(lines)
    return [lines[start].removeprefix(SENTENCE), *(line.strip() for line in further)][:SHOWN_LINES] if is_last else []


def _last_error(lines: list[str]) -> list[str]:
    """The error behind the last traceback, with its further lines; empty without one."""
    if TRACEBACK not in lines:
        return []
    last = len(lines) - 1 - lines[::-1].index(TRACEBACK)
    return [line for line in lines[last + 1 :] if not line.startswith(" ")][:SHOWN_LINES]


def retries(log: str) -> list[str]:
    """What each attempt within the pod ended with that was followed by another one (supervisor.py)."""
    found = [match for line in work_lines(log) if (match := ATTEMPT_LINE.fullmatch(line)) and match["pause"]]
    return [
        f"attempt {match['attempt']} of {match['most']} failed ({match['kind']}): {match['reason']}; the next starts in {match['pause']} s"
        for match in found
    ]


def closing_text(log: str) -> str | None:
    """How the exit handler's summary puts the end of the run in words (exit_handler.py); None if the log has no summary."""
    found = CLOSING_TEXT.findall(log)
    return json.loads(found[-1]) if found else None


def progress_of(log: str) -> Progress | None:
    """What the last progress line of a log says (star/progress.py prints them)."""
    found = next((match for line in reversed(work_lines(log)) if (match := PROGRESS.fullmatch(line))), None)
    if found is None:
        return None
    return Progress(found["label"], int(found["done"]), int(found["total"]) if found["total"] else None, found["left"])


def _shown(lines: list[str]) -> str:
    return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..." for line in lines)
