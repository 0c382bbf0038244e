"""Handles SIGTERM: a process that receives it cleans up and exits with status 143.

Kubernetes sends SIGTERM when a pod must leave its node and SIGKILL after the grace period (30 s by default); torchrun
and the local runner send it to their children. Python's default is to end at once without running any `finally`. This
module has three ways to handle it:

- `sigterm_raises_system_exit` raises SystemExit(143), whatever handler was set before. For a process that started
  others and must end them: the launcher of torchrun and TrainJobs (star/cluster), `star run`
  (pipelines/local_runner.py).
- `sigterm_raises_system_exit_by_default` does so only if no other handler is set. For a tracked run, which is then
  closed as KILLED (star/tracking/runs.py).
- `SigtermFlag` notes the signal and lets the work go on. For a training, which saves a checkpoint at its next logged
  step and exits then (star/modeling/training.py).

They nest: the innermost block decides, and on exit each block restores the handler that it found. Python allows
signal handlers in the main thread only; in any other thread all three do nothing.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_STATUS = 128 + signal.SIGTERM  # what a shell reports for a process that SIGTERM ended


@contextmanager
def sigterm_raises_system_exit(
    *, before_exit: Callable[[], None] | None = None, ignore_repeats: bool = False
) -> Iterator[None]:
    """Inside this block SIGTERM raises SystemExit(143), so that `except SystemExit` and `finally` can clean up.

    Args:
        before_exit: called in the signal handler, before the exception is raised.
        ignore_repeats: ignore further SIGTERMs while the block is being left, so that they do not interrupt the
            clean-up.
    """

    def raise_system_exit(signal_number: int, frame: FrameType | None) -> None:
        if ignore_repeats:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if before_exit:
            before_exit()
        raise SystemExit(EXIT_STATUS)

    if not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_system_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def sigterm_raises_system_exit_by_default() -> Iterator[None]:
    """Like `sigterm_raises_system_exit`, but leaves a handler that is set already in place."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    with sigterm_raises_system_exit():
        yield


class SigtermFlag:
    """Context manager that notes the first SIGTERM in `received` and lets the work go on.

    Args:
        on_first: called in the signal handler at the first SIGTERM.
        ignore_repeats: ignore a second SIGTERM; otherwise it goes to the handler from outside the block, which ends
            the process at once.
    """

    def __init__(self, *, on_first: Callable[[], None], ignore_repeats: bool) -> None:
        self.received = False
        self.on_first = on_first
        self.ignore_repeats = ignore_repeats

    def __enter__(self) -> "SigtermFlag":
        self._before = signal.getsignal(signal.SIGTERM)
        if _in_main_thread():
            signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        if _in_main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self.ignore_repeats else self._before)
        self.on_first()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
