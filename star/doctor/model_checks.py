"""Checks that the configured models and the teacher's signal fit the accelerators and the disk.

Each check returns what it found, as one phrase, or raises InputError with what is wrong and what to do. The estimates are in estimates.py.
"""

import importlib.util
from pathlib import Path
from typing import get_args

from star.config.cluster import ModelStage, TrainingStage, amount_of
from star.config.experiment import Config
from star.doctor.estimates import GIB, host_memory_needed, memory_needed, topk_store_bytes
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


def check_node_memory(config: Config) -> str:
    """Checks that each stage that runs a model has the memory on its node that its weights, or its training, take at least."""
    cluster = config.cluster
    found: dict[str, tuple[float, float]] = {}  # stage -> GiB that it needs and that it has
    for stage in get_args(ModelStage):
        node = cluster.node_of(stage)
        processes = node.processes if stage in get_args(TrainingStage) else 1
        needed = host_memory_needed(config, stage, accelerator=node.accelerator is not None, processes=processes)
        found[stage] = needed / GIB, amount_of(node.memory) / GIB
    if short := {stage: (needed, has) for stage, (needed, has) in found.items() if needed > has}:
        said = ", ".join(
            f"{stage} needs at least {needed:.3g} GiB and has {has:.3g}" for stage, (needed, has) in short.items()
        )
        raise InputError(
            f"{said}: raise `memory` of the node, lower its micro_batch_size, or place the stage on another"
        )
    stage, (needed, has) = max(found.items(), key=lambda entry: entry[1][0] / entry[1][1])
    return f"{stage} needs at least {needed:.3g} of {has:.3g} GiB on its node, other stages a smaller part"


def check_accelerator_memory(config: Config, stage: str) -> str:
    """Checks that the stage's model and optimiser fit one accelerator of its node, which must state `accelerator_memory`."""
    node = config.cluster.node_of(stage)
    assert node.accelerator_memory is not None, f"the node of {stage} does not state accelerator_memory"  # noqa: S101 - preflight_checks asks only then
    needed = memory_needed(config, stage) / GIB
    text = f"at least {needed:.3g} GiB for weights and optimiser, {node.accelerator} has {node.accelerator_memory:g}"
    if needed > node.accelerator_memory:
        raise InputError(f"{text}: place {stage} on a larger node, or train adapters (`lora`)")
    return text


def check_vllm(stages: list[str]) -> str:
    """Looks for the package vllm, which these stages run in their own processes."""
    # Found and not imported: vLLM looks for CUDA, which the node of this check need not have.
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"{', '.join(stages)} run vLLM, which is not installed here: use the image of target `vllm`, install "
            "star-distill[vllm], or remove `vllm` from the profile"
        )
    return f"installed, for {', '.join(stages)}"
