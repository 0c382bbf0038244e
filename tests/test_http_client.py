"""The client for servers that are not trusted, against real sockets on loopback that do what no server should."""

import contextlib
import email.utils
import gzip
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from star.cluster.webhook import notify_webhook
from star.data.endpoint import Endpoint
from star.errors import InputError
from star.http_client import RedirectError, check_address, origin, retry_pause, send
from star.http_exchange import Answer, NoAnswerError
from star.modeling.generation import Sequence
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
    drip(connection)


def drip_body(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    drip(connection)


def endless(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"a" * 65536)


def drip_handshake(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"\x16\x03\x03\x40\x00")  # a TLS record of 16 KiB
    drip(connection)


def drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"\x02")
        time.sleep(0.05)


def without_end(head: bytes, piece: bytes) -> Callable[[socket.socket, bytes], None]:
    def reply(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    return reply


BOMB = gzip.compress(bytes(64 * 2**20))
UNBOUNDED = {
    "redirect": without_end(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", b"a" * 65536),
    "length of a chunk": without_end(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"1" * 65536),
    "trailer": without_end(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"1" * 65536),
    "header": without_end(b"HTTP/1.1 200 OK\r\nX: ", b"1" * 65536),
    "headers": without_end(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n" * 1000),
    "status": without_end(b"", b"HTTP/1.1" * 1000),
    "gzip": lambda connection, request: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + BOMB),
}


def redirecting(target: str, status: int = 302) -> Callable[[socket.socket, bytes], None]:
    head = f"HTTP/1.1 {status} Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
    return lambda connection, request: connection.sendall(head.encode())


@pytest.mark.parametrize("through_proxy", [False, True])
@pytest.mark.parametrize(("reply", "scheme"), [(drip_head, "http"), (drip_body, "http"), (drip_handshake, "https")])
def test_a_server_that_sends_single_bytes_is_cut_at_the_deadline(
    reply: Callable, scheme: str, through_proxy: bool, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    url = serve(reply).replace("http", scheme)
    if through_proxy:
        monkeypatch.setenv(f"{scheme}_proxy", url)
        url = f"{scheme}://far.invalid/"
    with pytest.raises(NoAnswerError, match=r"did not answer within 0\.5 s"):
        send("GET", url, name="x", seconds=0.5)
    until = time.monotonic() + 5
    # Neither the client's thread nor the server's is left.
    while threading.active_count() > before + 1 and time.monotonic() < until:
        time.sleep(0.05)
    assert threading.active_count() <= before + 1


def test_what_is_connected_after_the_deadline_sends_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    url = serve(lambda connection, request: asked.append(request))
    resolve = socket.getaddrinfo

    def resolve_late(*arguments: object, **options: object) -> object:
        time.sleep(0.6)
        return resolve(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_late)
    with pytest.raises(NoAnswerError, match="did not answer"):
        send("POST", url, name="x", seconds=0.2, token="the-token", body={})
    time.sleep(1)
    assert b"".join(asked) == b""


def test_an_interrupt_ends_the_wait_at_once(serve: Serve) -> None:
    url = serve(lambda connection, request: time.sleep(90))
    # A program that a shell starts in the background ignores the interrupt, and so do its children.
    restore = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{restore}\nfrom star.http_client import send\nimport requests\nprint(flush=True)\nsend('GET', {url!r}, name='x', seconds=90)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        # The server would answer after 90 s only; a loaded machine takes its time to end a process.
        assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_no_part_of_an_answer_is_read_without_a_bound(kind: str, serve: Serve) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(NoAnswerError, match=r"more than 1 MiB|Error"):
            send("GET", serve(UNBOUNDED[kind]), name="x", seconds=20, max_bytes=2**20)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_a_packed_answer_within_the_bound_is_unpacked(serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    answer = send("GET", serve(lambda c, request: c.sendall(head + gzip.compress(b"{}"))), name="x", seconds=20)
    assert answer.document() == {}


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
    others = ("127.0.0.1.evil.invalid", "localhost.evil.invalid", "localhost.", "10.0.0.1", "127.1", "2130706433")
    for address in (service, *(f"http://{host}/" for host in others)):
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
        "http:///hidden",
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


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1@evil", "[::1]evil", r"localhost\.evil", "localhost;evil", "localhost%2eevil", "[::1%25lo]", "ho st"],
)
def test_a_host_that_parsers_read_differently_is_no_address(host: str) -> None:
    with pytest.raises(InputError, match="STAR_WEBHOOK"):
        check_address(f"http://{host}/x", token=False, name="STAR_WEBHOOK")


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
    assert 20 < asking(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 30
    for unreadable in ("Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 99 Dec 99999999999 23:59:59 GMT", "-inf", ""):
        assert asking(unreadable) == 0.5
    assert [asking(far) for far in ("Fri, 31 Dec 9999 23:59:59 GMT", "1" * 60000)] == [60, 60]


def test_no_error_repeats_the_key(serve: Serve) -> None:
    def reply(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 401 No\r\n\r\nno such key: " + request)

    answer = send("GET", serve(reply), name="x", seconds=5, token="planted-key")
    assert "no such key" in answer.start() and "planted-key" not in answer.start()
    with pytest.raises(InputError, match="has a line break"):
        send("GET", "http://127.0.0.1:9", name="x", seconds=5, token="planted-key\n")


def test_a_file_of_certificates_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such.pem")
    with pytest.raises(NoAnswerError, match=r"/no/such\.pem") as refused:
        send("GET", "https://127.0.0.1:9/hidden", name="x", seconds=5)
    assert "hidden" not in str(refused.value)


def test_the_key_of_an_endpoint_stays_with_its_origin(serve: Serve) -> None:
    asked: list[bytes] = []
    other = serve(lambda connection, request: asked.append(request))
    with pytest.raises(InputError, match=r"refuses the request .*redirects to"):
        Endpoint(f"{serve(redirecting(other))}/v1", "m", key="planted-key").ask([], temperature=0, seed=1, max_tokens=5)
    assert asked == []
    with pytest.raises(InputError, match="without encryption"):
        Endpoint("http://vllm.models:8000/v1", "m", key="planted-key").ask([], temperature=0, seed=1, max_tokens=5)


def test_a_server_that_sends_without_end_is_named_and_not_asked_again(serve: Serve) -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        endless(connection, request)

    url = serve(answer)
    with pytest.raises(InputError, match=r"does not answer .*more than 16 MiB"):
        TeacherServer(url)
    with pytest.raises(InputError, match=r"refuses the request .*more than 4 MiB"):
        Endpoint(url, "m").ask([], temperature=0, seed=1, max_tokens=5)
    assert len(asked) == 2


WORDS = st.sampled_from(
    ["data", "id", "choices", "index", "finish_reason", "stop", "token_ids", "prompt_logprobs", "logprob", "text", "1"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.just("\x1b[2J"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
CHOICE = {"index": 0, "finish_reason": "stop", "token_ids": [1], "prompt_logprobs": [None, {"1": {"logprob": -0.1}}]}


@given(replaced=st.sampled_from([*CHOICE, "choices", "data", "all"]), value=VALUES)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_of_another_form_is_an_error_of_the_server(
    replaced: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    document: object = {"data": [{"id": "m"}], "choices": [CHOICE | {replaced: value}]} | {replaced: value}
    document = value if replaced == "all" else document

    def answer(method: str, url: str, **options: object) -> Answer:
        return Answer(200, {}, json.dumps(document).encode())

    monkeypatch.setattr("star.teacher.openai_server.send", answer)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"hi": 0, "</s>": 1}, unk_token="</s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    with contextlib.suppress(InputError):
        teacher = TeacherServer("http://127.0.0.1:9")
        with contextlib.suppress(InputError):
            teacher.generate(tokenizer, ["hi"], samples=1, temperature=1.0, max_new_tokens=3, seed=1)
        teacher.top_k([Sequence([1], [1])], k=1)
