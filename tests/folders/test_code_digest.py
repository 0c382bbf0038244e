"""The code digest: what a stage can reach, and nothing else; the code of it, and not its words."""

import ast
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import star.chat
import star.folders.code_digest
from star import stages
from star.folders.code_digest import canonical, code_digest, reachable_modules

# The digest must be the same under every supported Python: these values were taken on 3.11 and hold on all of them.
SAMPLE = """
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Point:
    '''Where something is.'''

    x: int = 1  # a field is code: its annotation counts

    def shown(self, path: "Path", *, digits: int = 2) -> str:
        '''As text.'''
        pass
        match digits:
            case 0 | 1:
                return f"{path!r:>{digits}} at {self.x:.2f}" "and" f" {digits = }{self.x:}"
            case _:
                return f"\N{SNOWMAN} {1e-3} {b'x'!s} {...} {-2j} \U0001fae9"


async def every(*items, **options):
    async for item in items:
        yield [x async for x in item if (y := x)], lambda a, /, b=None: (a, *b)
    try:
        raise ValueError from None
    except* ValueError as error:
        del error
"""
SAMPLE_DIGEST = "ab081f74c324f8c200e4b14afac7ae884d4cc049202bbc82329d364c4b85187f"


def digest_of_text(text: str) -> str:
    return star.folders.code_digest._code_of(ast.parse(text))


def test_the_digest_is_the_same_on_every_python() -> None:
    assert digest_of_text(SAMPLE) == SAMPLE_DIGEST


def test_words_and_formatting_do_not_count() -> None:
    reworded = (
        SAMPLE.replace("Where something is.", "A point.")
        .replace("# a field is code: its annotation counts", "# a field")
        .replace('(self, path: "Path", *, digits: int = 2) -> str', "(\n        self, path, *, digits=2\n    )")
        .replace("        pass\n", "")
        .replace("    from pathlib import Path\n", "    from pathlib import PurePath as Path\n")
    )
    assert reworded != SAMPLE
    assert digest_of_text(reworded) == SAMPLE_DIGEST


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("= 1", "= 2"),
        ("x: int", "x: float"),
        (":.2f", ":.3f"),
        ("digits: int = 2", "digits: int = 3"),
        ("!r:>", "!s:>"),
        ("except*", "except"),
    ],
)
def test_code_counts(old: str, new: str) -> None:
    assert old in SAMPLE
    assert digest_of_text(SAMPLE.replace(old, new)) != SAMPLE_DIGEST


def test_equal_f_strings_are_equal_however_they_are_cut() -> None:
    assert canonical(ast.parse("""f"a{b}c" "d" f"{e}\"""")) == canonical(ast.parse("""f"a{b}cd{e}\""""))


def test_a_stage_reaches_its_rooms() -> None:
    modules = reachable_modules(stages.refine)
    assert {"star.simrl.trainer", "star.rewards.similarity", "star.chat", "star.modeling.training"} <= set(modules)
    assert "star.ckd.loss" not in modules
    assert not any(star.folders.code_digest._is_left_out(module) for module in modules)


def test_every_star_module_named_in_a_stage_is_found() -> None:
    for stage in stages.STAGES:
        named = {
            node.module
            for node in ast.walk(ast.parse(inspect.getsource(stage.function)))
            if isinstance(node, ast.ImportFrom) and node.module.startswith("star.")
        }
        assert named, stage.name
        assert {module for module in named if not star.folders.code_digest._is_left_out(module)} <= set(
            reachable_modules(stage.function)
        )


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], set[str]]:
    """Replaces text in a file of a copy of the package; gives the stages whose digest that changes."""

    def edit(file: str, old: str, new: str) -> set[str]:
        before = {stage.name: code_digest(stage.function) for stage in stages.STAGES}
        copy = tmp_path / "star"
        shutil.copytree(star.folders.code_digest.ROOT, copy)
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new))
        monkeypatch.setattr(star.folders.code_digest, "ROOT", copy)
        return {stage.name for stage in stages.STAGES if code_digest(stage.function) != before[stage.name]}

    return edit


def test_an_edit_of_code_changes_the_digest_of_the_stages_that_reach_it(edited) -> None:
    changed = edited("rewards/similarity.py", "FORMAT_ERROR = ", "FORMAT_ERROR = 1 * ")
    assert {"refine", "evaluate", "rollout", "refine-teacher"} <= changed
    assert "synthesize" not in changed


def test_an_edit_of_the_bfcl_categories_evaluates_again(edited) -> None:
    """They are kept with the configuration, which is left out, but the scores of BFCL are means over their groups."""
    assert edited("config/bfcl_categories.py", '"simple_java", ', "") == {"evaluate", "register"}


def test_an_edit_of_the_configuration_changes_no_digest(edited) -> None:
    assert edited("config/evaluation.py", "Field(0.5, ", "Field(0.6, ") == set()


def test_an_edit_of_words_changes_no_digest(edited) -> None:
    first_line = inspect.getdoc(star.chat).splitlines()[0]
    assert edited("chat.py", first_line, f"# Reworded.\n\n{first_line}") == set()


def test_a_left_out_module_that_does_not_exist_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(star.folders.code_digest, "LEFT_OUT", (*star.folders.code_digest.LEFT_OUT, "star.renamed"))
    with pytest.raises(RuntimeError, match=r"star\.renamed"):
        code_digest(stages.refine)
