"""Gives memory that a training has freed back to the operating system.

The batches of a training have different lengths, and so have their activations. The C library keeps freed memory for later allocations,
in pieces that the next batch's do not fit into: without this, a process grows to twice the memory of its largest step and beyond.
"""

import ctypes
import sys
from collections.abc import Callable

from transformers import TrainerCallback


class ReturnFreedMemory(TrainerCallback):
    """Returns freed memory after every optimiser step, where the C library is glibc. Others keep less."""

    def __init__(self) -> None:
        self.trim = _malloc_trim()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Called by transformers."""
        if self.trim:
            self.trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", None)
