"""The stages that only a study has: what they train, and that they keep the stage contract."""

import json
from pathlib import Path

import pytest
import torch

from star import stages
from star.config.experiment import Config
from star.config.models import Student
from star.folders.manifest import read_manifest
from star.modeling.models import load_model
from star.study.arms import distill_on_policy, fine_tune_student, shorten_student


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in load_model(folder).parameters()])


def test_a_cold_start_trains_on_the_rows(micro: Config, finished: dict[str, Path], tmp_path: Path) -> None:
    base, data, out = finished["refine-teacher"], finished["synthesize"], tmp_path / "cold"
    metrics = fine_tune_student(micro, student=base, data=data, out=out)
    curve = json.loads((out / "sft_curve.json").read_text(encoding="utf-8"))
    assert curve[-1]["step"] == micro.distill.steps and metrics["sft_loss"] == curve[-1]["loss"]
    assert not torch.equal(weights(out), weights(base))
    manifest = read_manifest(out)
    assert manifest.stage == "fine-tune" and set(manifest.inputs) == {"student", "data"}


def test_an_on_policy_student_is_made_once(
    micro: Config, finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = micro.distill.model_copy(update={"kind": "rkl", "steps": 2, "learning_rate": 1e-3})
    short = micro.rollout.model_copy(update={"max_new_tokens": 8})
    config = micro.model_copy(update={"distill": settings, "rollout": short})
    inputs = {"student": finished["distill"], "teacher": finished["refine-teacher"], "data": finished["synthesize"]}
    made = distill_on_policy(config, **inputs, made_by="distill", out=tmp_path / "out")
    assert made["on_policy_loss"] > 0
    assert read_manifest(tmp_path / "out").stage == "distill-on-policy"
    capsys.readouterr()
    again = distill_on_policy(config, **inputs, made_by="distill", out=tmp_path / "out")
    assert again == made and "already done" in capsys.readouterr().err


@pytest.mark.slow
def test_a_shortened_base_is_the_one_that_a_distillation_would_make(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    heal = micro.distill.model_dump(include={"batch_size", "save_steps"}) | {"steps": 2, "learning_rate": 1e-3}
    student = Student(base=str(finished["refine-teacher"]), layers=2, heal=heal)
    config = micro.model_copy(update={"student": student})
    whole, short = finished["refine-teacher"], tmp_path / "short"
    metrics = shorten_student(config, topk=finished["extract-topk"], out=short)
    assert metrics["heal_loss"] > 0 and not torch.equal(weights(short), weights(whole))
    # One step each: of the student that shortens its base itself, and of the one that is given the shortened base.
    one = config.model_copy(update={"distill": config.distill.model_copy(update={"steps": 1})})
    stages.distill(one, topk=finished["extract-topk"], out=tmp_path / "together")
    stages.distill(one, topk=finished["extract-topk"], student=short, out=tmp_path / "apart")
    assert torch.equal(weights(tmp_path / "together"), weights(tmp_path / "apart"))
