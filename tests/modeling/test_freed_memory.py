"""Memory that a training has freed goes back to the operating system."""

import json
import subprocess
import sys

import pytest

# Blocks below the size that the C library maps apart, freed under one that lives on: what a step leaves behind.
PROGRAM = """
import os, sys
from pathlib import Path
from transformers import TrainerControl, TrainerState
import torch
from star.modeling.freed_memory import ReturnFreedMemory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

torch.ones(8 << 20); torch.ones(6 << 20)  # freed blocks of up to 32 MiB are kept from now on
callback = ReturnFreedMemory()
for count in json.loads(sys.argv[1]):
    blocks = [torch.ones(2 << 20) for _ in range(count)]  # of 8 MiB
    del blocks[:-1]  # the last one lies above the others
    before = resident()
    callback.on_step_end(None, TrainerState(), TrainerControl())
    print(before - resident())
"""


def returned_after_steps(*blocks: int) -> list[int]:
    """MiB that are returned after steps that allocate so many blocks of 8 MiB each."""
    program = [sys.executable, "-c", f"import json{PROGRAM}", json.dumps(blocks)]
    return list(map(int, subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_returned_after_a_step_that_made_the_process_grow() -> None:
    small, large, again = returned_after_steps(20, 100, 100)
    assert small == 0 and large > 600 and again > 600
