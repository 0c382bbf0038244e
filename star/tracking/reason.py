"""Says in one line why something failed."""

import sqlite3

from star.errors import InputError
from star.redaction import redacted


def reason_of(error: BaseException) -> str:
    """Returns one line that says why something failed.

    For a failed connection or database file it is the message of the innermost error, which has the cause
    (`Connection refused`). Otherwise it is the message of the error itself.
    """
    inner = error
    while cause := inner.__cause__ or inner.__context__:
        inner = cause
    shown = inner if isinstance(inner, OSError | sqlite3.Error) and not isinstance(error, InputError) else error
    return redacted(str(shown).strip().partition("\n")[0][:300]) or type(shown).__name__
