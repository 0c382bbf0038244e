"""The result of one check, and how a check is run."""

from collections.abc import Callable
from dataclasses import dataclass

from star.errors import InputError
from star.redaction import redacted


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked, such as "MLflow".
        passed: Whether it can be used.
        detail: What was found; for a failed check what is wrong and what to do.
    """

    name: str
    passed: bool
    detail: str


def run_check(name: str, check: Callable[[], str]) -> Check:
    """Runs a check, which returns what it found or raises InputError."""
    try:
        return Check(name, True, check())
    except InputError as error:
        # The text goes to the log of a task, and the address of a service may hold a password.
        return Check(name, False, redacted(str(error)))
