"""Builds the torchrun command that every process of a training runs."""

import sys
from collections.abc import Mapping
from pathlib import Path

from star.config.experiment import Config
from star.stages import stage_named

SETTINGS_FILE = "settings.json"


def write_settings(stage: str, config: Config, folder: Path) -> Path:
    """Writes the configuration sections that the stage reads to a file for `stage_command`; returns its path."""
    settings = folder / SETTINGS_FILE
    settings.write_text(config.for_stage(stage_named(stage).sections), encoding="utf-8")
    return settings


def torchrun_command(*flags: str) -> list[str]:
    """Returns the torchrun command under this Python.

    What no flag sets, torchrun reads from the environment (PET_NNODES, PET_NODE_RANK, ...).
    """
    return [sys.executable, "-m", "star.cluster.ranks", *flags]


def stage_command(stage: str, *, settings: Path, inputs: Mapping[str, Path | str], out: Path) -> list[str]:
    """The module and its arguments that Python or torchrun starts: `star <stage>` with these folders, and the shard."""
    options = [f"--{key}={value}" for key, value in inputs.items()]
    return ["-m", "star.cli", stage, f"--config={settings}", *options, f"--out={out}"]
