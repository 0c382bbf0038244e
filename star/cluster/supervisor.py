r"""Runs a stage of a compiled task as a child process, and tries it again after a failure that may pass.

KFP starts a task again only after its pod was lost; a process that ends with an error is final for it
(docs/kubernetes-operations.md#retries). So the task itself decides, by what its child reports (failure.py):

| kind | what happened | tried again |
|---|---|---|
| `input` | the user's input is at fault | never |
| `unavailable` | object store, tracking server or teacher's server did not answer | yes |
| `gpu-memory` | a training step did not fit into the GPU's memory | once, with half the micro batch and twice the accumulation |
| `killed` | a signal ended the process, or a rank of it | yes |
| `error` | anything else: its traceback is in the log | never |

There are `cluster.retry.attempts` retries in all, after pauses that grow. A stage goes on from its last checkpoint, because its folders are
those of the attempt before. After SIGTERM, which the child gets once, there is no other attempt.

Each attempt prints one line when it ends. It is read by ATTEMPT_LINE:

    attempt 1 of 3 (distill) ended after 71.2 s: unavailable, next in 60 s: MLflow at http://mlflow:5000 cannot be used: ...
    attempt 2 of 3 (distill) ended after 5.0 s: killed, next in 120 s: ended by SIGKILL, because the container's memory of 6 GiB was full
    attempt 3 of 3 (distill) ended after 88.4 s: done

    attempt 1 of 3 (rollout 2/4) ended after 0.4 s: input, no other attempt
    star: runs/data/train.jsonl, line 4: not a row: ...

The name in brackets is that of the stage or merge, with its shard. The child's output is the task's output.
"""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from star.cluster.failure import FOLDER_VARIABLE, INPUT_AT_FAULT, Failure, Kind, read_reports
from star.config.cluster import Retry
from star.config.training import HALF_MICRO_BATCH
from star.errors import PipelineError
from star.progress import exit_with_runner, print_line
from star.sigterm import EXIT_STATUS, sigterm_raises_system_exit

ATTEMPT_LINE = re.compile(
    r"attempt (?P<attempt>\d+) of (?P<most>\d+) \((?P<name>[\w-]+(?: \d+/\d+)?)\) ended after (?P<seconds>[\d.]+) s: "
    r"(?P<kind>[\w-]+)(?:, (?:next in (?P<pause>\d+) s: (?P<reason>.*)|no other attempt))?"
)
TRIED_AGAIN = (Kind.UNAVAILABLE, Kind.GPU_MEMORY, Kind.KILLED)
CGROUP = Path("/sys/fs/cgroup")  # in a container its own


def supervise(command: list[str], *, name: str, retry: Retry) -> None:
    """Runs a command until it succeeds, or until nothing more is to be tried.

    Args:
        command: the stage, such as `python -m star.cli distill ...`.
        name: of the stage or merge, with its shard, for the lines about attempts.
        retry: number and pauses of the retries.

    Raises:
        PipelineError: the last attempt failed; the message is its reason.
        SystemExit: this process received SIGTERM, and its child has ended.
    """
    # The child watches this process, so this process has to watch a runner of its own.
    exit_with_runner()
    environment = {**os.environ, "STAR_RUNNER": str(os.getpid())}
    most = retry.attempts + 1
    with sigterm_raises_system_exit(ignore_repeats=True):
        for attempt in range(1, most + 1):
            began = time.monotonic()
            failure = _run(command, environment)
            line = f"attempt {attempt} of {most} ({name}) ended after {time.monotonic() - began:.1f} s: "
            if failure is None:
                print_line(f"{line}done")
                return
            is_halved = HALF_MICRO_BATCH in environment
            if attempt == most or failure.kind not in TRIED_AGAIN or (failure.kind is Kind.GPU_MEMORY and is_halved):
                print_line(f"{line}{failure.kind}, no other attempt")
                raise PipelineError(failure.message, input_fault=failure.kind is Kind.INPUT)
            if failure.kind is Kind.GPU_MEMORY:
                environment[HALF_MICRO_BATCH] = "1"
            pause = retry.pause(attempt)
            print_line(f"{line}{failure.kind}, next in {pause} s: {failure.message}")
            time.sleep(pause)


def _run(command: list[str], environment: dict[str, str]) -> Failure | None:
    """Runs the command once. Returns why it failed, or None if it succeeded."""
    kills = _memory_kills()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a process that outlives the child may write there
        process = subprocess.Popen(command, env={**environment, FOLDER_VARIABLE: folder}, process_group=0)
        try:
            status = process.wait()
        except (SystemExit, KeyboardInterrupt):
            # A training saves a checkpoint before it ends.
            process.terminate()
            process.wait()
            raise
        if status == 0:
            return None
        # What a killed process had started, such as vLLM's engine, would hold the accelerator in the next attempt.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return _failure(status, read_reports(Path(folder)), memory_was_full=_memory_kills() > kills)


def _failure(status: int, reported: Failure | None, *, memory_was_full: bool) -> Failure:
    ended_by = -status if status < 0 else signal.SIGTERM if status == EXIT_STATUS else 0
    if ended_by:
        reported = Failure(Kind.KILLED, "", signal=ended_by)
    if reported is None:
        kind = Kind.INPUT if status == INPUT_AT_FAULT else Kind.ERROR
        return Failure(kind, f"it ended with status {status}: the reason is in the log above")
    if reported.kind is not Kind.KILLED:
        return reported
    who = f"{reported.message} was ended" if reported.message else "ended"
    return Failure(Kind.KILLED, f"{who} by {reported.signal_name}{_memory_note(reported, memory_was_full)}")


def _memory_note(killed: Failure, memory_was_full: bool) -> str:
    """What a SIGKILL has to do with the container's memory."""
    if killed.signal != signal.SIGKILL:
        return ""
    limit = _memory_limit()
    of_size = f" of {limit / 2**30:.3g} GiB" if limit else ""
    if memory_was_full:
        return f", because the container's memory{of_size} was full: raise `memory` of its node in `cluster.nodes`"
    return f"; where nobody did it, the container's memory{of_size} was too small" if limit else ""


def _memory_limit() -> int | None:
    """The container's limit of memory in bytes, or None without one."""
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of version 2 and 1
        text = _read(CGROUP / file).strip()
        if text.isdecimal() and int(text) < 1 << 60:  # version 1 writes a huge number for none
            return int(text)
    return None


def _memory_kills() -> int:
    """How many processes of this container the kernel has killed because its memory was full."""
    text = _read(CGROUP / "memory.events") + _read(CGROUP / "memory/memory.oom_control")
    return sum(int(count) for count in re.findall(r"^oom_kill (\d+)$", text, re.MULTILINE))


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
