"""Tests which cells a study has, and which work they share."""

import pytest

from star.config.experiment import Config
from star.config.study import Study, Sweep
from star.errors import InputError
from star.study.grid import cells_of
from star.study.plan import duration, plan_lines, time_left
from star.study.work import all_work


def with_study(config: Config, **settings: object) -> Config:
    return config.model_copy(update={"study": Study(**settings)})  # type: ignore[arg-type]  # validated by pydantic


def labels(work: list) -> list[str]:
    return sorted(one.label for one in work)


def test_cells_share_everything_but_what_makes_them_different(micro: Config) -> None:
    cells = cells_of(with_study(micro, seeds=(1, 2), kd=("fkl", "ckd"), rl=("none", "similarity")))
    assert [cell.name for cell in cells][:4] == ["fkl+none", "fkl+similarity", "ckd+none", "ckd+similarity"]
    work = all_work(one for cell in cells for one in cell.work)
    shared = ["synthesize", "refine-teacher", "rollout", "extract-topk"]
    # Two seeds: a base for each, two distillations, two trainings with Sim-RL; the teacher and eight students are evaluated.
    assert labels(work) == sorted(
        [*shared, *["student-base"] * 2, *["distill"] * 4, *["refine"] * 4, *["evaluate"] * 9]
    )


def test_no_work_stands_before_its_inputs(micro: Config) -> None:
    cells = cells_of(with_study(micro, kd=("none", "ckd"), rl=("none", "binary")))
    seen: set[str] = set()
    for work in all_work(one for cell in cells for one in cell.work):
        assert {before.key for before in work.inputs.values()} <= seen
        seen.add(work.key)


def test_without_distillation_the_base_itself_is_refined(micro: Config) -> None:
    [cell] = cells_of(with_study(micro, seeds=(1,), kd=("none",), rl=("binary",)))
    assert cell.student.inputs["student"].label == "student-base"
    assert cell.student.made_by == "refine-teacher"
    assert cell.student.config.refine.reward == "binary"
    assert cell.student.config.seed == 1
    assert cell.teacher.config.seed == micro.seed


def test_the_base_is_trained_as_the_student_and_not_as_the_teacher(micro: Config) -> None:
    pretrain = {"steps": 3, "batch_size": 4, "learning_rate": 0.001}
    [cell] = cells_of(with_study(micro, seeds=(1,), kd=("none",), rl=("none",), pretrain=pretrain))
    made = cell.student.config.teacher
    assert made.base == micro.student.base
    assert made.sft is not None and made.sft.steps == 3
    assert made.refine is None


def test_the_base_writes_its_prompts_as_the_teacher_does(micro: Config) -> None:
    config = micro.model_copy(update={"teacher": micro.teacher.model_copy(update={"open_think": True})})
    [cell] = cells_of(with_study(config, seeds=(1,), kd=("none",), rl=("none",)))
    assert cell.student.config.teacher.open_think


def test_a_value_of_a_sweep_that_the_profile_has_is_the_cell_of_the_grid(micro: Config) -> None:
    sweep = Sweep(kd=("ckd",), rl=("none",), values={"16": {"topk": {"top_k": 16}}, "4": {"topk": {"top_k": 4}}})
    same, other = cells_of(with_study(micro, seeds=(1,), kd=("ckd",), rl=("none",), sweeps={"top_k": sweep}))[1:]
    [grid] = cells_of(with_study(micro, seeds=(1,), kd=("ckd",), rl=("none",)))
    assert same.name == "top_k=16/ckd+none" and same.student.key == grid.student.key
    assert other.student.key != grid.student.key and other.teacher.key == grid.teacher.key


def test_a_sweep_can_take_a_setting_away(micro: Config) -> None:
    sweep = Sweep(rl=("similarity",), values={"off": {"refine": {"keep_between": None}}})
    cell = cells_of(with_study(micro, seeds=(1,), kd=("ckd",), rl=("none",), sweeps={"filtering": sweep}))[-1]
    assert cell.student.config.refine.keep_between is None


def test_an_unknown_setting_of_a_sweep_is_named(micro: Config) -> None:
    sweep = Sweep(values={"4": {"topk": {"tok_k": 4}}})
    with pytest.raises(InputError, match=r"study\.sweeps\.top_k\.values\.4.*topk\.tok_k"):
        cells_of(with_study(micro, sweeps={"top_k": sweep}))


def test_the_profile_is_refused_without_a_study(micro: Config) -> None:
    with pytest.raises(InputError, match="section `study`"):
        cells_of(micro)


def test_a_student_that_loses_layers_is_shortened_once_for_all_losses(micro: Config) -> None:
    student = micro.student.model_copy(update={"base": "example/model", "layers": 2})
    cells = cells_of(
        with_study(micro.model_copy(update={"student": student}), seeds=(1,), kd=("none", "fkl", "ckd"), rl=("none",))
    )
    base, *distilled = [cell.student for cell in cells]
    assert (base.stage.name, base.label) == ("shorten", "student-base")
    assert [work.inputs["student"].key for work in distilled] == [base.key] * 2


def test_the_arms_that_the_pipeline_lacks_start_from_the_same_base(micro: Config) -> None:
    kinds = ("none", "ckd", "cold-start", "on-policy-fkl", "on-policy-rkl")
    cells = cells_of(with_study(micro, seeds=(1,), kd=kinds, rl=("similarity",)))
    before = {cell.kd: cell.before_rl for cell in cells}
    assert {work.inputs["student"].key for kd, work in before.items() if kd != "none"} == {before["none"].key}
    losses = {kd: (work.stage.name, work.config.distill.kind) for kd, work in before.items()}
    assert losses["cold-start"] == ("fine-tune", "ce")
    assert losses["on-policy-fkl"] == ("distill-on-policy", "fkl")
    assert losses["on-policy-rkl"] == ("distill-on-policy", "rkl")
    # As many updates as the distillation has.
    assert {work.config.distill.steps for work in before.values()} == {micro.distill.steps}
    assert before["on-policy-rkl"].inputs["teacher"].key == cells[0].teacher.key
    made_by = {cell.kd: cell.student.made_by for cell in cells}
    assert made_by == {kd: work.stage.name for kd, work in before.items()}
    assert len({cell.student.key for cell in cells}) == len(kinds)


def test_a_sweep_without_values_adds_distillations_to_the_grid(micro: Config) -> None:
    sweep = Sweep(kd=("cold-start", "ckd"), rl=("none",))
    [grid, *cells] = cells_of(with_study(micro, seeds=(1,), kd=("ckd",), rl=("none",), sweeps={"arms": sweep}))
    assert [cell.name for cell in cells] == ["arms/cold-start+none", "arms/ckd+none"]
    assert cells[1].student.key == grid.student.key


def test_a_study_needs_enough_samples_for_what_it_compares(micro: Config) -> None:
    evaluate = micro.evaluate.model_copy(update={"samples": 4})
    with pytest.raises(InputError, match="at least 8"):
        cells_of(with_study(micro.model_copy(update={"evaluate": evaluate})))


def test_the_duration_counts_what_can_be_done_at_once(micro: Config) -> None:
    [cell] = cells_of(with_study(micro, seeds=(1,), kd=("ckd",), rl=("similarity",)))
    seconds = {
        "synthesize": 1.0, "refine-teacher": 10.0, "student-base": 4.0, "rollout": 2.0, "extract-topk": 3.0,
        "distill": 5.0, "refine": 6.0, "evaluate": 0.5,
    }  # fmt: skip
    # One after the other: all of it, with three evaluations.
    assert duration(cell.work, done=(), seconds=seconds, workers=1) == 32.5
    # The base and the evaluations but the last go beside the chain from the data to the refined student.
    assert duration(cell.work, done=(), seconds=seconds, workers=4) == 27.5


def test_the_plan_says_what_time_it_does_not_know(micro: Config) -> None:
    [cell] = cells_of(with_study(micro, seeds=(1,), kd=("ckd",), rl=("none",)))

    def last_line(**expected: float) -> str:
        return plan_lines(cell.work, cells=1, expected=expected, workers=1)[-1]

    assert last_line().startswith("for an unknown time with one process of one thread, because `study.seconds`")
    assert last_line(distill=60.0).startswith("at least 1 min 0 s with one process")
    every = {one.label: 10.0 for one in cell.work}
    assert last_line(**every) == "about 1 min 20 s with one process of one thread"


def test_the_time_left_is_that_of_the_work_that_has_not_ended(micro: Config) -> None:
    [cell] = cells_of(with_study(micro, seeds=(1,), kd=("ckd",), rl=("none",)))
    expected = {one.label: 10.0 for one in cell.work}
    keys = [one.key for one in cell.work]

    def left(ended: list[str], **seconds: float) -> float | None:
        return time_left(cell.work, done=(), ended=ended, expected=seconds, workers=1)

    assert left([], **expected) == 10.0 * len(keys)
    assert left(keys[:-1], **expected) == 10.0
    assert left(keys, **expected) == 0.0
    assert left([], distill=10.0) is None
