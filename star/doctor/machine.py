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
from star.config.files import GgufFile, ModelFolder
from star.config.models import Architecture
from star.doctor.actors import SMALL_PARAMETERS
from star.doctor.check import Check, run_check
from star.doctor.estimates import GIB, disk_needed, host_memory_needed
from star.doctor.hub import HUB
from star.doctor.preflight import preflight_checks
from star.errors import InputError
from star.terminal import console
from star.units import format_bytes, format_number, format_seconds

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
    yield Check("home", os.access(folder, os.W_OK), f"{home()} must be writable: set STAR_HOME to a folder of yours")


def room_checks(config: Config) -> Iterator[Check]:
    """Yields the checks of disk, memory and GPU against what the models need, by their configurations."""
    import torch

    has_gpu = torch.cuda.is_available()
    yield run_check("disk", partial(_check_disk, config))
    yield run_check("memory", partial(_check_memory, config, has_gpu=has_gpu))
    if _is_large(config.teacher.base) or _is_large(config.student.base):
        missing = "none found: this profile trains pretrained models, use a GPU node"
        yield Check("GPU", has_gpu, torch.cuda.get_device_name() if has_gpu else missing)


def _check_disk(config: Config) -> str:
    needed, folder = max(FEWEST_DISK, disk_needed(config) / GIB), _existing_home()
    free = shutil.disk_usage(folder).free / GIB
    said = f"{free:.0f} GiB free at {folder}, {needed:.0f} needed for results, checkpoints and models of the hub"
    if free < needed:
        raise InputError(f"{said}: free some, or set STAR_HOME elsewhere")
    return said


def _check_memory(config: Config, *, has_gpu: bool) -> str:
    by_stage = {
        stage: host_memory_needed(config, stage, accelerator=has_gpu, processes=1) / GIB
        for stage in get_args(ModelStage)
    }
    stage = max(by_stage, key=lambda name: by_stage[name])
    needed = max(FEWEST_MEMORY, by_stage[stage])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    said = f"{memory:.0f} GiB, {needed:.0f} needed" + (f" for {stage}" if needed > FEWEST_MEMORY else "")
    # The kernel keeps a part for itself: a machine sold with 64 GiB reports a little less.
    if memory < needed * 0.95:
        raise InputError(f"{said}: choose a larger machine")
    return said


def _existing_home() -> Path:
    """The folder of runs may not exist yet: its nearest existing parent is on the same disk."""
    from star.home import home

    return next(folder for folder in (home(), *home().parents) if folder.exists())


def _is_large(base: ModelFolder | GgufFile | Architecture | str) -> bool:
    """Whether a base is too large for a laptop. One of the hub or in S3 counts as large, because nothing of it is here yet."""
    if isinstance(base, ModelFolder):
        if base.is_in_s3:
            return True
        # 4 bytes for a parameter in fp32.
        return sum(file.stat().st_size for file in Path(base.path).glob("*.safetensors")) > 4 * SMALL_PARAMETERS
    return isinstance(base, str)


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


def print_checks(checks: Iterable[Check], config: Config) -> bool:
    """Prints every check, then the costs of the configuration. Returns whether all passed."""
    from rich.text import Text

    screen = console()
    all_passed = True
    colours = {"ok  ": "green", "FAIL": "red"}
    for check in checks:
        all_passed &= check.passed
        word = Text(check.word, style=colours.get(check.word, "yellow"))
        screen.print(word, f"{check.name:<22} {check.detail}", soft_wrap=True)
    for line in cost_lines(config):
        screen.print(line, soft_wrap=True)
    return all_passed


def cost_lines(config: Config) -> Iterator[str]:
    """Yields what each stage will cost, by the formulas of docs/scale.md."""
    from star.doctor.costs import stage_costs
    from star.doctor.estimates import workload

    try:
        work = workload(config)
    except InputError as error:
        yield f"     costs                  not known: {error}"
        return
    yield (
        f"about the costs of {work.rows:,} rows with {work.samples} samples each, for prompts of {work.prompt_tokens:,.0f} "
        f"and answers of {work.completion_tokens:,.0f} tokens (docs/scale.md):"
    )
    large = _is_large(config.teacher.base)
    costs, prices = stage_costs(work), {}
    for stage, cost in costs.items():
        parts = [f"{format_bytes(cost.disk)} on disk"]
        node = config.cluster.node_of(stage)
        if cost.card_seconds and (large or node.accelerator):
            price = node.accelerator_price
            prices[stage] = None if price is None else cost.card_seconds / 3600 * price
            parts.insert(0, _of_cards(cost.card_seconds, prices[stage], config))
        if cost.core_seconds >= 1:
            parts.insert(0, f"{format_seconds(round(cost.core_seconds))} of one core")
        yield f"     {stage:<22} {', '.join(parts)}"
    if prices:
        known = [price for price in prices.values() if price is not None]
        total = sum(known) if len(known) == len(prices) else None
        yield f"     {'all of them':<22} {_of_cards(sum(costs[stage].card_seconds for stage in prices), total, config)}"


def _of_cards(seconds: float, price: float | None, config: Config) -> str:
    """A time of one card, and what it costs if the profile says what an hour does."""
    from star.doctor.costs import CARD

    money = f" ({format_number(price)} {config.cluster.currency})" if price is not None else ""
    return f"{format_seconds(round(seconds) if seconds >= 1 else seconds)} of one {CARD}{money}"
