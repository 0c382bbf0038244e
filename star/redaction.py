"""The one redaction: masks secrets in every text that leaves the process.

    redacted("401 for https://me:hunter22@host/x?token=abc")      "401 for https://host/x?token=***"

Terminal, logs, events, MLflow, the ledger, the webhook and errors of other packages pass here. Two kinds of secrets are masked:

- Those that the environment holds (`known_masked`): values of variables with a name such as HF_TOKEN or PGPASS, passwords in
  addresses such as DATABASE_URL=postgres://me:hunter22@host/x, the path of a webhook, and the key that STAR_LEDGER_KEY=env:NAME
  refers to. They are masked as they are and in the forms that JSON, Python, HTML and addresses give them. A value with less than
  SHORTEST_SECRET characters is not masked, because it would be found within ordinary words.
- Those that a text shows by their form: user and password in an address, a key in its query, `Authorization` headers, private keys,
  and tokens of well-known services.

`find_secret` says which of the second kind a text holds. The configuration is refused by it.
"""

import html
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

SHORTEST_SECRET = 6
LONGEST_USER = 16  # a longer user without a password in an address is taken for a token
MASK = "***"
REFERENCES = ("STAR_LEDGER_KEY",)  # variables that say where a secret is: the path of a file, or env:NAME
_NAME = re.compile(
    r"KEY|SECRET|TOKEN(?!IZER)|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|WEBHOOK|AUTH(?!OR)|BEARER|COOKIE|JWT"
    r"|PASS(?:_|$)|(?:^|_)(?:PAT|PW|PWD|DSN|SAS|CREDS?)(?:_|$)",
    re.IGNORECASE,
)
# What such a variable says about a secret instead of holding one. PWD is the shell's folder.
_NO_SECRET = re.compile(r"_(?:PATH|FILE|DIR|SOCK|TYPE|MODE|METHOD|ENABLED|TIMEOUT|TTL|PROVIDER)$|^PWD$", re.IGNORECASE)

# All lengths are bounded, so that no text of others makes a search long.
_SCHEME = r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,30}://)"
# The second form is that of a password with a slash in it. A port is none, and neither is a digest behind an image's tag.
_USERINFO = re.compile(
    _SCHEME + r"(?P<user>[^\s/?#\"'<>\\]{0,512}"
    r"|[^\s/:@?#\"'<>\\\[]{0,128}:(?!\d{1,5}(?:[/?#]|$))[^\s\"'<>\\]{1,256}?)@(?!sha256:)"
)
_PLACEHOLDER = re.compile(r"\$(?:\(\w{1,100}\)|\{\w{1,100}\})")
_QUERY = re.compile(
    r"(?P<name>[?&;](?:[\w.-]{0,40}?(?:key|token|secret|password|passwd|signature|credentials?)|sig|sas|pwd|pw|pass|auth)=)"
    r"(?P<value>[^\s&;\"'<>#\\]{1,2048})",
    re.IGNORECASE,
)
_PAIR = re.compile(r"(?P<name>\b(?:password|passwd|pwd)=)(?P<value>[^\s&;\"'<>\\]{1,512})", re.IGNORECASE)
_HEADER = re.compile(
    r"(?P<name>\bauthorization\b[\"']?\s{0,4}[:=]\s{0,4}[\"']?(?:(?:basic|bearer|token)\s{1,4})?"
    r"|\bbearer\s{1,4}(?=[^\s\"',]{0,200}\d)(?=[^\s\"',]{16}))(?P<value>(?!(?:basic|bearer|token)\s)[^\s\"',]{6,8192})",
    re.IGNORECASE,
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----(?:[^-]|-(?!----)){0,20000}(?:-----END (?:[A-Z]{1,12} ){0,3}PRIVATE KEY-----)?"
)
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{30,100}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[opsur]_[A-Za-z0-9]{30,255}|github_pat_\w{22,255}"
    r"|glpat-[\w-]{20,100}|xox[abeprs]-[\w-]{10,255}|AIza[\w-]{35}|sk-(?=[\w-]{0,40}\d)[\w-]{20,255}|nvapi-[\w-]{40,255}"
    r"|pypi-[\w-]{50,255}|npm_[A-Za-z0-9]{36}|eyJ[\w-]{10,4000}\.eyJ[\w-]{2,8000}\.[\w-]{0,2000})(?![A-Za-z0-9])"
)
# One of these is in every text that one of the patterns for tokens can match.
_TOKEN_MARKS = ("hf_", "AKIA", "ASIA", "gh", "glpat-", "xox", "AIza", "sk-", "nvapi-", "pypi-", "npm_", "eyJ")


def names_secret(variable: str) -> bool:
    """Whether an environment variable of that name holds a secret, as HF_TOKEN does and TOKENIZERS_PARALLELISM does not."""
    return bool(_NAME.search(variable)) and not _NO_SECRET.search(variable)


def redacted(text: str) -> str:
    """The text with every secret masked that the environment holds or that shows by its form."""
    text = known_masked(text)
    if "://" in text:
        text = _USERINFO.sub(lambda found: found["scheme"], text)
    if "=" in text:
        text = _PAIR.sub(_name_and_mask, _QUERY.sub(_name_and_mask, text))
    lower = text.lower()
    if "authorization" in lower or "bearer" in lower:
        text = _HEADER.sub(_name_and_mask, text)
    if "PRIVATE KEY-----" in text:
        text = _PRIVATE_KEY.sub(MASK, text)
    if any(mark in text for mark in _TOKEN_MARKS):
        text = _TOKEN.sub(MASK, text)
    return text


def known_masked(text: str) -> str:
    """The text with the secrets of the environment masked, for texts that are data: what else looks like a secret stays."""
    for form in _known_forms(tuple(os.environ.items())):
        if form in text:
            text = text.replace(form, MASK)
    return text


def redacted_values(value: Any) -> Any:
    """`redacted` for every text within a JSON value. The keys of objects are left as they are: others look them up."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_values(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(entry) for entry in value]
    return value


def find_secret(text: str) -> str | None:
    """What secret a text shows by its form, such as `a password in an address`; None if it shows none."""
    for found in _USERINFO.finditer(text):
        user, _, password = found["user"].partition(":")
        # `$(NAME)` is no password yet: Kubernetes puts the variable's value there.
        if (password and not _PLACEHOLDER.fullmatch(password)) or len(user) > LONGEST_USER:
            return "a password in an address"
    if "://" in text and _QUERY.search(text):
        return "a key in an address"
    if _PAIR.search(text) or re.search(r";AccountKey=", text, re.IGNORECASE):
        return "a password"
    if _PRIVATE_KEY.search(text):
        return "a private key"
    if _HEADER.search(text) or _TOKEN.search(text):
        return "a token"
    return None


def looks_random(value: str) -> bool:
    """Whether a value without spaces has a part that looks like drawn from letters and digits, as keys are.

    Digests and other numbers in lower case are not taken for one, nor are names in CamelCase.
    """
    for part in re.findall(r"[A-Za-z0-9+/=]{24,}", value):
        kinds = [3 if char.isdigit() else 1 if char.islower() else 2 if char.isupper() else 4 for char in part]
        changes = sum(first != second for first, second in pairwise(kinds))
        # Of random letters and digits, six of ten have a neighbour of another kind. In names it is three of ten.
        if {1, 2, 3} <= set(kinds) and changes >= 0.45 * len(part) and part.count("/") < len(part) / 12:
            return True
    return False


class RedactedError(Exception):
    """Stands for an error of another package whose text could not be masked in place."""


def redact_error(error: BaseException) -> BaseException:
    """Masks secrets in the texts of an error and of those behind it, for everybody who prints it later.

    Returns:
        The same error; or a RedactedError in its place, if its text comes from elsewhere than its arguments.
    """
    return _redact_error(error, seen=set())


def _redact_error(error: BaseException, *, seen: set[int]) -> BaseException:
    if id(error) in seen:
        return error
    seen.add(id(error))
    for link in ("__cause__", "__context__"):
        if (behind := getattr(error, link)) is not None and (masked := _redact_error(behind, seen=seen)) is not behind:
            suppressed = error.__suppress_context__  # which the assignment of a cause sets
            setattr(error, link, masked)
            error.__suppress_context__ = suppressed
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            _redact_error(one, seen=seen)
    if redacted(str(error)) != str(error):
        error.args = tuple(
            redacted(part)
            if isinstance(part, str)
            else _redact_error(part, seen=seen)
            if isinstance(part, BaseException)
            else part
            for part in error.args
        )
        if isinstance(error, OSError) and isinstance(error.filename, str):
            error.filename = redacted(error.filename)
    notes = getattr(error, "__notes__", None)
    if notes:
        error.__notes__ = [redacted(note) for note in notes]
    if redacted(str(error)) == str(error):
        return error
    stand_in = RedactedError(f"{type(error).__name__}: {redacted(str(error))}").with_traceback(error.__traceback__)
    stand_in.__cause__, stand_in.__context__ = error.__cause__, error.__context__
    stand_in.__suppress_context__ = error.__suppress_context__
    return stand_in


def _name_and_mask(found: re.Match[str]) -> str:
    return found["name"] + MASK


@lru_cache(1)
def _known_forms(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """The secrets of an environment in all forms, the longest first: a secret may contain a shorter one."""
    secrets = {secret for secret in _secrets_of(dict(environment)) if len(secret) >= SHORTEST_SECRET}
    forms = {form for secret in secrets for form in _forms(secret)}
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _secrets_of(environment: dict[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if name in REFERENCES:
            yield from _lines(environment.get(value.removeprefix("env:"), "") if value.startswith("env:") else "")
        # A path says where the secret is.
        elif names_secret(name) and not (value.startswith("/") and os.path.exists(value)):  # noqa: PTH110 - for any text
            yield from _lines(value)
            if value.startswith(("http://", "https://")):
                yield from _url_parts(value)
        if "://" in value:
            for found in _USERINFO.finditer(value):
                user, _, password = found["user"].partition(":")
                yield password or (user if len(user) > LONGEST_USER else "")
                if password and not re.search(r"\s", value):
                    # A password with both @ and / in it, which no program can read from an address, is still none to show.
                    yield value.partition("://")[2].partition(":")[2].rpartition("@")[0]
            yield from (found["value"] for found in _QUERY.finditer(value))


def _lines(value: str) -> Iterable[str]:
    """The value, and each line of one with several: a private key is printed line by line."""
    return [value.strip(), *(line for line in value.splitlines() if line and not line.startswith("-----"))]


def _url_parts(url: str) -> Iterator[str]:
    """What is secret of a secret address: all behind its host, whole and in parts, because errors name a part of it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    path = parts.path.strip("/")
    yield from (path, parts.query, f"{path}?{parts.query}")
    yield from (segment for segment in path.split("/") if len(segment) >= 2 * SHORTEST_SECRET)


def _forms(secret: str) -> set[str]:
    escaped = json.dumps(secret)[1:-1]
    return {
        secret,
        escaped,
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(escaped)[1:-1],  # JSON within JSON
        repr(secret)[1:-1],
        html.escape(secret),
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
    }
