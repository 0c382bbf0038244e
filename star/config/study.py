"""Defines the section `study`: which ways of training a student `star study` compares (star/study)."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from star.config.base import Section
from star.config.training import Training

# `none` distils nothing: the student's base goes to Sim-RL as it is. `cold-start` trains the base on the rows' own answers, and
# `on-policy-*` on its own samples with the teacher in memory.
KD = Literal["none", "ce", "fkl", "rkl", "akl", "rskd", "ckd", "cold-start", "on-policy-fkl", "on-policy-rkl"]
PAPERS_KD: tuple[KD, ...] = ("none", "ce", "fkl", "rkl", "akl", "rskd", "ckd")
# `none` ends with the distilled student.
RL = Literal["none", "binary", "toolrl", "similarity"]


class Sweep(Section):
    """Students whose training differs from the grid's in one respect."""

    kd: tuple[KD, ...] = Field(("ckd",), min_length=1, description="Distillations that are repeated with each value")
    rl: tuple[RL, ...] = Field(
        ("none", "similarity"), min_length=1, description="Rewards that are repeated with each value"
    )
    values: dict[str, dict[str, Any]] = Field(
        {},
        description="Name of each value -> the settings that it replaces, as a profile that extends this one would; by default the "
        "profile's own settings once, for distillations that the grid does not have",
    )


class Study(Section):
    """A comparison of ways to train the student on one task."""

    about: str | None = Field(
        None,
        description="What the study asks and what its task is, as Markdown; the page about it begins with this text",
    )
    seeds: tuple[int, ...] = Field(
        (11, 12, 13), min_length=1, description="Seeds of the students: of their bases, distillation and Sim-RL"
    )
    kd: tuple[KD, ...] = Field(
        PAPERS_KD,
        min_length=1,
        description="Distillations of the grid: those of the paper; `none`, which leaves it out; `cold-start` on the rows' own answers; "
        "`on-policy-fkl` and `on-policy-rkl` on the student's samples",
    )
    rl: tuple[RL, ...] = Field(
        get_args(RL), min_length=1, description="Rewards of Sim-RL in the grid; `none` leaves it out"
    )
    sweeps: dict[str, Sweep] = Field({}, description="Further cells, by the name of what they vary")
    pretrain: Training | None = Field(
        None,
        description="Training on the rows that makes the base of a student from scratch, before anything is compared; it stands in for "
        "pre-training",
    )
    min_teacher_exact_match: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Least share of held-out rows that the teacher must answer exactly, or no student is trained",
    )
    seconds: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Seconds that each stage takes with one process, from which the time of the study is estimated"
    )

    @model_validator(mode="after")
    def _nothing_twice(self) -> "Study":
        for name in ("seeds", "kd", "rl"):
            if len(set(values := getattr(self, name))) < len(values):
                raise ValueError(f"`{name}` names something twice")
        if "grid" in self.sweeps:
            raise ValueError("a sweep cannot be named `grid`: that is the name of the grid itself")
        return self
