"""The wheel: what is in it, and that it works away from the source."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from star.config.load import PROFILES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_claims_one_name_and_carries_its_profiles(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"star"}
    profiles = {Path(name).stem for name in names if name.startswith("star/configs/") and name.endswith(".yaml")}
    assert profiles == set(PROFILES)
    for file in (
        "star/configs/tools.json",
        "star/evaluation/bfcl/requirements.txt",
        "star/components/distill.py",
        "star/pipelines/local_runner.py",
    ):
        assert file in names


@pytest.mark.slow
def test_the_wheel_compiles_the_pipeline_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed without the source tree on the path, in a folder with nothing in it."""
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import star; from star.cli.main import main; print(star.__file__); main()"
    command = [sys.executable, "-c", code, "pipeline", "compile", "--config", "tiny", "--output", "star.yaml"]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    assert (empty / "star.yaml").is_file()
