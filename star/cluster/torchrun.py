"""Builds the torchrun command that every process of a training runs, and turns SIGTERM into SystemExit."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from star.config.experiment import Config
from star.stages import stage_named

SETTINGS_FILE = "settings.json"
SIGTERM_EXIT_STATUS = 128 + signal.SIGTERM


def write_settings(stage: str, config: Config, folder: Path) -> Path:
    """Writes the configuration sections that the stage reads to a file for `stage_command`; returns its path."""
    settings = folder / SETTINGS_FILE
    settings.write_text(config.slice(stage_named(stage).sections), encoding="utf-8")
    return settings


def torchrun_command(*flags: str) -> list[str]:
    """torchrun under this Python. What no flag sets, torchrun reads from the environment (PET_NNODES, PET_NODE_RANK, ...)."""
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def stage_command(stage: str, *, settings: Path, inputs: dict[str, Path], out: Path) -> list[str]:
    """The module and its arguments that torchrun starts in every process: `star <stage>` with these folders."""
    folders = [f"--{key}={folder}" for key, folder in inputs.items()]
    return ["-m", "star.cli", stage, f"--config={settings}", *folders, f"--out={out}"]


@contextmanager
def sigterm_raises_system_exit() -> Iterator[None]:
    """Inside this block SIGTERM raises SystemExit, so that the caller can end the processes or jobs it started."""

    def raise_system_exit(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second SIGTERM must not interrupt the clean-up
        raise SystemExit(SIGTERM_EXIT_STATUS)

    before = signal.signal(signal.SIGTERM, raise_system_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
