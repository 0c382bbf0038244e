"""Tries a model folder in a child process with limits of time and memory, before this process loads it.

A chat template is a program, a tokenizer has regular expressions, a configuration has sizes: each can cost any time and
memory, and nothing in this process could stop it. The child (trial_child.py) reads them without torch, renders
conversations and splits the texts into tokens. A folder that a stage wrote and that was verified is not tried.

What only the child's limits show is refused here. Any other fault is left to the loader, which names it better.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star.config.model_files import deciding_files, named_shards
from star.config.safety import current_safety
from star.errors import InputError
from star.folders.manifest import was_verified

CHILD = Path(__file__).with_name("trial_child.py")
WAITED = 6  # times the CPU time: other processes may have the processor, and the disk may be slow
PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT")  # no secrets among them

_passed: set[tuple] = set()


def try_model(folder: Path, *, conversations: Sequence[dict[str, Any]] = ()) -> None:
    """Tries a model folder once per process and content.

    Args:
        conversations: what the model will be asked, `messages` and `tools` each; tried beside the child's own.

    Raises:
        InputError: it takes more time or memory than the configuration's `safety` allows, or its sizes are absurd.
    """
    if was_verified(folder):
        return
    stats = [(name, (folder / name).stat()) for name in deciding_files(folder)]
    content = (folder.resolve(), *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
    if content in _passed and not conversations:
        return
    if reason := _reason_to_refuse(folder, conversations):
        raise InputError(f"model {folder} is refused before it is loaded: {reason}")
    _passed.add(content)


def _reason_to_refuse(folder: Path, conversations: Sequence[dict[str, Any]]) -> str | None:
    safety = current_safety()
    request = {
        "folder": str(folder),
        "shards": named_shards(folder),
        "conversations": list(conversations),
        "seconds": safety.model_seconds,
        "bytes": int(safety.model_memory * 2**30),
    }
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        # -P: what lies beside the child or in the current folder is not imported.
        done = subprocess.run(
            [sys.executable, "-P", str(CHILD)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=WAITED * safety.model_seconds,
            env={**environment, "TOKENIZERS_PARALLELISM": "false"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return _limit_reason(_last_step(error.stdout or b""), f"{WAITED * safety.model_seconds} s", "model_seconds")
    said = done.stdout.decode(errors="replace").splitlines()
    if said and said[-1] == "done":
        return None
    if said and said[-1].startswith("refused: "):
        return f"{said[-1].removeprefix('refused: ')}; download it again, or choose another model"
    step = _last_step(done.stdout)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return _limit_reason(step, f"{safety.model_seconds} s of CPU time", "model_seconds")
    # Python's MemoryError, and what native code does without memory: abort, or a fault.
    if done.returncode == 3 or done.returncode < 0:
        return _limit_reason(step, f"{safety.model_memory:g} GiB of memory", "model_memory")
    fault = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"the trial of {folder} failed in {step}: {fault[:500]}")


def _last_step(stdout: bytes) -> str:
    return (stdout.decode(errors="replace").splitlines() or ["its start"])[-1]


def _limit_reason(step: str, limit: str, setting: str) -> str:
    return f"{step} takes more than {limit} (`safety.{setting}` of the configuration raises it)"
