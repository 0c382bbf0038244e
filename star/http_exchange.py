"""Sends one request to a server that is not trusted, and reads its answer within bounds. http_client.py checks where it may go.

The request runs in a thread of its own (`within` in http_client.py), and another thread can cut its connection at any moment.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests


class NoAnswerError(Exception):
    """The server gave no whole answer: no connection, no end before the deadline, too much, or a redirect elsewhere."""


class TooLargeError(NoAnswerError):
    """The answer has more bytes than it may, and so would the next one."""


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


@dataclass
class Exchange:
    """One request and its answer, in a thread that `stop` ends."""

    method: str
    url: str
    token: str | None = field(repr=False)
    body: object
    max_bytes: int
    deadline: float
    use_proxies: bool  # those of the environment
    # Duplicates of the connections' sockets. A TLS socket is not for other threads, and takes the plain one's descriptor away.
    sockets: list[socket.socket] = field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        import requests  # noqa: F401 - before the thread, which must not hold the lock of an import when it is left alone

    def run(self) -> Answer:
        """Sends the request and reads the answer.

        Raises:
            NoAnswerError: there is no whole answer.
        """
        import requests
        from urllib3.exceptions import HTTPError

        headers = {"Accept-Encoding": "identity", "User-Agent": "star"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            with requests.Session() as session:
                # Proxies and certificates of the environment.
                settings: Any = session.merge_environment_settings(self.url, {}, True, True, None)
                if not self.use_proxies:
                    settings["proxies"] = {}
                request = requests.Request(self.method, self.url, headers=headers, json=self.body).prepare()
                # Not session.send, which reads the body of a redirect without a bound, and looks into ~/.netrc.
                adapter = _watching_adapter(self._watch)
                with (
                    contextlib.closing(adapter),
                    adapter.send(request, timeout=max(0.1, self.deadline - time.monotonic()), **settings) as response,
                ):
                    return Answer(response.status_code, response.headers, self._content(response))
        except requests.Timeout:  # a little before the deadline itself would have ended it
            raise NoAnswerError("it did not answer in time") from None
        # Of these only the kind is shown: the message repeats the address, which may hold a secret.
        except (requests.RequestException, HTTPError, ValueError) as error:
            raise NoAnswerError(type(error).__name__) from None
        except OSError as error:  # such as a file of certificates that is missing
            raise NoAnswerError(str(error)) from None
        finally:
            for watched in self.sockets:
                watched.close()

    def stop(self) -> None:
        """Cuts the connection, which ends a thread that reads from it, also within a TLS handshake."""
        self.stopped = True
        for watched in list(self.sockets):
            _cut(watched)

    def _watch(self, connected: socket.socket) -> None:
        self.sockets.append(connected.dup())
        # The resolution of a name cannot be cut. What it ends after the deadline must not be sent any more.
        if self.stopped:
            _cut(connected)

    def _content(self, response: "requests.Response") -> bytes:
        content = bytearray()
        # Not iter_content, which takes lines of any length between the chunks of an answer.
        while chunk := response.raw.read(65536, decode_content=True):
            content += chunk
            if self.stopped or len(content) > self.max_bytes:
                raise TooLargeError(f"the answer has more than {self.max_bytes / 2**20:g} MiB")
        # A server may repeat what it got, in an error that is shown.
        is_error = self.token and not 200 <= response.status_code < 300
        return bytes(content.replace((self.token or "").encode(), b"***") if is_error else content)


def _cut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _watching_adapter(watch: Callable[[socket.socket], None]) -> "requests.adapters.HTTPAdapter":
    """An adapter that hands each socket to `watch` as soon as it is connected, so that another thread can cut it."""
    import requests
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Watched(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            connected = super()._new_conn()
            watch(connected)
            return connected

    class WatchedTls(Watched, HTTPSConnection):
        pass

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = Watched

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = WatchedTls

    def watched(manager: Any) -> Any:
        manager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
        return manager

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
            super().init_poolmanager(*arguments, **options)
            watched(self.poolmanager)

        def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
            manager = super().proxy_manager_for(proxy, **options)
            # A SOCKS proxy has connections of its own kind.
            return manager if proxy.startswith("socks") else watched(manager)

    return Adapter()
