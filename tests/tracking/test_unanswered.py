"""An MLflow that is slow, down or broken after it had answered: one sentence with its address and the cure, and few requests."""

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from star.errors import InputError, UnavailableError
from star.registry.tables import print_versions
from star.tracking.server import connect, retry_write


class Server(ThreadingHTTPServer):
    """Answers the first request as MLflow does, and the others as it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.then, self.requests = "answers", 0
        self.uri = f"http://user:secret@127.0.0.1:{self.server_address[1]}"


class _Request(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.then == "slow":
            time.sleep(3)
        status, body = (500, b"<h1>broken</h1>") if self.server.then == "broken" else (200, b"{}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(environment: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        Thread(target=running.serve_forever, args=[0.05], daemon=True).start()
        environment.setenv("MLFLOW_TRACKING_URI", running.uri)
        environment.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        environment.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
        connect()  # without the short timeout, which a busy machine would miss
        environment.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        yield running
        running.shutdown()


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("slow", r"did not answer within 1 s \(2 tries\): run again .* MLFLOW_HTTP_REQUEST_TIMEOUT=4"),
        ("broken", r"answers with server errors \(2 tries\): look into its log"),
    ],
)
def test_a_command_ends_in_a_sentence_after_a_bounded_number_of_tries(server: Server, then: str, said: str) -> None:
    server.then, server.requests = then, 0
    with pytest.raises(UnavailableError, match=rf"^MLflow at http://127\.0\.0\.1:\d+ {said}") as raised:
        print_versions("star")
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)
    assert server.requests == 2


def test_so_does_one_whose_server_has_gone(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(
        UnavailableError, match=r"cannot be used: start the server or correct MLFLOW_TRACKING_URI .*refused"
    ):
        print_versions("star")


def test_a_write_is_tried_again_a_few_times(server: Server) -> None:
    server.then, server.requests = "broken", 0
    client = connect()
    with pytest.raises(InputError, match="answers with server errors"):
        retry_write(lambda: client.set_registered_model_tag("star", "key", "value"))
    assert server.requests == 10
