"""Checks this machine against a configuration for `star doctor`: packages, disk, memory, GPU. Then runs the pipeline's pre-flight."""

import os
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from star.config.experiment import Config
from star.config.files import ModelFolder
from star.config.models import Architecture
from star.doctor.actors import SMALL_PARAMETERS
from star.doctor.check import Check
from star.doctor.estimates import GIB
from star.doctor.preflight import preflight_checks
from star.errors import InputError
from star.terminal import console
from star.units import format_bytes, format_number, format_seconds

PACKAGES = ("torch", "transformers", "trl", "accelerate", "kfp", "mlflow")
LARGE_NEEDS = (200, 64)  # GiB of disk and of memory
SMALL_NEEDS = (2, 6)


def machine_checks(config: Config) -> Iterator[Check]:
    """Yields the checks of this machine, one after another."""
    from star.home import home

    for package in PACKAGES:
        try:
            yield Check(package, True, version(package))
        except PackageNotFoundError:
            yield Check(package, False, f"not installed: pip install {package}")
    large = _is_large(config.teacher.base) or _is_large(config.student.base)
    disk_needed, memory_needed = LARGE_NEEDS if large else SMALL_NEEDS
    # The folder of runs may not exist yet: its nearest existing parent is on the same disk.
    folder = next(folder for folder in (home(), *home().parents) if folder.exists())
    free = shutil.disk_usage(folder).free / GIB
    yield Check(
        "disk",
        free >= disk_needed,
        f"{free:.0f} GiB free at {folder}, {disk_needed} needed: free some, or set STAR_HOME elsewhere",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    # The kernel keeps a part for itself: a machine sold with 64 GiB reports a little less.
    enough = memory >= memory_needed * 0.95
    yield Check("memory", enough, f"{memory:.0f} GiB, {memory_needed} needed: choose a larger machine")
    yield Check("home", os.access(folder, os.W_OK), f"{home()} must be writable: set STAR_HOME to a folder of yours")
    if large:
        import torch

        has_gpu = torch.cuda.is_available()
        missing = "none found: this profile trains pretrained models, use a GPU node"
        yield Check("GPU", has_gpu, torch.cuda.get_device_name() if has_gpu else missing)


def _is_large(base: ModelFolder | Architecture | str) -> bool:
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
    yield from machine_checks(config)
    yield from preflight_checks(without_secrets)


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
    on_cards = _is_large(config.teacher.base)
    costs, prices = stage_costs(work), {}
    for stage, cost in costs.items():
        parts = [f"{format_bytes(cost.disk)} on disk"]
        if on_cards and cost.card_seconds:
            price = config.cluster.node_of(stage).accelerator_price
            prices[stage] = None if price is None else cost.card_seconds / 3600 * price
            parts.insert(0, f"{_of_cards(cost.card_seconds, prices[stage], config)}")
        if cost.core_seconds >= 1:
            parts.insert(0, f"{format_seconds(round(cost.core_seconds))} of one core")
        yield f"     {stage:<22} {', '.join(parts)}"
    if on_cards:
        known = [price for price in prices.values() if price is not None]
        total = sum(known) if len(known) == len(prices) else None
        yield f"     {'all of them':<22} {_of_cards(sum(cost.card_seconds for cost in costs.values()), total, config)}"


def _of_cards(seconds: float, price: float | None, config: Config) -> str:
    """A time of one card, and what it costs if the profile says what an hour does."""
    from star.doctor.costs import CARD

    money = f" ({format_number(price)} {config.cluster.currency})" if price is not None else ""
    return f"{format_seconds(round(seconds))} of one {CARD}{money}"
