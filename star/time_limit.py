"""Ends work on foreign input that takes too long.

    with time_limit(4.0):
        normalize_tool(tool)    # raises TookTooLong after 4 seconds of processor time

Counted is processor time in Python's code, so that a slow disk or a busy machine ends nothing.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TookTooLong(Exception):
    """The work took longer than it may. No InputError: a part that may be left out must not hide it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TookTooLong in the block after so many seconds of processor time. Inside another limit, the outer one counts."""
    # Signals reach the main thread only. Elsewhere there is no limit; what reads foreign input runs in the main thread.
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_VIRTUAL)[0]:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"it takes more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, end)
    # Again every tenth of a second: where Python ignores exceptions (in finalizers) one would be lost.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
