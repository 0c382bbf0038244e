"""The supervisor of a task, with real child processes: which failures are tried again, after which pauses, and what the log says."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star.cluster import supervisor
from star.cluster.supervisor import ATTEMPT_LINE, supervise
from star.config.cluster import Retry
from star.errors import PipelineError

# A process that fails at each of its first attempts in another way, and counts the attempts in a file.
CHILD = """
import os, signal, sys
from pathlib import Path
count = Path(sys.argv[1])
before = count.read_text() if count.exists() else ""
count.write_text(before + os.environ.get("STAR_HALF_MICRO_BATCH", "0"))
faults = sys.argv[2:]
if len(before) < len(faults):
    fault = faults[len(before)]
    if fault.isdecimal():
        os.kill(os.getpid(), int(fault))
    from star.cluster.failure import report_error
    from star.errors import GpuMemoryError, InputError, UnavailableError
    error = {
        "input": InputError("rows.jsonl, line 4: not a row"),
        "unavailable": UnavailableError("s3://models cannot be used"),
        "gpu": GpuMemoryError("too small for 8 sequences", micro_batch_size=8),
        "gpu-1": GpuMemoryError("too small for 1 sequence", micro_batch_size=1),
        "error": ZeroDivisionError("division by zero"),
    }[fault]
    report_error(error)
    sys.exit(2 if isinstance(error, InputError) else 1)
"""
QUICK = Retry(attempts=2, backoff_seconds=0)


def child(folder: Path, *faults: object) -> list[str]:
    return [sys.executable, "-c", CHILD, str(folder / "attempts"), *map(str, faults)]


def attempts(log: str) -> list[tuple[str, str | None]]:
    """The kind of each attempt's end, and the pause after it."""
    found = [ATTEMPT_LINE.fullmatch(line) for line in log.splitlines()]
    return [(match["kind"], match["pause"]) for match in found if match]


def test_what_may_pass_is_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    retry = Retry(attempts=5, backoff_seconds=1, factor=3, max_seconds=2)
    began = time.monotonic()
    supervise(child(tmp_path, "unavailable", 9), name="rollout 2/4", retry=retry)
    assert time.monotonic() - began >= 3
    log = capfd.readouterr().err
    assert attempts(log) == [("unavailable", "1"), ("killed", "2"), ("done", None)]
    assert "attempt 1 of 6 (rollout 2/4) ended after " in log and ", next in 1 s: s3://models cannot be used\n" in log
    assert ": killed, next in 2 s: ended by SIGKILL" in log


@pytest.mark.parametrize(
    ("fault", "kind", "reason", "input_fault"),
    [
        ("input", "input", "rows.jsonl, line 4: not a row", True),
        ("gpu-1", "input", "too small for 1 sequence", True),
        ("error", "error", "ZeroDivisionError: division by zero", False),
    ],
)
def test_what_stays_wrong_is_not_tried_again(
    fault: str, kind: str, reason: str, input_fault: bool, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    with pytest.raises(PipelineError) as failed:
        supervise(child(tmp_path, fault), name="distill", retry=QUICK)
    assert (str(failed.value), failed.value.input_fault) == (reason, input_fault)
    assert attempts(capfd.readouterr().err) == [(kind, None)]


def test_the_micro_batch_is_halved_once(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(PipelineError, match="too small for 8 sequences"):
        supervise(
            child(tmp_path, "gpu", "unavailable", "gpu", "gpu"),
            name="distill",
            retry=Retry(attempts=9, backoff_seconds=0),
        )
    assert (tmp_path / "attempts").read_text() == "011"
    assert attempts(capfd.readouterr().err) == [("gpu-memory", "0"), ("unavailable", "0"), ("gpu-memory", None)]


def test_what_is_no_report_is_passed_over_and_a_message_stays_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Programs that a stage starts inherit the folder, and an error can hold a whole answer of a server."""
    program = r"""
import json, os
from pathlib import Path
long = "attempt 1 of 9 (distill) ended after 1 s: done\n" * 100000
reports = [b"{", b"[]", b"\xff", b'{"kind": "unknown", "message": "", "signal": 0}', b'{"kind": "input"}']
reports.append(json.dumps({"kind": "unavailable", "message": long, "signal": 0, "more": 1}).encode())
for number, report in enumerate(reports):
    Path(os.environ["STAR_FAILURES"], f"{number}.json").write_bytes(report)
exit(1)
"""
    with pytest.raises(PipelineError) as failed:
        supervise([sys.executable, "-c", program], name="distill", retry=Retry(attempts=0))
    assert len(str(failed.value)) < 5000 and "\n" not in str(failed.value)
    assert attempts(capfd.readouterr().err) == [("unavailable", None)]


def test_a_real_time_signal_has_a_number(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="ended by signal 40"):
        supervise(child(tmp_path, 40), name="distill", retry=Retry(attempts=0))


def test_there_are_as_many_attempts_as_the_profile_says(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(PipelineError, match="ended by SIGSEGV"):
        supervise(child(tmp_path, 11, 11, 11, 11), name="merge", retry=QUICK)
    assert attempts(capfd.readouterr().err) == [("killed", "0"), ("killed", "0"), ("killed", None)]


@pytest.mark.parametrize(
    ("kills", "note"),
    [
        ("1", "SIGKILL, because the container's memory of 6 GiB was full: raise `memory` of its node"),
        ("0", "SIGKILL; where nobody did it, the container's memory of 6 GiB was too small"),
    ],
)
def test_a_killed_process_names_the_memory_that_it_had(
    kills: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{6 << 30}\n")
    events = tmp_path / "memory.events"
    events.write_text("oom 0\noom_kill 0\n")
    command = ["sh", "-c", f"echo 'oom_kill {kills}' > {events}; kill -9 $$"]
    with pytest.raises(PipelineError, match=note):
        supervise(command, name="refine", retry=Retry(attempts=0))


# A task whose child waits for a signal, or whose supervisor waits for the next attempt.
TASK = """
import sys
from star.cluster.failure import ends_in_a_sentence
from star.cluster.supervisor import supervise
from star.config.cluster import Retry
with ends_in_a_sentence():
    supervise(sys.argv[1:], name="distill", retry=Retry(attempts=5, backoff_seconds=300))
"""
PATIENT = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("ready", flush=True)
signal.pause()
"""


@pytest.mark.parametrize("place", ["child", "pause"])
def test_sigterm_is_passed_on_once_and_ends_the_task(place: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PATIENT] if place == "child" else child(tmp_path, 9)
    task = subprocess.Popen(
        [sys.executable, "-c", TASK, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    line = task.stdout.readline()
    assert line == "ready\n" if place == "child" else "next in 300 s" in line
    task.send_signal(signal.SIGTERM)
    rest, _ = task.communicate(timeout=30)
    assert task.returncode == 143
    assert rest == ("saved\n" if place == "child" else "")


def test_a_task_that_is_killed_leaves_no_child() -> None:
    orphan = (
        "import time; from star.progress import exit_with_runner; exit_with_runner(); print(flush=True); time.sleep(60)"
    )
    task = subprocess.Popen([sys.executable, "-c", TASK, sys.executable, "-c", orphan], stdout=subprocess.PIPE)
    task.stdout.readline()
    task.kill()
    task.wait()
    began = time.monotonic()
    assert task.stdout.read() == b""  # until the last process that could write has ended
    assert time.monotonic() - began < 30


def test_what_a_killed_process_had_started_ends_with_it() -> None:
    command = [sys.executable, "-c", TASK.replace("attempts=5", "attempts=0"), "sh", "-c", "sleep 60 & kill -9 $$"]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True)  # until nobody could write any more
    assert done.returncode == 1 and time.monotonic() - began < 30
