"""Shows what training has changed: evaluates the pretrained bases beside the models that were trained from them.

A base is settled as the trainings settle it (star/modeling/bases.py), so that it gets the prompts, tags and end of turn
that the trained models get, and differs from them by its weights alone. Which bases of a configuration are shown:

    teacher: {base: A, sft: ...}    student: {base: A}    "base", of both
    teacher: {base: A, sft: ...}    student: {base: B}    "teacher-base" and "student-base"
    teacher: {base: A}              student: {base: B}    "student-base"; nothing trained the teacher, so it is its base
    teacher: {base: A}              student: {base: A}    none, for the same reason

A base from scratch is not shown: before its training it says nothing. A student with `layers` stands beside its whole
base, because a model whose layers were just dropped says nothing either.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from star.config.experiment import Config
from star.config.files import Input
from star.config.models import Architecture, Student, Teacher
from star.config.training import Precision
from star.errors import InputError
from star.folders.manifest import read_manifest
from star.progress import print_line

BASES = BASE, TEACHER_BASE, STUDENT_BASE = "base", "teacher-base", "student-base"  # names in reports and metrics


@dataclass(frozen=True)
class PretrainedBase:
    """A base before any training.

    Attributes:
        settings: the section of the configuration that names it.
        teacher: the folder of the teacher, whose settled tokenizer all models of a run have; None for a base alone, whose
            own tokenizer is settled.
        trained: names of the evaluated models that were trained from it.
    """

    settings: Teacher | Student
    teacher: Path | None
    trained: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """The digest of its files, or its hub id and revision."""
        base, revision = self.settings.base, self.settings.revision
        if isinstance(base, Input):
            return base.sha256
        return f"{base}@{revision}" if revision else str(base)


def bases_beside(config: Config, *, teacher: Path) -> dict[str, PretrainedBase]:
    """The bases that an evaluation of the teacher, the distilled and the refined student shows, by name; see above.

    Args:
        teacher: the folder of the trained teacher.
    """
    of_teacher = PretrainedBase(config.teacher, teacher, ("teacher",))
    of_student = PretrainedBase(config.student, teacher, ("distilled", "refined"))
    trains_teacher = bool(config.teacher.sft or config.teacher.refine)
    shown = {TEACHER_BASE: of_teacher} if trains_teacher else {}
    if of_teacher.identity != of_student.identity:
        shown[STUDENT_BASE] = of_student
    elif trains_teacher:
        shown = {BASE: replace(of_teacher, trained=(*of_teacher.trained, *of_student.trained))}
    return {
        name: base
        for name, base in shown.items()
        if config.evaluate.bases and not isinstance(base.settings.base, Architecture)
    }


def keep_true_bases(bases: Mapping[str, PretrainedBase], models: Mapping[str, Path]) -> dict[str, PretrainedBase]:
    """Those bases that the manifests of the trained models name too; says which one is left out.

    A student of `star distill --student X` was not trained from the base of the configuration.

    Args:
        models: the folders of the trained models, by name.
    """
    kept = {}
    for name, base in bases.items():
        # The refined student's base is that of the distilled one.
        others = [of for of in base.trained if of != "refined" and not _is_made_from(base, models[of])]
        if others:
            print_line(f"{name} is not evaluated: it is not the base that {models[others[0]]} was trained from")
        else:
            kept[name] = base
    return kept


def _is_made_from(base: PretrainedBase, folder: Path) -> bool:
    """Whether the stage that wrote a model's folder noted this base (star/registry/base_facts.py)."""
    noted: dict[str, Any] = read_manifest(folder).origin.get("base", {})
    settings = base.settings
    if isinstance(settings.base, Input):
        return noted.get("sha256") == settings.base.sha256
    return (noted.get("name"), noted.get("revision")) == (settings.base, settings.revision)


def as_it_can_be_asked(model: Path | str, *, title: str) -> Path | str | PretrainedBase:
    """The model itself, where its own chat template shows tools and writes calls as STAR reads them; else a base to settle.

    A model that is asked without the tools cannot call any, and its score would say nothing about it.

    Args:
        model: a folder or hub id.
        title: the model as the user named it.
    """
    from star.modeling.chat_templates import reason_against_own
    from star.modeling.models import load_tokenizer

    if (reason := reason_against_own(load_tokenizer(model))) is None:
        return model
    print_line(f"{title} is asked with STAR's chat template (qwen3), because {reason}")
    return PretrainedBase(Teacher(base=str(model.absolute()) if isinstance(model, Path) else model), None)


def settled_base(base: PretrainedBase, folder: Path, *, precision: Precision) -> Path:
    """Writes a base as an ordinary model folder, settled as its training settles it. A finished folder is used again.

    Raises:
        InputError: the base cannot be loaded.
    """
    from star.modeling.bases import open_base, open_tokenizer
    from star.modeling.models import load_tokenizer, save_model_atomically

    if folder.is_dir():
        return folder
    try:
        if base.teacher is None:
            assert isinstance(base.settings, Teacher)  # noqa: S101 - a student has the tokenizer of its teacher
            tokenizer = open_tokenizer(base.settings).tokenizer
        else:
            tokenizer = load_tokenizer(base.teacher)
        model = open_base(base.settings, tokenizer=tokenizer, precision=precision)
        save_model_atomically(model, tokenizer, folder)
    except InputError as error:
        if base.teacher is None:
            raise
        raise InputError(f"{error}; or leave the bases out of the evaluation (`evaluate.bases: false`)") from error
    del model
    gc.collect()
    return folder
