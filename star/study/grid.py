"""Lists the cells of a study: every way to train a student that is compared, with every seed, as pieces of work that share stages.

    cells = cells_of(load_config("configs/study-tiny.yaml"))
    cells[5].name                      # "fkl+binary"
    cells[5].student                   # the Sim-RL of the student that was distilled with FKL
    cells[5].before_rl                 # that distillation, which the cell "fkl+none" has too

What of the work depends on what:

    synthesize ─► refine-teacher ─► rollout ─► extract-topk ─┐           the profile's seed; once for the whole study
        │                                                    ▼
        └──► the student's base ────────────────────────► distill ─► refine ─► evaluate
             once per seed                                once per kind, seed    once per cell and seed

In place of `distill` stand the stages of arms.py where the student is trained on the rows or on its own samples.

The base of a student from scratch is made by the stage that trains models from scratch, `refine-teacher`: it learns to copy, and then
trains on the rows for as long as `study.pretrain` says. So Sim-RL without distillation starts from a model that knows a part of the task,
as it would with a pretrained one. The base of a student that loses layers is made of the store, because it is healed on that.
"""

from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from star.config.experiment import Config
from star.config.load import extend
from star.config.models import Architecture, Teacher
from star.config.study import KD, RL, Study
from star.config.training import FineTuning
from star.errors import InputError
from star.study.arms import FINE_TUNE, ON_POLICY, SHORTEN
from star.study.work import Work, all_work

GRID = "grid"  # the sweep of the cells that belong to none
# Distillation -> `distill.kind`, where they have other names. A training on the rows is one with cross-entropy.
LOSSES = {"cold-start": "ce", "on-policy-fkl": "fkl", "on-policy-rkl": "rkl"}


@dataclass(frozen=True)
class Cell:
    """One way to train a student, with one seed.

    Attributes:
        sweep: what is varied beside distillation and reward; `grid` where nothing is.
        value: name of its value in the sweep; "" in the grid.
        before_rl: the student before Sim-RL. Without Sim-RL it is the student itself.
        student: the student at the end.
        evaluation: of the student; `evaluation_before_rl` and `evaluation_teacher` likewise.
    """

    sweep: str
    value: str
    kd: KD
    rl: RL
    seed: int
    teacher: Work
    before_rl: Work
    student: Work
    evaluation: Work
    evaluation_before_rl: Work
    evaluation_teacher: Work

    @property
    def name(self) -> str:
        """The cell without its seed: `ckd+similarity`, or `top_k=10/ckd+similarity` in a sweep."""
        arm = f"{self.kd}+{self.rl}"
        if self.sweep == GRID:
            return arm
        return f"{self.sweep}={self.value}/{arm}" if self.value else f"{self.sweep}/{arm}"

    @property
    def work(self) -> list[Work]:
        """All work of the cell in an order in which it can be done."""
        return all_work([self.evaluation_teacher, self.evaluation_before_rl, self.evaluation])


def cells_of(config: Config) -> list[Cell]:
    """The cells of the configuration's study, seed by seed: a third of the time gives all cells of the first of three seeds.

    Raises:
        InputError: there is no section `study`, or a sweep names a setting that does not exist.
    """
    if config.study is None:
        raise InputError("the configuration has no section `study`: use study-tiny, or add one")
    study = config.study
    _require_possible(config, study)
    arms = [(GRID, "", config, study.kd, study.rl)] + [
        (sweep, value, _changed(config, over, place=f"study.sweeps.{sweep}.values.{value}"), varied.kd, varied.rl)
        for sweep, varied in study.sweeps.items()
        for value, over in (varied.values or {"": {}}).items()
    ]
    return [
        _cell(shared, study, kd=kd, rl=rl, seed=seed, sweep=sweep, value=value)
        for seed in study.seeds
        for sweep, value, shared, kds, rls in arms
        for kd in kds
        for rl in rls
    ]


def _require_possible(config: Config, study: Study) -> None:
    if study.pretrain and not isinstance(config.student.base, Architecture):
        raise InputError("`study.pretrain` is for a base from scratch, and the student's is pretrained: leave it out")
    if "heldout" not in config.evaluate.suites or config.evaluate.samples < 8:
        raise InputError(
            "a study compares pass@8 on the held-out rows: give `evaluate` the suite heldout and at least 8 `samples`"
        )


def _changed(config: Config, over: dict[str, Any], *, place: str) -> Config:
    """The configuration with the settings of one value of a sweep."""
    try:
        return Config.model_validate(extend(config.model_dump(mode="json"), over))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"`{place}`: `{name}`: {first['msg'].removeprefix('Value error, ')}") from error


def _cell(shared: Config, study: Study, *, kd: KD, rl: RL, seed: int, sweep: str, value: str) -> Cell:
    own: dict[str, Any] = {"seed": seed}
    own |= {} if kd == "none" else {"distill": {"kind": LOSSES.get(kd, kd)}}
    own |= {} if rl == "none" else {"refine": {"reward": rl}}
    config = Config.model_validate(extend(shared.model_dump(mode="json"), own))
    data = Work.of("synthesize", shared)
    teacher = Work.of("refine-teacher", shared, data=data)
    before_rl = _student_before_rl(config, study, kd=kd, data=data, teacher=teacher, shared=shared)
    student = before_rl if rl == "none" else Work.refined(config, student=before_rl, data=data)

    # With the profile's seed, so that every model gets the same random numbers for its samples.
    def evaluated(model: Work) -> Work:
        return Work.evaluated(shared, model=model, data=data)

    return Cell(
        sweep=sweep,
        value=value,
        kd=kd,
        rl=rl,
        seed=seed,
        teacher=teacher,
        before_rl=before_rl,
        student=student,
        evaluation=evaluated(student),
        evaluation_before_rl=evaluated(before_rl),
        evaluation_teacher=evaluated(teacher),
    )


def _student_before_rl(config: Config, study: Study, *, kd: KD, data: Work, teacher: Work, shared: Config) -> Work:
    """The student that was distilled or trained otherwise, or its base where nothing is done.

    Args:
        config: the cell's settings, with its seed.
        shared: the same with the profile's seed, for what all cells share.
    """
    rollouts = Work.of("rollout", shared, data=data, teacher=teacher)
    topk = Work.of("extract-topk", shared, rollouts=rollouts, teacher=teacher)
    base = _base(config, study, data=data, topk=topk)
    if kd == "none":
        return base
    if kd == "cold-start":
        return Work.trained(FINE_TUNE, config, student=base, data=data)
    if kd in ("on-policy-fkl", "on-policy-rkl"):
        return Work.trained(ON_POLICY, config, student=base, teacher=teacher, data=data)
    # A whole pretrained base is read from its own place.
    is_made = isinstance(config.student.base, Architecture) or config.student.layers is not None
    return Work.of("distill", config, topk=topk, **({"student": base} if is_made else {}))


def _base(config: Config, study: Study, *, data: Work, topk: Work) -> Work:
    """The student before any training that is compared.

    It is made by the stage that makes teachers, with the student's settings in their place. Layers are dropped by a stage of its own.
    """
    student = config.student
    if student.layers is not None:
        return Work(SHORTEN, config, {"topk": topk}, "student-base")
    pretrain = FineTuning(**study.pretrain.model_dump()) if study.pretrain else None
    as_teacher = Teacher(
        base=student.base,
        revision=student.revision,
        chat_template=config.teacher.chat_template,
        add_format_tokens=config.teacher.add_format_tokens,
        open_think=config.teacher.open_think,
        sft=pretrain,
    )
    work = Work.of("refine-teacher", config.model_copy(update={"teacher": as_teacher}), data=data)
    return replace(work, label="student-base")
