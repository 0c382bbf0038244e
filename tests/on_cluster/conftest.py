"""What the tests on a cluster share."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test. The tracking server stays that of the environment, unlike in the other tests."""
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
