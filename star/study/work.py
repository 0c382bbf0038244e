"""Defines the pieces of work that a study consists of: stages with their settings and inputs, each done once for all cells that need it.

    data = Work.of("synthesize", config)
    teacher = Work.of("refine-teacher", config, data=data)
    teacher.folder      # runs/study/refine-teacher-3f1c9a0b52d7e864

The folder of a piece of work is named by its settings and those of its inputs, so two cells with the same distillation share its folder.
The stage itself decides whether the folder still holds (star/folders/run_once.py), and takes an equal result of `star run` where there is
one (star/folders/reuse.py).
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from star.config.experiment import Config
from star.errors import InputError
from star.folders.code_digest import code_digest
from star.folders.manifest import MANIFEST, METRICS, read_manifest
from star.folders.run_once import draft_manifest
from star.hashing import digest_of
from star.home import home
from star.run_stage import Stage
from star.stages import stage_named, with_student
from star.study.evaluate import EVALUATE

KEY_CHARACTERS = 16


@dataclass(frozen=True)
class Work:
    """One stage, done with one configuration on the results of other pieces of work.

    Attributes:
        inputs: keyword of the stage's function -> the work whose folder it gets.
        label: what it is called in the plan and in `study.seconds`.
        made_by: of a stage that takes models of several stages: the one that made its model.
    """

    stage: Stage
    config: Config
    inputs: dict[str, "Work"]
    label: str
    made_by: str | None = None

    @classmethod
    def of(cls, stage: str, config: Config, **inputs: "Work") -> "Work":
        """The work of a stage of the pipeline."""
        return cls(stage_named(stage), config, inputs, stage)

    @classmethod
    def refined(cls, config: Config, *, student: "Work", data: "Work") -> "Work":
        """Sim-RL of a student that any stage made."""
        return cls(stage_named("refine"), config, {"student": student, "data": data}, "refine", student.stage.name)

    @classmethod
    def trained(cls, stage: Stage, config: Config, *, student: "Work", **inputs: "Work") -> "Work":
        """The work of a stage of arms.py that trains a student that any stage made."""
        return cls(stage, config, {"student": student, **inputs}, stage.name, student.stage.name)

    @classmethod
    def evaluated(cls, config: Config, *, model: "Work", data: "Work") -> "Work":
        """The evaluation of one model on the held-out rows."""
        return cls(EVALUATE, config, {"model": model, "data": data}, "evaluate", model.stage.name)

    @cached_property
    def key(self) -> str:
        """Identifies the settings of this work and of all work before it."""
        settings = self.config.slice(self.stage.sections)
        inputs = {name: work.key for name, work in self.inputs.items()}
        return digest_of([self.stage.name, settings, inputs])[:KEY_CHARACTERS]

    @property
    def folder(self) -> Path:
        """Where its result is, once it is done."""
        return home() / "study" / f"{self.stage.name}-{self.key}"

    @property
    def log(self) -> Path:
        """What its process wrote to stdout and stderr."""
        return home() / "logs" / f"study-{self.stage.name}-{self.key}.log"

    def has_result(self) -> bool:
        """Whether its folder holds what this work would give now: made by this code, with these settings, of these inputs."""
        if not (self.folder / MANIFEST).is_file():
            return False
        try:
            return read_manifest(self.folder).fingerprint == self._fingerprint()
        # An input is missing or damaged. Whose work it is finds out more.
        except InputError:
            return False

    def _fingerprint(self) -> str:
        """What `run_stage` will put into the manifest, from the manifests of the inputs as they are now."""
        config, folders = self.config, {name: work.folder for name, work in self.inputs.items()}
        if self.stage.name == "distill" and "student" in folders:
            config = with_student(config, folders.pop("student"))
        inputs = {name: read_manifest(folder) for name, folder in folders.items()}
        settings, code = config.slice(self.stage.sections), _code_of(self.stage.function)
        return draft_manifest(self.stage.name, settings=settings, code=code, inputs=inputs).fingerprint

    def metrics(self) -> dict[str, Any]:
        """The metrics of its result."""
        return json.loads((self.folder / METRICS).read_text(encoding="utf-8"))

    def run(self) -> None:
        """Does the work in this process, or finds that it is done."""
        arguments = {} if self.made_by is None else {"made_by": self.made_by}
        folders = {name: work.folder for name, work in self.inputs.items()}
        self.stage.function(self.config, **folders, **arguments, out=self.folder)


@cache
def _code_of(function: Callable) -> str:
    # Read and parsed again, the modules of a stage take a tenth of a second, and a study has hundreds of pieces of work.
    return code_digest(function)


def finished(work: Iterable[Work]) -> set[str]:
    """The keys of the work that is done, with all work before it.

    Args:
        work: in the order of `all_work`.
    """
    done: set[str] = set()
    for one in work:
        if done.issuperset(before.key for before in one.inputs.values()) and one.has_result():
            done.add(one.key)
    return done


def all_work(wanted: Iterable[Work]) -> list[Work]:
    """The wanted work with all work before it, each once, and none before its inputs."""
    found: dict[str, Work] = {}

    def add(work: Work) -> None:
        if work.key not in found:
            for before in work.inputs.values():
                add(before)
            found[work.key] = work

    for work in wanted:
        add(work)
    return list(found.values())
