"""Builds the torchrun command that every process of a training runs."""

import sys
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
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def stage_command(stage: str, *, settings: Path, inputs: dict[str, Path], out: Path) -> list[str]:
    """The module and its arguments that torchrun starts in every process: `star <stage>` with these folders."""
    folders = [f"--{key}={folder}" for key, folder in inputs.items()]
    return ["-m", "star.cli", stage, f"--config={settings}", *folders, f"--out={out}"]
