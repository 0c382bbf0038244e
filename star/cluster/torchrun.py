"""The command that every process of a training runs, under torchrun."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from star.config.experiment import Config
from star.stages import stage_named

SETTINGS = "settings.json"
TOLD_TO_END = 128 + signal.SIGTERM


def write_settings(stage: str, config: Config, folder: Path) -> Path:
    """Writes the sections that a stage reads where `command_of` finds them."""
    settings = folder / SETTINGS
    settings.write_text(config.slice(stage_named(stage).sections), encoding="utf-8")
    return settings


def torchrun(*flags: str) -> list[str]:
    """torchrun by this Python; what no flag says it takes from the environment (PET_NNODES and its like)."""
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def command_of(stage: str, *, settings: Path, inputs: dict[str, Path], out: Path) -> list[str]:
    """What every process of a training runs, as torchrun wants it."""
    folders = [f"--{key}={folder}" for key, folder in inputs.items()]
    return ["-m", "star.cli", stage, f"--config={settings}", *folders, f"--out={out}"]


@contextmanager
def on_sigterm_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit here, so that what was started elsewhere can be ended too."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(TOLD_TO_END)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
