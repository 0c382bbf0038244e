"""Checks of this machine against a configuration, and the pipeline's pre-flight from here, before hours are spent."""

import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from star.config.experiment import Architecture, Config
from star.doctor.preflight import GIB, Check, preflight_checks

PACKAGES = ("torch", "transformers", "trl", "accelerate", "kfp", "mlflow")


def machine_checks(config: Config) -> Iterator[Check]:
    """Yields the checks of this machine, one after another."""
    from star.home import home

    for package in PACKAGES:
        try:
            yield Check(package, True, version(package))
        except PackageNotFoundError:
            yield Check(package, False, f"not installed: pip install {package}")
    pretrained = any(not isinstance(base, Architecture) for base in (config.teacher.base, config.student.base))
    need_disk, need_memory = (200, 64) if pretrained else (2, 6)
    place = next(folder for folder in (home(), *home().parents) if folder.exists())
    free = shutil.disk_usage(place).free / GIB
    yield Check(
        "disk",
        free >= need_disk,
        f"{free:.0f} GiB free at {place}, {need_disk} needed: free some, or set STAR_HOME elsewhere",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield Check(
        "memory", memory >= need_memory * 0.95, f"{memory:.0f} GiB, {need_memory} needed: choose a larger machine"
    )
    yield Check("home", os.access(place, os.W_OK), f"{home()} must be writable: set STAR_HOME to a folder of yours")
    if pretrained:
        import torch

        gpu = torch.cuda.is_available()
        missing = "none found: this profile trains pretrained models, use a GPU node"
        yield Check("GPU", gpu, torch.cuda.get_device_name() if gpu else missing)


def print_checks(config: Config) -> bool:
    """Prints every check and returns whether all passed. The cluster's secrets are not on this machine and are not looked for."""
    from rich.console import Console

    here = config.model_copy(update={"cluster": config.cluster.model_copy(update={"secrets": {}})})
    console = Console()
    passed = True
    for check in (*machine_checks(config), *preflight_checks(here)):
        passed &= check.passed
        colour, word = ("green", "ok  ") if check.passed else ("red", "FAIL")
        console.print(f"[{colour}]{word}[/] {check.name:<22} {check.detail}", soft_wrap=True)
    return passed
