"""Checks this machine against a configuration for `star doctor`: packages, disk, memory, GPU. Then runs the pipeline's pre-flight."""

import os
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

from star.config.cluster import ModelStage
from star.config.experiment import Config
from star.doctor.check import Check, run_check
from star.doctor.cost_lines import cost_lines, cpu_computes_in_bf16, has_pretrained_base
from star.doctor.estimates import GIB, disk_needed, host_memory_needed, memory_needed
from star.doctor.hub import HUB
from star.doctor.preflight import preflight_checks
from star.errors import InputError
from star.terminal import console

PACKAGES = ("torch", "transformers", "trl", "accelerate", "kfp", "mlflow")
# GiB of disk and of memory that a run of the profile `tiny` takes, whose models are nothing beside all the rest.
FEWEST_DISK, FEWEST_MEMORY = 2, 6


def machine_checks() -> Iterator[Check]:
    """Yields the checks of this machine that know nothing of models, one after another."""
    from star.home import home

    for package in PACKAGES:
        try:
            yield Check(package, True, version(package))
        except PackageNotFoundError:
            yield Check(package, False, f"not installed: pip install {package}")
    folder = _existing_home()
    writable = folder.is_dir() and os.access(folder, os.W_OK)
    cure = "" if writable else " is not writable: set STAR_HOME to a folder of yours"
    yield Check("home", writable, f"{home()}{cure}")


def room_checks(config: Config) -> Iterator[Check]:
    """Yields the checks of disk, memory and GPU against what the models need, by their configurations."""
    import torch

    has_gpu = torch.cuda.is_available()
    yield run_check("disk", partial(_check_disk, config))
    yield run_check("memory", partial(_check_memory, config, has_gpu=has_gpu))
    if has_gpu:
        yield run_check("GPU", partial(_check_gpu, config))
    elif has_pretrained_base(config):
        yield Check("GPU", True, "none: the CPU does it, and the costs below say in what time")


def _check_disk(config: Config) -> str:
    needed, folder = max(FEWEST_DISK, disk_needed(config) / GIB), _existing_home()
    free = shutil.disk_usage(folder).free / GIB
    said = f"{free:.0f} GiB free at {folder}, {needed:.0f} needed for results, checkpoints and bases"
    if free < needed:
        raise InputError(f"{said}: free some, or set STAR_HOME elsewhere")
    return said


def _check_memory(config: Config, *, has_gpu: bool) -> str:
    bf16 = not has_gpu and cpu_computes_in_bf16(config)
    by_stage = {
        stage: host_memory_needed(config, stage, accelerator=has_gpu, processes=1, bf16=bf16) / GIB
        for stage in get_args(ModelStage)
    }
    stage = max(by_stage, key=lambda name: by_stage[name])
    needed = max(FEWEST_MEMORY, by_stage[stage])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    said = f"{memory:.0f} GiB, {needed:.0f} needed" + (f" for {stage}" if needed > FEWEST_MEMORY else "")
    # The kernel keeps a part for itself: a machine sold with 64 GiB reports a little less.
    if memory < needed * 0.95:
        raise InputError(f"{said}: lower its micro_batch_size or max_prompt_tokens, or choose a larger machine")
    return said


def _check_gpu(config: Config) -> str:
    import torch

    served = {"rollout": config.rollout.server, "extract-topk": config.topk.server}
    needs = {stage: memory_needed(config, stage) / GIB for stage in get_args(ModelStage) if not served.get(stage)}
    stage = max(needs, key=lambda name: needs[name])
    has = torch.cuda.get_device_properties(0).total_memory / GIB
    said = f"{torch.cuda.get_device_name()} with {has:.3g} GiB, {stage} needs at least {needs[stage]:.3g} for weights and optimiser"
    if has < needs[stage]:
        raise InputError(f"{said}: take a larger one, or train adapters (`lora`)")
    return said


def _existing_home() -> Path:
    """The folder of runs may not exist yet: its nearest existing parent is on the same disk."""
    from star.home import home

    return next(folder for folder in (home(), *home().parents) if folder.exists())


def checks_on_this_machine(config: Config) -> Iterator[Check]:
    """Yields the checks of this machine and of the services. The cluster's secrets are left out because this machine does not have them."""
    without_secrets = config.model_copy(update={"cluster": config.cluster.model_copy(update={"secrets": {}})})
    yield from machine_checks()
    hub_fails = False
    for check in preflight_checks(without_secrets, on_cluster=False):
        hub_fails |= check.name == HUB and not check.passed
        yield check
    # After the hub was asked: without it nobody knows the sizes of models.
    if not hub_fails:
        yield from room_checks(config)


def print_checks(checks: Iterable[Check], config: Config, *, here: bool = True) -> bool:
    """Prints every check, then the costs of the configuration. Returns whether all passed.

    Args:
        here: whether the run is to be on this machine.
    """
    from rich.text import Text

    screen = console()
    all_passed = True
    colours = {"ok  ": "green", "FAIL": "red"}
    for check in checks:
        all_passed &= check.passed
        word = Text(check.word, style=colours.get(check.word, "yellow"))
        screen.print(word, f"{check.name:<22} {check.detail}", soft_wrap=True)
    for line in cost_lines(config, here=here):
        screen.print(line, soft_wrap=True)
    return all_passed
