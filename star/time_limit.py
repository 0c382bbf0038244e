"""Ends work on foreign input that takes too long.

    with time_limit(20.0):
        parse(document)         # raises TookTooLong after 20 seconds of processor time
    with record_limit():
        normalize_tool(tool)    # the same after SECONDS_PER_RECORD

Counted is the main thread's processor time, so that a slow disk, a busy machine or another thread ends nothing. A signal tells it, so what
never returns from C is not ended: such work must be bounded by its size (`star.limits`).
"""

import signal
import threading
import time
from types import FrameType, TracebackType

from star.limits import RECORD_SECONDS_IN_ALL, SECONDS_PER_LATER_RECORD, SECONDS_PER_RECORD

# Again every tenth of a second: where Python ignores exceptions (in finalizers), or somebody's code catches all, one would be lost.
INTERVAL = 0.1


class TookTooLong(Exception):
    """The work took longer than it may. No InputError: a part that may be left out must not hide it."""


class time_limit:
    """Raises TookTooLong in the block after so many seconds of processor time. Inside another limit, the outer one counts."""

    running: "time_limit | None" = None

    def __init__(self, seconds: float, *, explanation: str = "") -> None:
        self.seconds, self.explanation = seconds, explanation
        self.end = 0.0

    def __enter__(self) -> None:
        # Signals reach the main thread only. Elsewhere there is no limit; what reads foreign input runs in the main thread.
        if time_limit.running is not None or threading.current_thread() is not threading.main_thread():
            return
        # It stays, since without a handler a last signal, which another thread may get late, would end the process.
        if signal.getsignal(signal.SIGPROF) is not _on_signal:
            signal.signal(signal.SIGPROF, _on_signal)
        self.end = time.thread_time() + self.seconds
        time_limit.running = self
        signal.setitimer(signal.ITIMER_PROF, self.seconds, INTERVAL)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if time_limit.running is self:
            time_limit.running = None
            signal.setitimer(signal.ITIMER_PROF, 0)


class record_limit(time_limit):
    """The limit of one record, tool or generated row: less, once many of them have taken too long."""

    lost = 0.0  # seconds, in this process

    def __init__(self) -> None:
        if record_limit.lost < RECORD_SECONDS_IN_ALL:
            super().__init__(SECONDS_PER_RECORD)
        else:
            said = f", and those before it that took too long {record_limit.lost:.0f} s in all"
            super().__init__(SECONDS_PER_LATER_RECORD, explanation=said)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is TookTooLong and time_limit.running is self:
            record_limit.lost += self.seconds
        super().__exit__(kind, error, traceback)


def _on_signal(number: int, frame: FrameType | None) -> None:
    limit = time_limit.running
    # In its own exit the work is done: an exception there would leave the timer running. The timer counts all threads together.
    if limit is None or (frame is not None and frame.f_code in _OWN) or time.thread_time() < limit.end:
        return
    if _is_importing(frame):
        # No input's work, and a module that is read by half would be missed later: it begins anew after the import.
        limit.end = time.thread_time() + limit.seconds
    else:
        raise TookTooLong(f"it takes more than {limit.seconds:g} s of processor time{limit.explanation}")


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


_OWN = (time_limit.__enter__.__code__, time_limit.__exit__.__code__, record_limit.__exit__.__code__)
