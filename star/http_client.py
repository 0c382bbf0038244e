"""Sends HTTP requests to servers that are not trusted: webhook, endpoint, teacher server, KFP, model hub.

    answer = send("POST", "https://host/v1/completions", seconds=120, token=key, body={...}, max_bytes=4 * 2**20)

What holds for every request:

- The address is http or https, without a user or a password in it.
- `seconds` is the deadline of the whole request, also for a server that sends single bytes.
- An answer is read up to `max_bytes`.
- A redirect is followed within the origin only (scheme, host and port).
- A token goes over http to this machine only. `STAR_PLAIN_HTTP` names other origins that may have it, such as a service in the cluster:
  `STAR_PLAIN_HTTP="http://vllm.models:8000"`; several are separated by spaces.
- No error shows more of an address than its origin, because the rest may be a secret.
"""

import contextlib
import ipaddress
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

from star.errors import InputError
from star.progress import print_line

if TYPE_CHECKING:
    import requests

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
UNAVAILABLE_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class NoAnswerError(Exception):
    """The server gave no whole answer: no connection, no end before the deadline, too much, or a redirect elsewhere."""


class RedirectError(NoAnswerError):
    """The server redirects to where this request does not go."""


class BadStatusError(Exception):
    """The server answered with a status that is no success."""

    def __init__(self, answer: "Answer") -> None:
        super().__init__(f"HTTP {answer.status}: {answer.start()}")
        self.status, self.answer = answer.status, answer


@dataclass(frozen=True)
class Answer:
    """What a server sent."""

    status: int
    headers: Mapping[str, str]  # names in any case
    content: bytes

    def start(self) -> str:
        """The first 200 characters of the body in one line, for an error."""
        return " ".join(self.content[:800].decode("utf-8", "replace").split())[:200]

    def document(self) -> Any:
        """The body as JSON.

        Raises:
            NoAnswerError: it is not JSON.
        """
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise NoAnswerError(f"the answer is not JSON: {self.start()!r}") from error

    def checked(self) -> "Answer":
        """The answer itself.

        Raises:
            BadStatusError: its status is no success.
        """
        if not 200 <= self.status < 300:
            raise BadStatusError(self)
        return self


def origin(url: str) -> str:
    """Scheme, host and port of an address, which is all of it that may be shown."""
    try:
        parts = urlsplit(url)
        return _origin(parts) if parts.scheme and parts.hostname else NO_ORIGIN
    except ValueError:
        return NO_ORIGIN


def check_address(url: str, *, token: bool, name: str) -> None:
    """Checks that a request to an address may be sent, with a token or without.

    Args:
        name: what the user knows the address by, such as STAR_WEBHOOK; for the error.

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
    if token and parts.scheme == "http" and not _is_loopback(parts) and _origin(parts) not in _consented():
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
) -> Answer:
    """Sends one request and returns the whole answer, whatever its status.

    Args:
        name: what the user knows the address by, for errors.
        seconds: until the answer has to be there, from the name's resolution to the last byte.
        token: sent as a bearer token.
        body: sent as JSON.
        max_bytes: of the answer's body.
        follow: whether redirects within the origin are followed. Else such an answer is returned.

    Raises:
        InputError: the address may not be used (check_address).
        NoAnswerError: there is no whole answer; the message has no address in it.
    """
    deadline = time.monotonic() + seconds
    for _ in range(MAX_REDIRECTS + 1):
        check_address(url, token=token is not None, name=name)
        exchange = _Exchange(method, url, token=token, body=body, max_bytes=max_bytes, deadline=deadline)
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
        stop: called at the deadline, so that the thread ends.
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
    thread.join(seconds)
    if results:
        return results[0]
    if errors:
        raise errors[0]
    if stop:
        stop()
    raise NoAnswerError(f"it did not answer within {seconds if said is None else said:g} s")


def retry_pause(name: str, seconds: float, answer: Answer | None) -> float:
    """Returns the seconds to wait before the next attempt, and prints a line where the server asks for a long pause.

    Args:
        name: the server, for the line.
        seconds: the pause without the server's wish.
        answer: what the server sent, whose Retry-After counts in its form as a number of seconds.
    """
    try:
        asked = float(answer.headers.get("Retry-After", "") if answer else "")
    except ValueError:
        asked = 0.0
    asked = 0.0 if math.isnan(asked) else max(0.0, asked)
    pause = min(max(seconds, asked), LONGEST_PAUSE)
    if answer and asked >= SAID_PAUSE:
        shorter = f", which asks for {asked:g} s" if asked > pause else ""
        print_line(f"{name} answers HTTP {answer.status}{shorter}: it is asked again in {pause:g} s")
    return pause


@dataclass
class _Exchange:
    """One request and its answer, in a thread that `stop` ends."""

    method: str
    url: str
    token: str | None
    body: object
    max_bytes: int
    deadline: float
    sockets: list[socket.socket] = field(default_factory=list)
    stopped: bool = False

    def run(self) -> Answer:
        import requests

        headers = {"Accept-Encoding": "identity"} | (
            {"Content-Type": "application/json"} if self.body is not None else {}
        )
        data = None if self.body is None else json.dumps(self.body).encode()
        # A proxy of the environment would see the token of a server on this machine.
        local = _is_loopback(urlsplit(self.url))
        proxies: Any = dict.fromkeys(("http", "https", "all")) if local else None
        seconds = max(0.1, self.deadline - time.monotonic())
        try:
            with requests.Session() as session:
                adapter = _recording_adapter(self.sockets)
                session.mount("http://", adapter)
                session.mount("https://", adapter)
                with session.request(
                    self.method,
                    self.url,
                    data=data,
                    headers=headers,
                    auth=self._authorize,
                    proxies=proxies,
                    timeout=seconds,
                    stream=True,
                    allow_redirects=False,
                ) as response:
                    return Answer(response.status_code, response.headers, self._content(response))
        # ValueError, UnicodeError: addresses and headers that requests, urllib3 or http.client cannot read.
        except (requests.RequestException, OSError, ValueError) as error:
            # Only the kind: the message repeats the address, which may hold a secret.
            raise NoAnswerError(type(error).__name__) from None

    def stop(self) -> None:
        """Cuts the connection, which ends a thread that reads from it."""
        self.stopped = True
        for connected in self.sockets:
            # A TLS socket's own method is not for other threads.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def _authorize(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        """Adds the token. With a function of its own for it, requests does not look into ~/.netrc."""
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request

    def _content(self, response: "requests.Response") -> bytes:
        content = bytearray()
        for chunk in response.iter_content(65536):
            content += chunk
            if len(content) > self.max_bytes:
                raise NoAnswerError(f"the answer has more than {self.max_bytes / 2**20:g} MiB")
            if self.stopped:
                raise NoAnswerError("stopped")
        return bytes(content)


def _recording_adapter(sockets: list[socket.socket]) -> "requests.adapters.HTTPAdapter":
    """An adapter that lists the sockets of its connections, so that another thread can cut them."""
    import requests
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Http(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class Https(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = Https

    class Adapter(requests.adapters.HTTPAdapter):
        def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
            for manager in (self.poolmanager, *self.proxy_manager.values()):
                manager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
            return super().get_connection_with_tls_context(*arguments, **options)

    return Adapter()


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
