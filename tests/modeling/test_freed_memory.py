"""Memory that a training has freed goes back to the operating system."""

import subprocess
import sys

import pytest

# Many blocks below the size that the C library maps apart, freed under one that lives on: what a step leaves behind.
PROGRAM = """
import os
from pathlib import Path
from transformers import TrainerControl, TrainerState
import torch
from star.modeling.freed_memory import ReturnFreedMemory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

torch.ones(8 << 20); torch.ones(6 << 20)  # freed blocks of up to 32 MiB are kept from now on
blocks = [torch.ones(2 << 20) for _ in range(60)]
del blocks[:-1]  # the last one lies above the others
before = resident()
ReturnFreedMemory().on_step_end(None, TrainerState(), TrainerControl())
print(before - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_returned_after_a_step() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 300
