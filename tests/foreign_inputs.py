"""Reads foreign inputs one after the other, with a limit of time for each and of memory for all."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

ROOT = Path(__file__).resolve().parents[1]
SECONDS, MEMORY = 5.0, 2**30


def read_many(
    inputs: SearchStrategy[tuple[str, bytes]], read: Callable[[Path, str, bytes], None], *, count: int
) -> None:
    """Draws so many inputs and reads each. Ends with a list of the inputs that are at fault.

    An input is at fault if its reader raises, takes more than `SECONDS` of CPU time, or writes outside of its folder.

    Args:
        inputs: kind and content; what is at fault is kept in a file whose name ends with the kind.
        read: called with an empty folder, the kind and the content.
    """
    faults: dict[str, str] = {}
    slowest = 0.0
    folder = Path(tempfile.mkdtemp())
    inside = folder / "inside"
    inside.mkdir()
    os.chdir(folder)

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(drawn: tuple[str, bytes]) -> None:
        nonlocal slowest
        kind, content = drawn
        start = time.process_time()
        fault = ""
        try:
            read(inside, kind, content)
        except Exception as error:
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "site-packages" not in one.filename]
            fault = f"{type(error).__name__}: {str(error)[:200]} at {ours[-1].filename}:{ours[-1].lineno}"
        taken = time.process_time() - start
        slowest = max(slowest, taken)
        fault = fault or (f"{taken:.0f} s" if taken > SECONDS else "")
        if fault and f"{kind}: {fault}" not in faults:
            kept = folder.with_name(f"{folder.name}-{len(faults)}-{kind.replace(' ', '-')}")
            kept.write_bytes(content)
            faults[f"{kind}: {fault}"] = str(kept)
        for file in inside.iterdir():
            file.unlink()
        assert list(folder.iterdir()) == [inside], "a file was written outside"

    # The limit counts from here: what the tests themselves import is no input's.
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    with redirect_stdout(StringIO()):  # the trial of a model folder names its steps
        one()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{count} inputs, the slowest {slowest:.2f} s, {peak} MiB in all")
    assert not faults, json.dumps(faults, indent=1)


def read_many_in_a_child(module: str, count: int) -> None:
    """Runs a module that calls `read_many`, in a process of its own: the limit of memory cannot be taken back."""
    command = [sys.executable, "-m", module, str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
