"""The pipeline with every task in a container: as the image's unprivileged user, without network and capabilities.

`make test-containers` builds the image and runs this. kfp.local's DockerRunner uses podman's socket, which speaks Docker's API.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.types import Mount
from kfp import local

from star.config.load import load_config
from star.folders.manifest import MANIFEST, open_input, read_manifest
from star.pipelines.star_pipeline import build_cluster_pipeline
from star.stages import STAGES

IMAGE = os.environ.get("STAR_TEST_IMAGE", "")
pytestmark = pytest.mark.skipif(not IMAGE, reason="needs the image: make test-containers")
ROOT = Path(__file__).resolve().parents[2]
USER = 10001


def podman(*words: str) -> list[str]:
    """A podman command that uses the storage of these tests."""
    script = 'cd "$1"; source tests/containers/storage.sh; shift; exec podman "${place[@]}" "$@"'
    return ["bash", "-c", script, "podman", str(ROOT), *words]


def in_container(*command: str, network: str = "none") -> subprocess.CompletedProcess:
    run = podman("run", "--rm", f"--network={network}", "--read-only", "--cap-drop=ALL", IMAGE, *command)
    return subprocess.run(run, capture_output=True, text=True)


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Docker API that runs containers from the storage of these tests."""
    address = f"unix://{tmp_path_factory.mktemp('podman')}/podman.sock"
    service = subprocess.Popen(podman("system", "service", "--time=0", address))
    deadline = time.monotonic() + 30
    while not Path(address.removeprefix("unix://")).exists():
        assert service.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    yield address
    service.terminate()
    service.wait()


def test_the_image_runs_as_its_own_user_without_build_tools() -> None:
    done = in_container("sh", "-c", "id -u; for tool in gcc cc g++ make ld; do command -v $tool; done; true")
    assert done.stdout == f"{USER}\n", done.stderr


def test_the_image_has_the_commit_as_a_label() -> None:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    labels = subprocess.run(podman("image", "inspect", IMAGE), capture_output=True, text=True)
    assert json.loads(labels.stdout)[0]["Labels"]["org.opencontainers.image.revision"] == commit


def test_the_star_command_runs() -> None:
    assert "distil" in in_container("star", "--help").stdout.lower()


def test_every_task_runs_in_a_container(socket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the cluster pipeline of STAR_TEST_PROFILE (default: tiny): pre-flight, stages, exit handler."""
    for folder in ("pipeline", "shared"):
        (tmp_path / folder).mkdir()
        os.chown(tmp_path / folder, USER, USER)
    monkeypatch.setenv("DOCKER_HOST", socket)
    local.init(
        runner=local.DockerRunner(
            network_mode="none",
            read_only=True,
            tmpfs={"/tmp": "exec"},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mounts=[Mount("/var/star", str(tmp_path / "shared"), type="bind")],
            environment={
                "STAR_HOME": "/var/star/home",
                "STAR_WORK": "/var/star/work",
                "HOME": "/tmp",
                "OMP_NUM_THREADS": "1",
            },
        ),
        pipeline_root=str(tmp_path / "pipeline"),
    )
    config = load_config(os.environ.get("STAR_TEST_PROFILE", "tiny"))
    build_cluster_pipeline(config, image=IMAGE)()

    # kfp counts a container that has ended before it is waited for as a success, so the folders that the tasks wrote are checked.
    folders = {read_manifest(file.parent).stage: file.parent for file in (tmp_path / "pipeline").rglob(MANIFEST)}
    assert set(folders) == {stage.name for stage in STAGES}
    for name, folder in folders.items():
        manifest = open_input(folder, stage=name)
        assert {file.stat().st_uid for file in folder.rglob("*")} == {USER}
        assert manifest.origin.get("image") == IMAGE
    registration = json.loads((folders["register"] / "registration.json").read_text())
    assert registration["version"] == 1
    if registration["champion"] == 1:
        _the_serving_pod_fetches_the_champion(tmp_path / "shared", folders["refine"])


def _the_serving_pod_fetches_the_champion(shared: Path, model: Path) -> None:
    """The command of deploy/serving's init container downloads the registered weights by their alias."""
    import yaml

    service = yaml.safe_load((ROOT / "deploy" / "serving" / "champion.yaml").read_text())
    [fetch] = service["spec"]["predictor"]["initContainers"]
    (shared / "models").mkdir()
    os.chown(shared / "models", USER, USER)
    mounts = [f"--volume={shared}:/var/star", f"--volume={shared}/models:/models", "--tmpfs=/tmp"]
    variables = ["--env=MLFLOW_TRACKING_URI=sqlite:////var/star/home/mlflow.db", "--env=HOME=/tmp"]
    run = podman(
        "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", *mounts, *variables, IMAGE, *fetch["command"]
    )
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights = "model.safetensors"
    assert (shared / "models" / weights).read_bytes() == (model / weights).read_bytes()
