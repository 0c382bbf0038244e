"""Checks of this machine against a configuration, before hours are spent: every failed one says the cure."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from star.config import Architecture, Config
from star.errors import InputError

PACKAGES = ("torch", "transformers", "trl", "accelerate", "kfp", "mlflow")
GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


def checks(config: Config) -> Iterator[Check]:
    """Yields the checks one after another."""
    from star.registry.tracking import connect, home, shown_uri, tracking_uri

    for package in PACKAGES:
        try:
            yield Check(package, True, version(package))
        except PackageNotFoundError:
            yield Check(package, False, f"not installed: pip install {package}")
    pretrained = [base for base in (config.teacher.base, config.student.base) if not isinstance(base, Architecture)]
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
    try:
        connect()
        yield Check("MLflow", True, shown_uri(tracking_uri()))
    except InputError as error:
        yield Check("MLflow", False, str(error))
    if pretrained:
        import torch

        gpu = torch.cuda.is_available()
        yield Check(
            "GPU",
            gpu,
            torch.cuda.get_device_name()
            if gpu
            else "none found: this profile trains pretrained models, use a GPU node",
        )
    for base in pretrained:
        known = Path(base).is_dir() or not os.environ.get("HF_HUB_OFFLINE")
        yield Check(
            base,
            known,
            "a folder, or downloaded on first use" if known else "not here and HF_HUB_OFFLINE is set: unset it",
        )


def print_checks(config: Config) -> bool:
    """Prints every check and returns whether all passed."""
    from rich.console import Console

    console = Console()
    passed = True
    for check in checks(config):
        passed &= check.passed
        console.print(
            f"[{'green' if check.passed else 'red'}]{'ok  ' if check.passed else 'FAIL'}[/] {check.name:<14} {check.detail}"
        )
    return passed
