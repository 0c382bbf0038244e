"""The result of one check, and how a check is run."""

from collections.abc import Callable
from dataclasses import dataclass

from star.errors import InputError
from star.redaction import redacted


class NotCheckedError(Exception):
    """A check could not look. The message says why, and it is no fault of what was to be checked."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: What was checked, such as "MLflow".
        passed: Whether it can be used; also where nothing was checked.
        detail: What was found; for a failed check what is wrong and what to do.
        checked: Whether anything was looked at.
    """

    name: str
    passed: bool
    detail: str
    checked: bool = True

    @property
    def word(self) -> str:
        """How the result is printed before the name, in four characters."""
        return "FAIL" if not self.passed else "ok  " if self.checked else "?   "


def run_check(name: str, check: Callable[[], str]) -> Check:
    """Runs a check, which returns what it found or raises InputError or NotCheckedError."""
    try:
        return Check(name, True, check())
    except NotCheckedError as error:
        return Check(name, True, f"not checked: {redacted(str(error))}", checked=False)
    except InputError as error:
        # The text goes to the log of a task, and the address of a service may hold a password.
        return Check(name, False, redacted(str(error)))
