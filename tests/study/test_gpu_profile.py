"""The profile of the study on a card, with models and lengths of a test: every arm gives a student that can be evaluated."""

from pathlib import Path

import pytest
import yaml

from star.config.load import load_config
from star.study.arms import SHORTEN
from star.study.grid import cells_of
from star.study.work import all_work

TRAINING = {"batch_size": 2, "micro_batch_size": 1, "steps": 2, "save_steps": 1}
SIMRL = {
    "steps": 1,
    "prompts_per_step": 2,
    "num_generations": 2,
    "micro_batch_size": 2,
    "max_new_tokens": 8,
    "save_steps": 1,
}
# What is smaller than in the profile; everything else is as it stands there.
SHRUNK = {
    "max_prompt_tokens": 512,
    "data": {"generated_rows": 60, "heldout_rows": 4, "tools": "star:tools.json"},
    "rollout": {"prompts": 4, "samples": 2, "max_new_tokens": 32, "batch_size": 4},
    "topk": {"top_k": 16, "batch_tokens": 2048},
    "distill": {**TRAINING, "top_m": 16},
    "refine": SIMRL,
    "evaluate": {"samples": 8, "max_new_tokens": 16, "batch_size": 4},
}


@pytest.mark.slow
def test_every_arm_of_the_profile_gives_a_student(finished: dict[str, Path], tmp_path: Path) -> None:
    base = str(finished["refine-teacher"])
    profile = {
        "extends": str(Path(__file__).parents[2] / "configs/study-gpu.yaml"),
        **SHRUNK,
        "teacher": {"base": base, "add_format_tokens": False, "sft": TRAINING, "refine": SIMRL},
        "student": {"base": base, "layers": 2, "heal": TRAINING},
    }
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    config = load_config(tmp_path / "profile.yaml")
    assert config.precision == "bf16" and config.study is not None
    wanted = {
        "none+similarity",
        "ckd+none",
        "arms/cold-start+none",
        "arms/on-policy-fkl+none",
        "arms/on-policy-rkl+none",
    }
    cells = [cell for cell in cells_of(config) if cell.seed == config.study.seeds[0] and cell.name in wanted]
    assert {cell.name for cell in cells} == wanted
    work = all_work(one for cell in cells for one in cell.work)
    assert sum(one.stage == SHORTEN for one in work) == 1
    (tmp_path / "home" / "study").mkdir(parents=True)
    for one in work:
        one.run()
    for cell in cells:
        before = cell.evaluation_before_rl.metrics()
        assert {"model_pass_at_1", "model_pass_at_8", "model_entropy"} <= before.keys()
        assert before["model_entropy"] > 0
