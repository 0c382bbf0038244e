"""The cluster of the tests: the API and the controllers of trainer_server.py."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.trainer_server import Kubernetes


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Kubernetes]:
    server = Kubernetes(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.close()
