"""Reports why a stage failed: from its process to the supervisor, and to the end of the task's log.

A supervisor (supervisor.py) names a folder in STAR_FAILURES. A process of the stage that fails writes a file there:

    {"kind": "unavailable", "message": "s3://star/registry cannot be used (EndpointConnectionError: ...): check ...", "signal": 0}

An exit status could not say as much: torchrun has one status for all its ranks.
"""

import json
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from star.errors import GpuMemoryError, PipelineError, UnavailableError, cure_of
from star.redaction import redacted
from star.terminal import continued, guard_terminal

FOLDER_VARIABLE = "STAR_FAILURES"
FAILED, INPUT_AT_FAULT = 1, 2  # exit statuses
LONGEST_MESSAGE = 4000  # characters; an error of another package can hold a whole answer of a server


class Kind(StrEnum):
    """What made a process fail. Of several ranks, the one that comes first here counts, because it made the others fail."""

    INPUT = "input"  # the user's input is at fault
    GPU_MEMORY = "gpu-memory"  # a training step did not fit, and a smaller one may
    KILLED = "killed"  # a signal ended the process, or a rank of it
    UNAVAILABLE = "unavailable"  # a service did not answer
    ERROR = "error"  # anything else: its traceback is in the log


@dataclass(frozen=True)
class Failure:
    """Why a process failed.

    Attributes:
        message: one line, without secrets.
        signal: number of the signal that ended the process, or 0.
    """

    kind: Kind
    message: str
    signal: int = 0

    @property
    def signal_name(self) -> str:
        """Such as SIGKILL; a real-time signal has a number only."""
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


def report_error(error: BaseException) -> bool:
    """Reports the error that ends this process. Returns whether there is a supervisor, which will print it."""
    return report(Failure(_kind_of(error), cure_of(error) or f"{type(error).__name__}: {error}"))


def report(failure: Failure) -> bool:
    """Reports a failure to the supervisor of this process. Returns whether it has one that can read it."""
    if not (folder := os.environ.get(FOLDER_VARIABLE)):
        return False
    content = asdict(failure) | {"message": _one_line(redacted(failure.message))}
    file = Path(folder) / f"{uuid.uuid4().hex}.json"
    try:
        # A process may be killed while it writes.
        file.with_suffix(".part").write_text(json.dumps(content), encoding="utf-8")
        file.with_suffix(".part").rename(file)
    except OSError:  # the disk is full, or the supervisor has ended: what is reported stands in the log
        return False
    return True


def read_reports(folder: Path) -> Failure | None:
    """The failure that made a stage fail, or None if none of its processes reported one."""
    order = list(Kind)
    failures = [failure for file in sorted(folder.glob("*.json")) if (failure := _read_report(file))]
    return min(failures, key=lambda failure: order.index(failure.kind), default=None)


def _read_report(file: Path) -> Failure | None:
    """A report, or None if it is none: every program that a stage starts inherits the folder's name."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Failure(Kind(content["kind"]), _one_line(str(content["message"])), signal=int(content["signal"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."


@contextmanager
def ends_in_a_sentence() -> Iterator[None]:
    """Around a task's work: an error with a sentence for the user ends the process with it as the last line of the log.

    KFP's executor prints the traceback of an error, but ends in silence on SystemExit.

    Raises:
        SystemExit: 2 if the user's input is at fault, 1 if the work failed.
    """
    guard_terminal()
    try:
        yield
    except PipelineError as error:
        message, status = str(error), INPUT_AT_FAULT if error.input_fault else FAILED
    except Exception as error:
        if (cure := cure_of(error)) is None:
            raise
        message, status = cure, INPUT_AT_FAULT
    else:
        return
    sys.stdout.flush()
    print(f"star: {continued(redacted(message))}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def _kind_of(error: BaseException) -> Kind:
    match error:
        case UnavailableError():
            return Kind.UNAVAILABLE
        case GpuMemoryError() if error.micro_batch_size > 1:
            return Kind.GPU_MEMORY
    return Kind.ERROR if cure_of(error) is None else Kind.INPUT
