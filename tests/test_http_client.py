"""The client for servers that are not trusted, against real sockets on loopback that do what no server should."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from star.cluster.webhook import notify_webhook
from star.data.endpoint import Endpoint
from star.errors import InputError
from star.http_client import Answer, NoAnswerError, RedirectError, check_address, origin, retry_pause, send
from star.teacher.openai_server import TeacherServer

Serve = Callable[[Callable[[socket.socket, bytes], None]], str]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that hands each connection, and the request that came, to a function; returns its address."""
    listening: list[socket.socket] = []

    def start(reply: Callable[[socket.socket, bytes], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listening.append(listener)

        def answer(connection: socket.socket) -> None:
            # The client may cut the connection.
            with connection, contextlib.suppress(OSError):
                reply(connection, connection.recv(65536))

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listening:
        listener.close()


def drip_head(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"a")
        time.sleep(0.05)


def drip_body(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"a")
        time.sleep(0.05)


def endless(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"a" * 65536)


def redirecting(target: str, status: int = 302) -> Callable[[socket.socket, bytes], None]:
    head = f"HTTP/1.1 {status} Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
    return lambda connection, request: connection.sendall(head.encode())


@pytest.mark.parametrize("reply", [drip_head, drip_body])
def test_a_server_that_sends_single_bytes_is_cut_at_the_deadline(reply: Callable, serve: Serve) -> None:
    before = threading.active_count()
    began = time.monotonic()
    with pytest.raises(NoAnswerError, match=r"did not answer within 0\.5 s"):
        send("GET", serve(reply), name="x", seconds=0.5)
    assert time.monotonic() - began < 2
    time.sleep(0.5)
    # Neither the client's thread nor the server's is left.
    assert threading.active_count() <= before + 1


def test_an_endless_answer_is_read_up_to_its_bound(serve: Serve) -> None:
    with pytest.raises(NoAnswerError, match="more than 1 MiB"):
        send("GET", serve(endless), name="x", seconds=20, max_bytes=2**20)


def test_a_redirect_to_another_origin_is_not_followed(serve: Serve) -> None:
    asked: list[bytes] = []
    other = serve(lambda connection, request: asked.append(request))
    for target in (f"{other}/latest/meta-data/", "file:///etc/passwd", "//evil.invalid/x"):
        with pytest.raises(RedirectError, match="is not followed"):
            send("GET", serve(redirecting(target)), name="x", seconds=5, token="planted-token")
    assert asked == []


def test_a_redirect_within_the_origin_is_followed(serve: Serve) -> None:
    def reply(connection: socket.socket, request: bytes) -> None:
        moved = b"HTTP/1.1 307 Moved\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(OK if request.startswith((b"GET /there", b"POST /there")) else moved)

    assert send("GET", serve(reply), name="x", seconds=5).document() == {}
    assert send("POST", serve(reply), name="x", seconds=5, body={"a": 1}).document() == {}
    with pytest.raises(RedirectError, match="redirects a POST by HTTP 302"):
        send("POST", serve(redirecting("/there")), name="x", seconds=5, body={})
    with pytest.raises(RedirectError, match="more than 5 times"):
        send("GET", serve(redirecting("/")), name="x", seconds=5)


def test_a_token_goes_over_http_to_loopback_or_by_consent_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:80/v1", "https://host/v1"):
        check_address(address, token=True, name="x")
    service = "http://vllm.models:8000/v1"
    check_address(service, token=False, name="x")
    for address in (service, "http://127.0.0.1.evil.invalid/", "http://localhost.evil.invalid", "http://10.0.0.1"):
        with pytest.raises(InputError, match=r"would get a key without encryption .*STAR_PLAIN_HTTP="):
            check_address(address, token=True, name="--endpoint")
    monkeypatch.setenv("STAR_PLAIN_HTTP", "http://other:80 http://VLLM.models:8000/")
    check_address(service, token=True, name="x")
    with pytest.raises(InputError, match="without encryption"):
        check_address("http://vllm.models:8001/v1", token=True, name="x")


@pytest.mark.parametrize(
    "url",
    [
        "http://[hidden/hook",
        "http://host:99999/hidden",
        "http://host/hidden path",
        "http://host/hidden\r\nX: y",
        "http://user:hidden@host/x",
        "ftp://host/hidden",
        "file:///hidden",
        "hidden",
        "",
    ],
)
def test_what_is_no_address_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InputError, match="STAR_WEBHOOK") as refused:
        send("GET", url, name="STAR_WEBHOOK", seconds=1)
    assert "hidden" not in str(refused.value).replace("http://[hidden", "") and "hidden" not in origin(url)


def test_the_credentials_of_netrc_and_a_proxy_are_not_used_for_loopback(
    serve: Serve, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password planted-password\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    asked: list[bytes] = []

    def reply(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        connection.sendall(OK)

    url = serve(reply)
    send("GET", url, name="x", seconds=5)
    send("GET", url, name="x", seconds=5, token="the-token")
    assert b"Authorization" not in asked[0] and b"Bearer the-token" in asked[1]


@pytest.mark.parametrize(
    "reply",
    [
        lambda connection, request: connection.sendall(b"hello there\r\n\r\n"),
        lambda connection, request: connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
        lambda connection, request: None,
        drip_head,
        redirecting("http://169.254.169.254/latest/meta-data/"),
    ],
    ids=["garbage", "500", "closed", "drip", "redirect"],
)
def test_a_webhook_is_one_line_whatever_it_does(
    reply: Callable, serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("star.cluster.webhook.TIMEOUT_SECONDS", 0.5)
    url = serve(reply)
    notify_webhook(f"{url}/services/hidden-path", {"run": "1"})
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"the webhook at {url} could not be notified") and "hidden-path" not in line


def test_retry_after_is_capped_and_said(capsys: pytest.CaptureFixture) -> None:
    def asking(seconds: str) -> float:
        return retry_pause("http://host", 0.5, Answer(503, {"Retry-After": seconds}, b""))

    assert [asking(seconds) for seconds in ("2", "-1", "nan", "soon")] == [2, 0.5, 0.5, 0.5]
    assert capsys.readouterr().err == ""
    assert [asking(seconds) for seconds in ("3600", "inf")] == [60, 60]
    assert "answers HTTP 503, which asks for 3600 s: it is asked again in 60 s" in capsys.readouterr().err
    assert retry_pause("http://host", 0.5, None) == 0.5


def test_the_key_of_an_endpoint_stays_with_its_origin(serve: Serve) -> None:
    asked: list[bytes] = []
    other = serve(lambda connection, request: asked.append(request))
    with pytest.raises(InputError, match=r"refuses the request .*redirects to"):
        Endpoint(f"{serve(redirecting(other))}/v1", "m", key="planted-key").ask([], temperature=0, seed=1, max_tokens=5)
    assert asked == []
    with pytest.raises(InputError, match="without encryption"):
        Endpoint("http://vllm.models:8000/v1", "m", key="planted-key").ask([], temperature=0, seed=1, max_tokens=5)


def test_a_teacher_server_that_sends_without_end_is_named(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.teacher.openai_server.RETRIES", 0)
    with pytest.raises(InputError, match=r"does not answer .*more than 16 MiB"):
        TeacherServer(serve(endless))
