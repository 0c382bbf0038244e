"""The code digest: what a stage can reach, and nothing else."""

import ast
import inspect

import star.code
from star import stages
from star.code import OUTSIDE, code_digest, reachable_modules


def test_a_stage_reaches_its_rooms() -> None:
    modules = reachable_modules(stages.refine)
    assert {"star.simrl.trainer", "star.simrl.reward", "star.chat", "star.training"} <= set(modules)
    assert "star.ckd.loss" not in modules
    assert not OUTSIDE & set(modules)


def test_every_star_module_named_in_a_stage_is_found() -> None:
    for stage in stages.STAGES:
        named = {
            node.module
            for node in ast.walk(ast.parse(inspect.getsource(stage.function)))
            if isinstance(node, ast.ImportFrom) and node.module.startswith("star.")
        }
        assert named, stage.name
        assert named - OUTSIDE <= set(reachable_modules(stage.function))


def test_an_edit_changes_the_digest_of_the_stages_that_reach_it(tmp_path, monkeypatch) -> None:
    import shutil

    copy = tmp_path / "star"
    shutil.copytree(star.code.ROOT, copy)
    before = {stage.name: code_digest(stage.function) for stage in stages.STAGES}
    with (copy / "simrl" / "reward.py").open("a") as file:
        file.write("\n# edited\n")
    monkeypatch.setattr(star.code, "ROOT", copy)
    changed = {stage.name for stage in stages.STAGES if code_digest(stage.function) != before[stage.name]}
    assert {"refine", "evaluate", "rollout", "refine-teacher"} <= changed
    assert "synthesize" not in changed
