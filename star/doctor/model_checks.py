"""Checks that the configured models fit together, and fit the disk and the accelerators.

Each check returns what it found, as one phrase, or raises InputError with what is wrong and what to do. The estimates are in estimates.py.
"""

from pathlib import Path

from star.config.experiment import Config
from star.config.models import Architecture, Student, Teacher
from star.doctor.estimates import GIB, memory_needed, topk_store_bytes
from star.errors import InputError


def check_volume_space(config: Config, folder: Path) -> str:
    """Checks that the volume has room for the top-k store, the largest thing that is written there."""
    from star.topk.disk_space import require_disk_space
    from star.units import format_bytes

    samples, store_bytes = topk_store_bytes(config)
    # Before the first run the folder is missing. Its nearest existing parent is on the same volume.
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    require_disk_space(existing, int(store_bytes), what=f"the teacher's signal over {samples:,} samples, at most")
    return f"{format_bytes(store_bytes)} at most for the teacher's signal"


def check_tokenizers(config: Config) -> str:
    """Checks that teacher and student have the same tokenizer: the student learns from the teacher's token ids."""
    from star.modeling.models import base_source, load_tokenizer
    from star.modeling.tokenizer import tokenizer_digest

    def source_of(model: Teacher | Student) -> Path | str:
        assert not isinstance(model.base, Architecture), "only pretrained models have a tokenizer to compare"  # noqa: S101 - preflight_checks asks only then
        return base_source(model.base)

    teacher_source, student_source = source_of(config.teacher), source_of(config.student)
    teacher = tokenizer_digest(load_tokenizer(teacher_source, revision=config.teacher.revision))
    student = tokenizer_digest(load_tokenizer(student_source, revision=config.student.revision))
    if teacher != student:
        raise InputError(
            f"{teacher_source} and {student_source} have different tokenizers, so the teacher's ids mean nothing to the "
            "student: choose a student of the teacher's family"
        )
    return f"{teacher_source} and {student_source} share one tokenizer"


def check_accelerator_memory(config: Config, stage: str) -> str:
    """Checks that the stage's model and optimiser fit one accelerator of its node, which must state `accelerator_memory`."""
    node = config.cluster.node_of(stage)
    assert node.accelerator_memory is not None, f"the node of {stage} does not state accelerator_memory"  # noqa: S101 - preflight_checks asks only then
    needed = memory_needed(config, stage) / GIB
    text = f"at least {needed:.3g} GiB for weights and optimiser, {node.accelerator} has {node.accelerator_memory:g}"
    if needed > node.accelerator_memory:
        raise InputError(f"{text}: place {stage} on a larger node, or train adapters (`lora`)")
    return text
