"""`make lint` fails on what it is there to find: each test plants one fault in a copy of the checkout."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKED = (
    "star",
    "components",
    "pipelines",
    "benchmarks",
    "configs",
    "docs",
    "pyproject.toml",
    ".importlinter",
    "zensical.toml",
)
PROGRAMS = Path(sys.executable).parent

Lint = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lint(tmp_path: Path) -> Lint:
    """Copies what is checked, adds text to one file of the copy and runs one command of `make lint` there."""

    def plant_and_run(file: str, text: str, *command: str) -> subprocess.CompletedProcess[str]:
        if not (PROGRAMS / command[0]).is_file():
            pytest.skip(f"needs {command[0]}: make install")
        for name in CHECKED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, tmp_path / name, **({"symlinks": True} if source.is_dir() else {}))
        with (tmp_path / file).open("a", encoding="utf-8") as planted:
            planted.write(text)
        return subprocess.run(
            [str(PROGRAMS / command[0]), *command[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return plant_and_run


def test_an_import_upwards_is_found(lint: Lint) -> None:
    done = lint("star/chat.py", "\nfrom star.ckd.loss import fused_linear_ckd\n", "lint-imports")
    assert done.returncode == 1
    assert "star.chat is not allowed to import star.ckd" in done.stdout


def test_a_loop_inside_a_room_is_found(lint: Lint) -> None:
    done = lint("star/topk/codec.py", "\nfrom star.topk.store import TopKStore\n", "lint-imports")
    assert done.returncode == 1
    assert "No cycles are allowed in star.topk" in done.stdout


def test_a_new_file_at_the_top_without_a_floor_is_found(lint: Lint) -> None:
    done = lint("star/helpers.py", "", "lint-imports")
    assert done.returncode == 1
    assert "helpers" in done.stdout


def test_dead_code_is_found(lint: Lint) -> None:
    done = lint("star/chat.py", "\n\ndef nobody_calls_this() -> None:\n    return None\n", "vulture")
    assert done.returncode
    assert "nobody_calls_this" in done.stdout


def test_links_and_anchors_that_lead_nowhere_are_found(lint: Lint) -> None:
    planted = "\n[a page](nowhere.md) [a place](data.md#no-such-place)\n"
    done = lint("docs/index.md", planted, "zensical", "build", "--clean", "--strict")
    assert done.returncode
    assert "page does not exist" in done.stderr + done.stdout
    assert "anchor does not exist" in done.stderr + done.stdout


@pytest.mark.slow
def test_a_type_error_is_found(lint: Lint) -> None:
    done = lint("star/chat.py", '\nWRONG: int = "text"\n', "mypy")
    assert done.returncode == 1
    assert re.search(r"star/chat\.py:\d+: error: Incompatible types in assignment", done.stdout)
    assert "Found 1 error in 1 file" in done.stdout


LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]+)?\)")


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_the_links_of_the_pages_outside_the_site_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target, _ in LINK.findall(text)]
    assert [target for target in targets if not (ROOT / target).exists()] == []
