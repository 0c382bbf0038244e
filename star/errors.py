"""Defines the errors that the user can cure, and finds the cure of others.

    InputError("no file at tools.json: check the path")    one line on stderr, no traceback, exit status 2
    ValueError("...")                                      a traceback and exit status 1: the work itself failed

The message of an InputError is one line: what is wrong, with the value and the place, then what to do.
"""

import errno

# safetensors and torch, and then SQLite, report a full disk by errors of their own, without an errno.
FULL_DISK = ("No space left on device", "database or disk is full")


class InputError(Exception):
    """The user's input is at fault. The message is one line that names it and says what to do."""


class UnavailableError(InputError):
    """A service did not answer, or not with what was asked for. The same work can succeed later without a change."""


class BusyError(InputError):
    """Another process does the same work at the moment."""


class GpuMemoryError(InputError):
    """A training step did not fit into the accelerator's memory with `micro_batch_size` sequences per forward pass."""

    def __init__(self, message: str, *, micro_batch_size: int) -> None:
        super().__init__(message)
        self.micro_batch_size = micro_batch_size


class PipelineError(Exception):
    """A stage of a pipeline failed. `input_fault` is true if the user's input was at fault."""

    def __init__(self, message: str, *, input_fault: bool) -> None:
        super().__init__(message)
        self.input_fault = input_fault


def cure_of(error: BaseException) -> str | None:
    """Returns the line that tells the user what to do about an error, or None if the work itself failed."""
    if isinstance(error, InputError):
        return str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in FULL_DISK):
        place = getattr(error, "filename", None)
        return f"no space left on the disk{f' at {place}' if place else ''}: free some and run again, finished work is kept"
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError | IsADirectoryError):
        return f"{error.filename} cannot be used ({error.strerror}): choose another path, or change its owner or mode"
    return None
