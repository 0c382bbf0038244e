"""A student with fewer layers than its base is healed on the teacher's samples before CKD, and resumes there."""

import json
from pathlib import Path

import pytest

from star import stages
from star.ckd.distill import distill_student
from star.config.experiment import Config
from star.config.models import Architecture, Student, Teacher
from star.config.training import Distill, Lora, Training
from star.errors import InputError
from star.folders.workspace import Workspace
from star.modeling.bases import open_tokenizer
from star.modeling.models import load_model, load_tokenizer
from star.topk.sequences import TOKENIZER
from tests.small_models import small_sizes, write_scratch_model

SIZES = Architecture(**small_sizes(16, 16, layers=4, heads=1, head_dim=16))
HEAL = Training(steps=4, batch_size=16, learning_rate=1e-2, save_steps=2)


@pytest.fixture(scope="module")
def base(finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model of four layers with the teacher's tokenizer."""
    tokenizer = load_tokenizer(finished["refine-teacher"])
    return write_scratch_model(tmp_path_factory.mktemp("base") / "model", SIZES, tokenizer=tokenizer, seed=3)


def shortened(micro: Config, base: Path, **settings: object) -> Config:
    return micro.model_copy(update={"student": Student(base=str(base), **settings)})


@pytest.mark.slow
def test_a_killed_healing_goes_on_and_ends_with_the_same_student(
    micro: Config, base: Path, finished: dict[str, Path], tmp_path: Path
) -> None:
    config = shortened(micro, base, layers=2, heal=HEAL)
    metrics = stages.distill(config, topk=finished["extract-topk"], out=tmp_path / "whole")
    workspace = Workspace(out=tmp_path / "out", state=tmp_path / "state")
    workspace.out.mkdir()
    workspace.state.mkdir()

    def kill_at(phase: str, at: int):
        def log(values: dict[str, float], step: int) -> None:
            if f"{phase}/loss" in values and step == at:
                raise KeyboardInterrupt

        return log

    for phase in ("heal", "ckd"):
        with pytest.raises(KeyboardInterrupt):
            distill_student(config, finished["extract-topk"], workspace=workspace, log_metrics=kill_at(phase, 3))
    distill_student(config, finished["extract-topk"], workspace=workspace, log_metrics=lambda values, step: None)
    for name in ("model.safetensors", "heal_curve.json", "ckd_curve.json"):
        assert (workspace.out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert load_model(workspace.out).config.num_hidden_layers == 2
    losses = [entry["loss"] for entry in json.loads((workspace.out / "heal_curve.json").read_text())]
    assert len(losses) == 4
    assert metrics["heal_loss"] == losses[-1] < losses[0]


def test_layers_are_dropped_and_healed_before_the_distillation(
    micro: Config, base: Path, finished: dict[str, Path], tmp_path: Path
) -> None:
    phases: list[str] = []

    def log(values: dict[str, float], step: int) -> None:
        phases.extend(name.partition("/")[0] for name in values if name.endswith("/loss"))

    workspace = Workspace(out=tmp_path / "out", state=tmp_path / "state")
    workspace.out.mkdir()
    workspace.state.mkdir()
    topk = finished["extract-topk"]
    with pytest.raises(InputError, match=r"`student.layers` is 5 and .* has 4 layers"):
        distill_student(shortened(micro, base, layers=5), topk, workspace=workspace, log_metrics=log)
    config = shortened(micro, base, layers=3, heal=HEAL.model_copy(update={"steps": 1}))
    distill_student(config, topk, workspace=workspace, log_metrics=log)
    assert phases == ["heal", *["ckd"] * micro.distill.steps]
    assert load_model(workspace.out).config.num_hidden_layers == 3


def test_adapters_alone_on_a_shortened_base_that_gets_new_tokens_are_refused(tmp_path: Path) -> None:
    lacking = write_scratch_model(tmp_path / "lacking", SIZES, seed=3)
    file = lacking / "tokenizer.json"
    file.write_text(file.read_text().replace('"<tool_call>"', '"<tool>"'))
    teacher = Teacher(base=str(lacking), add_format_tokens=True)
    open_tokenizer(teacher).tokenizer.save_pretrained(tmp_path / "topk" / TOKENIZER)
    student = Student(base=str(lacking), layers=2)
    config = Config(teacher=teacher, student=student, distill=Distill(steps=1, lora=Lora()))
    workspace = Workspace(out=tmp_path / "out", state=tmp_path / "state")
    with pytest.raises(InputError, match="lacks the tokens <tool_call>, and adapters"):
        distill_student(config, tmp_path / "topk", workspace=workspace, log_metrics=lambda values, step: None)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="set num_hidden_layers of a base from scratch"):
        Student(base=SIZES, layers=2)
    with pytest.raises(ValueError, match="`heal` is for a base that loses layers"):
        Student(base="team/model", heal=HEAL)
