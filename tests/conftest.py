"""Fixtures shared by all tests."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from star.config import Config

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidiactl").exists():  # without a GPU to compile for; read once, when Triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no failure; what must be fast is measured by its own test.
settings.register_profile("star", deadline=None)
settings.load_profile("star")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference values beside a developer's checkout; a user's clone has none, and the test is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the reference values of ../shared, which a clone does not carry")
    return folder


@pytest.fixture(scope="session")
def micro() -> "Config":
    """A configuration of real parts that runs all stages in seconds."""
    from star.config import load_config

    return load_config(Path(__file__).parent / "micro.yaml")


@pytest.fixture(scope="session")
def finished(micro: "Config", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every stage but the registration, each run once by its function. Tests read them and never write there."""
    from star.stages import STAGES

    root = tmp_path_factory.mktemp("finished")
    before = dict(os.environ)
    os.environ["STAR_HOME"] = str(root / "home")
    folders: dict[str, Path] = {}
    for stage in STAGES[:-1]:
        folders[stage.name] = root / stage.name
        stage.function(micro, **{key: folders[source] for key, source in stage.inputs.items()}, out=folders[stage.name])
    os.environ.clear()
    os.environ.update(before)
    return folders


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every test: no test writes to ./runs or to a tracking server of the environment."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_RUN_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "STAR_PARENT_RUN_ID",
        "STAR_WORK",
        "STAR_EVENTS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
