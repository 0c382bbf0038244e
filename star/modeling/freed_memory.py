"""Gives memory that a training has freed back to the operating system.

The batches of a training have different lengths, and so have their activations. The C library keeps freed memory for later allocations,
in pieces that the next batch's do not fit into: without this, a process grows to twice the memory of its largest step and beyond.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

WORTH = (
    1 << 29
)  # bytes; less is kept, because the next step would take it again, page by page: a quarter of a small model's time


class ReturnFreedMemory(TrainerCallback):
    """Returns freed memory after an optimiser step that has made the process grow, where the C library is glibc. Others keep less."""

    def __init__(self) -> None:
        self.trim = _malloc_trim()
        self.kept = _resident() if self.trim else 0

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Called by transformers."""
        if self.trim and _resident() - self.kept > WORTH:
            self.trim(0)
            self.kept = _resident()


def _malloc_trim() -> Callable[[int], int] | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", None)


def _resident() -> int:
    """Bytes of memory that this process holds; Linux only."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
