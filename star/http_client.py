"""Sends HTTP requests to servers that are not trusted: webhook, endpoint, teacher server, KFP, model hub.

    answer = send("POST", "https://host/v1/completions", seconds=120, token=key, body={...}, max_bytes=4 * 2**20)

What holds for every request:

- The address is http or https, without a user or a password in it.
- `seconds` is the deadline of the whole request, also for a server that sends single bytes or never ends a handshake.
- An answer is read up to `max_bytes`, counted after it is unpacked.
- A redirect is followed within the origin only (scheme, host and port).
- A token goes over http to this machine only. `STAR_PLAIN_HTTP` names other origins that may have it, such as a service in the cluster:
  `STAR_PLAIN_HTTP="http://vllm.models:8000"`; several are separated by spaces.
- No error shows more of an address than its origin, because the rest may be a secret.
"""

import email.utils
import ipaddress
import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from star.errors import InputError
from star.http_exchange import Answer, Exchange, NoAnswerError
from star.progress import print_line

Result = TypeVar("Result")
CONSENT = "STAR_PLAIN_HTTP"
NO_ORIGIN = "an address that cannot be read"
LONGEST_PAUSE = 60.0  # seconds before a retry, whatever Retry-After asks for
SAID_PAUSE = 10.0  # seconds from which on a pause that Retry-After asks for is printed
MAX_BYTES = 4 * 2**20  # of an answer, where the caller expects no more
MAX_REDIRECTS = 5
# A request with a body is repeated for these two only; for the others a client would send a GET.
KEEPS_METHOD = (307, 308)
REDIRECTS = (301, 302, 303, *KEEPS_METHOD)
# A name or an IPv6 address, and a port. What another parser could read differently is no address.
AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{0,5})?", re.IGNORECASE)
UNAVAILABLE_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class RedirectError(NoAnswerError):
    """The server redirects to where this request does not go."""


def origin(url: str) -> str:
    """Scheme, host and port of an address, which is all of it that may be shown."""
    try:
        parts = urlsplit(url)
        return _origin(parts) if parts.scheme and parts.hostname else NO_ORIGIN
    except ValueError:
        return NO_ORIGIN


def check_address(url: str, *, token: bool, name: str, plain_http: bool = False) -> None:
    """Checks that a request to an address may be sent, with a token or without.

    Args:
        name: what the user knows the address by, such as STAR_WEBHOOK; for the error.
        plain_http: whether the token may go over http, because the address is known to be of the same cluster.

    Raises:
        InputError: the address is none of http or https, holds a password, or would get a token without encryption.
    """
    example = "give one such as https://host/path or http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InputError(f"{name} is no address that can be read: {example}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise InputError(f"{name} is no address of http or https: {example}")
    if any(character.isspace() or not character.isprintable() for character in url):
        raise InputError(
            f"{name} ({_origin(parts)}) has a space or a control character in it: write it as %20 and so on"
        )
    if parts.username is not None or parts.password is not None:
        raise InputError(
            f"{name} ({_origin(parts)}) has a user or a password in the address: give a key in its variable"
        )
    if not AUTHORITY.fullmatch(parts.netloc):
        raise InputError(f"{name} ({NO_ORIGIN}) has a host that cannot be read: {example}")
    allowed = plain_http or _is_loopback(parts) or _origin(parts) in _consented()
    if token and parts.scheme == "http" and not allowed:
        raise InputError(
            f"{_origin(parts)} would get a key without encryption ({name}): use https, or allow it for this server with "
            f"{CONSENT}={_origin(parts)}"
        )


def send(
    method: str,
    url: str,
    *,
    name: str,
    seconds: float,
    token: str | None = None,
    body: object = None,
    max_bytes: int = MAX_BYTES,
    follow: bool = True,
    plain_http: bool = False,
) -> Answer:
    """Sends one request and returns the whole answer, whatever its status.

    Args:
        name: what the user knows the address by, for errors.
        seconds: until the answer has to be there, from the name's resolution to the last byte.
        token: sent as a bearer token.
        body: sent as JSON.
        max_bytes: of the answer's body.
        follow: whether redirects within the origin are followed. Else such an answer is returned.
        plain_http: as in check_address.

    Raises:
        InputError: the address may not be used (check_address).
        NoAnswerError: there is no whole answer; the message has no address in it.
    """
    if token and not (token.isascii() and token.isprintable()):
        raise InputError(f"the key for {name} has a line break or another character that no key has: correct it")
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        check_address(url, token=token is not None, name=name, plain_http=plain_http)
        exchange = Exchange(
            method,
            url,
            token=token,
            body=body,
            max_bytes=max_bytes,
            deadline=deadline,
            # A proxy would see the token of a server on this machine.
            use_proxies=not _is_loopback(urlsplit(url)),
        )
        answer = within(max(0.0, deadline - time.monotonic()), exchange.run, stop=exchange.stop, said=seconds)
        if answer.status not in REDIRECTS or not follow:
            return answer
        target = _target(url, answer)
        if origin(target) != origin(url):
            raise RedirectError(
                f"it redirects to {origin(target)}, which is not followed: give that address if it is right"
            )
        if method not in ("GET", "HEAD") and answer.status not in KEEPS_METHOD:
            raise RedirectError(f"it redirects a {method} by HTTP {answer.status}: correct the path of the address")
        url = target
    raise RedirectError(f"it redirects more than {MAX_REDIRECTS} times")


def within(
    seconds: float, call: Callable[[], Result], *, stop: Callable[[], None] | None = None, said: float | None = None
) -> Result:
    """Returns what `call` returns, or raises what it raises. At the deadline it is left alone in its thread.

    A thread, because no timeout of a socket covers the resolution of a name, nor a server that sends one byte before each timeout.

    Args:
        stop: called at the deadline and at an interrupt, so that the thread ends.
        said: seconds that the error names, where the call is a part of more.

    Raises:
        NoAnswerError: `call` has not ended after `seconds`.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    # A daemon does not keep the process alive when the call never ends.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ended = False
    try:
        thread.join(seconds)
        # Before `stop`, because a connection that is cut can look like the end of an answer.
        ended = bool(results or errors)
    finally:
        if stop and not ended:
            stop()
    if not ended:
        raise NoAnswerError(f"it did not answer within {seconds if said is None else said:g} s")
    if errors:
        raise errors[0]
    return results[0]


def retry_pause(name: str, seconds: float, answer: Answer | None) -> float:
    """Returns the seconds to wait before the next attempt, and prints a line where the server asks for a long pause.

    Args:
        name: the server, for the line.
        seconds: the pause without the server's wish.
        answer: what the server sent, whose Retry-After counts: a number of seconds, or a date.
    """
    asked = _asked_pause(answer.headers.get("Retry-After", "")) if answer else 0.0
    pause = min(max(seconds, asked), LONGEST_PAUSE)
    if answer and asked >= SAID_PAUSE:
        shorter = f", which asks for {asked:g} s" if asked > pause else ""
        print_line(f"{name} answers HTTP {answer.status}{shorter}: it is asked again in {pause:g} s")
    return pause


def _asked_pause(retry_after: str) -> float:
    """The seconds from now on that a Retry-After asks for, from 0 on; 0 where it cannot be read."""
    try:
        asked = float(retry_after)
    except ValueError:
        try:
            asked = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return 0.0 if math.isnan(asked) else max(0.0, asked)


def _origin(parts: SplitResult) -> str:
    host = parts.hostname or ""
    shown = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}.get(parts.scheme)
    port = f":{parts.port}" if parts.port not in (None, default) else ""
    return f"{parts.scheme}://{shown}{port}"


def _target(url: str, answer: Answer) -> str:
    """The address that a redirect names, or what is none, which has no origin."""
    try:
        return urljoin(url, answer.headers.get("Location", ""))
    except ValueError:
        return ""


def _is_loopback(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _consented() -> set[str]:
    return {origin(entry) for entry in os.environ.get(CONSENT, "").split()}
