"""A tracking database of its own for every test that asks for one."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from star.registry import tracking

VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "RANK")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to create its tables: once for all tests, which get copies."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        patch.setenv("STAR_HOME", str(folder))
        tracking.connect()
    return folder / "mlflow.db"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No tracking in the environment but a home in `tmp_path`; no run active before or after."""
    before = dict(os.environ)
    for name in (*VARIABLES, tracking.PARENT_VARIABLE):
        os.environ.pop(name, None)
    monkeypatch.setenv("STAR_HOME", str(tmp_path))
    yield monkeypatch
    if "mlflow" in sys.modules:
        import mlflow

        assert mlflow.active_run() is None, "a test left a run open"
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, environment: pytest.MonkeyPatch) -> Path:
    """The home of an empty tracking database."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that has the shape of a Hugging Face model."""
    folder = tmp_path / "model"
    (folder / "extra").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "extra" / "chat_template.jinja").write_text("{{ messages }}")
    return folder
