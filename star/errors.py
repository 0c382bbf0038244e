"""What the user can cure: such errors are shown as one line, without a traceback, and end the command with exit status 2."""

import errno
import json
import os
import re
from urllib.parse import quote

SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN(?!IZER)|PASSWORD|PASSWD|CREDENTIAL|WEBHOOK|AUTH(?!OR)", re.IGNORECASE)
SECRET_LENGTH = 6  # a shorter value would blot out ordinary words


class InputError(Exception):
    """The user can cure this. The message is one line that names the thing and says what to do."""


class PipelineError(Exception):
    """A stage of a pipeline failed. `input_fault` says that the user can cure it."""

    def __init__(self, message: str, *, input_fault: bool) -> None:
        super().__init__(message)
        self.input_fault = input_fault


def cure_of(error: BaseException) -> str | None:
    """The one line that tells the user what to do about an error, or None when the work itself failed."""
    if isinstance(error, InputError):
        return str(error)
    # safetensors and torch report a full disk as errors of their own that only carry the text.
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        place = getattr(error, "filename", None)
        return f"no space left on the disk{f' at {place}' if place else ''}: free some and run again, finished work is kept"
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError | IsADirectoryError):
        return f"{error.filename} cannot be used ({error.strerror}): choose another path, or change its owner or mode"
    return None


def redacted(text: str) -> str:
    """The text without what must not be read by others: passwords in addresses, and values of variables that are named as secrets."""
    text = re.sub(r"//[^/@\s\"']*@", "//", text)
    secrets = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SECRET_LENGTH}
    for secret in sorted(secrets, key=len, reverse=True):
        for form in (secret, json.dumps(secret)[1:-1], quote(secret, safe="")):
            text = text.replace(form, "***")
    return text
