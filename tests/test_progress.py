"""Progress as lines, as events, and the end of an orphan."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from star.errors import InputError, cure_of
from star.progress import Bar, send_events_to


def test_a_log_gets_lines_with_the_time_left(capsys: pytest.CaptureFixture) -> None:
    with Bar("train", 3, start=1) as bar:
        bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 1/3"
    assert lines[-1].startswith("train: 3/3, about 0 s left")


def test_a_runner_gets_events(tmp_path: Path) -> None:
    events = tmp_path / "events"
    with send_events_to(str(events)), Bar("train", 2) as bar:
        bar.advance()
    assert "STAR_EVENTS" not in os.environ
    read = [json.loads(line) for line in events.read_text().splitlines()]
    assert [(event["kind"], event["done"], event["total"]) for event in read] == [
        ("progress", 0, 2),
        ("progress", 1, 2),
    ]


def test_a_stage_ends_with_its_runner(tmp_path: Path) -> None:
    """A runner killed outright cannot end its stage; the stage must notice."""
    stage = "import time; from star.progress import exit_with_runner; exit_with_runner(); print('up', flush=True); time.sleep(60)"
    runner = (
        "import os, subprocess, sys; os.environ['STAR_RUNNER'] = str(os.getpid());"
        f"child = subprocess.Popen([sys.executable, '-c', {stage!r}], stdout=subprocess.PIPE, text=True);"
        "child.stdout.readline(); print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    started = subprocess.run([sys.executable, "-c", runner], stdout=subprocess.PIPE, text=True)
    pid = int(started.stdout)
    subprocess.run(["tail", f"--pid={pid}", "-f", "/dev/null"], timeout=20, check=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("do this"), "do this"),
        (OSError(28, "No space left on device", "/somewhere"), "/somewhere"),
        (RuntimeError("safetensors: I/O error: No space left on device (os error 28)"), "no space left"),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x"),
        (ValueError("a bug"), None),
    ],
)
def test_only_what_the_user_can_cure_is_a_cure(error: Exception, said: str | None) -> None:
    cure = cure_of(error)
    assert (cure is None) if said is None else (said in cure and "\n" not in cure)


def test_a_full_sqlite_file_is_a_full_disk(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "index")) as database:
        database.execute("create table rows (text)")
        database.execute("pragma max_page_count = 2")  # SQLite answers then as on a full disk
        with pytest.raises(sqlite3.OperationalError) as caught:
            database.execute("insert into rows values (?)", ("long " * 10_000,))
    assert "no space left" in cure_of(caught.value)
