"""What outsiders write reaches no terminal as an escape sequence: planted in every source, shown by the commands on a real pty."""

import io
import json
import os
import subprocess
import sys
import termios
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star.registry.promotion.register_model import register_model
from star.terminal import _Door, console, continued, visible_controls
from star.tracking.server import connect

PLANTED = "[/x]\x1b]0;PWN\x07\x1b[2J\x9b31m\u202e"  # a wrong markup, window title, clear screen, C1, right to left
# Runs commands of `star` in one process, as the command line would, and goes on after each one.
RUN = """
import json, sys
from star.cli.main import main
{before}
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["star", *arguments]
    try:
        main()
    except SystemExit:
        pass
"""
PLANTED_STATUS = """
from star.cluster.run_tasks import RunStatus, Task
from star.pipelines.kfp_client import KfpClient
text = json.loads(sys.argv[2]) + "\\nSUCCEEDED  run r"
task = Task("rollout", "rollout" + text, "FAILED", pods=("p",))
KfpClient.status = lambda self, run: RunStatus(run, "FAILED", text, (task,))
KfpClient.pod_log = lambda self, run, pod, **options: text
"""


def on_a_terminal(*commands: list[str], before: str = "", cwd: Path | None = None) -> str:
    """What a terminal gets of these commands."""
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (50, 200))  # tqdm draws nothing on a terminal without rows
    process = subprocess.Popen(
        [sys.executable, "-c", RUN.format(before=before), json.dumps(commands), json.dumps(PLANTED)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(follower)
    received = bytearray()
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux reports the end of the last writer so
            break
        if not chunk:
            break
        received += chunk
    os.close(leader)
    process.wait()
    return received.decode("utf-8", "replace")


def assert_harmless(shown: str) -> None:
    for bad in ("\x1b]0", "\x1b[2J", "\x07", "\x9b", "\u202e", "Traceback", "MarkupError"):
        assert bad not in shown, repr(shown)


def test_what_mlflow_and_the_ledger_hold(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    register_model(folder, name="star", scores={"exact_match": 0.5}, lineage={"data": "d"}, model_digest="1")
    client = connect()
    for tag in ("star.lineage.data", "star.lineage.teacher", "star.score.exact_match"):
        client.set_model_version_tag("star", "1", tag, PLANTED)
    digests = json.dumps({"files": PLANTED, "lineage": {PLANTED: PLANTED}})
    client.set_model_version_tag("star", "1", "star.verification", digests)
    (folder / "lineage.json").write_text(
        json.dumps(
            {
                "model": PLANTED,
                "weights": {PLANTED: PLANTED},
                "tokenizer": PLANTED,
                "data": PLANTED,
                "teacher": PLANTED,
                "stages": {},
                "evaluation": {
                    "digest": PLANTED,
                    "stage": PLANTED,
                    "config_digest": "",
                    "code_digest": "",
                    "inputs": {},
                },
                "published": {"commit": "c", "image": PLANTED},
            }
        )
    )
    shown = on_a_terminal(
        ["promote", "1", "--reason", PLANTED],
        ["models"],
        ["models", "diff", "1", "1"],
        ["registry", "ledger"],
        ["lineage", str(folder)],
        ["models", "download", PLANTED, "--out", str(tmp_path / PLANTED.replace("/", ""))],
    )
    assert_harmless(shown)
    assert "Registered versions of star" in shown and "\\x1b]0;PWN" in shown


def test_what_files_hold(tmp_path: Path) -> None:
    api = {"openapi": "3.0.0", "paths": {"/a": {"post": {"requestBody": PLANTED}}}}
    rows = [{"query": PLANTED, "tools": PLANTED, "answers": PLANTED}, {PLANTED: PLANTED}]
    tool = {"name": PLANTED, "description": PLANTED, "parameters": {"type": PLANTED, "required": PLANTED}}
    named = tmp_path / (PLANTED.replace("/", "") + ".json")
    (tmp_path / "api.json").write_text(json.dumps(api))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    named.write_text("{")
    shown = on_a_terminal(
        *(["data", "import", str(file), "--out", str(tmp_path / "o")] for file in sorted(tmp_path.iterdir())),
        ["data", "stats", str(named)],
        ["call", "hi", "--tools", str(tmp_path / "tools.json"), "--model", "./" + PLANTED],
        ["compare", PLANTED, str(named)],
        ["run", "--config", PLANTED],
        [PLANTED],
        ["models", "delete", PLANTED],
    )
    assert_harmless(shown)
    assert "\\x1b]0;PWN" in shown


def test_what_a_cluster_says() -> None:
    shown = on_a_terminal(
        ["pipeline", "status", "r", "--host", "http://localhost:9"],
        ["pipeline", "logs", "r", "--host", "http://localhost:9"],
        before=PLANTED_STATUS,
    )
    assert_harmless(shown)
    # The name and the reason, both again for the run, and the name before each line of the log.
    assert shown.count("\\x1b]0;PWN") == 6
    # A line of the cluster's own, below a line of ours.
    assert "\r\n    SUCCEEDED  run r" in shown and "\r\nSUCCEEDED" not in shown


def test_prints_logs_warnings_and_tracebacks_pass_the_door() -> None:
    before = """
from star.terminal import guard_terminal
guard_terminal()
import logging, warnings
text = json.loads(sys.argv[2])
print(text, "\\udc80"); print("a", text, file=sys.stderr); logging.warning(text); warnings.warn(text)
import traceback, rich
try:
    raise ValueError(text)
except ValueError:
    print(traceback.format_exc().replace("Trace", ""))
rich.print({"a": text})
"""
    shown = on_a_terminal(before=before)
    assert_harmless(shown)
    assert "\\udc80" in shown and shown.count("\\x1b]0;PWN") >= 5


def test_our_own_colours_and_bars_stay() -> None:
    before = """
from star.terminal import guard_terminal
guard_terminal()
from star.progress import Bar
with Bar("[bold]work", 2) as bar:
    bar.advance(2)
import tqdm, time
for _ in tqdm.tqdm(range(2), desc="tqdm", disable=False, ncols=60):
    pass
from star.cli.fail import fail
fail("[red]it failed", status=1)
"""
    shown = on_a_terminal(before=before)
    assert "[bold]work" in shown and "\x1b[?25l" in shown  # the bar hides the cursor
    assert "\rtqdm:   0%" in shown and "\rtqdm: 100%" in shown
    assert "\\x" not in shown
    assert "\x1b[31mstar: [red]it failed\x1b[0m" in shown


@given(st.lists(st.text(alphabet=st.sampled_from("ab\r\n\t\x1b\x07\x9b\u202e\ud800 "), max_size=6), max_size=6))
def test_only_a_bar_may_return_to_the_start_of_its_line(writes: list[str]) -> None:
    screen = io.StringIO()
    door = _Door(cast(io.TextIOWrapper, screen))
    for text in writes:
        assert door.write(text) == len(text)
    shown = screen.getvalue()
    assert not set(shown) & set("\x1b\x07\x9b\u202e\ud800")
    # A return stands only in a line that began with one.
    for line in shown.split("\n"):
        assert "\r" not in line or line.startswith("\r")


@given(st.text())
def test_json_that_passes_the_door_is_the_same_document(text: str) -> None:
    for ascii_only in (True, False):
        assert json.loads(visible_controls(json.dumps({text: [text]}, ensure_ascii=ascii_only))) == {text: [text]}


@given(st.text())
def test_no_text_makes_a_second_line_of_ours(text: str) -> None:
    _, *further = continued(text).split("\n")
    assert all(line.startswith("    ") for line in further)
    assert continued(text).replace("\n    ", "\n") == text or "\n    " in text


def test_right_text_is_shown_as_it_is() -> None:
    for text in ("Grüße, 世界 🙂 👨\u200d👩\u200d👧", "a\tb\n", r"C:\x1b", "[/INST] :smile:"):
        assert visible_controls(text) == text
    screen = io.StringIO()
    console(screen).print("[/INST] :smile:")
    assert screen.getvalue() == "[/INST] :smile:\n"


@pytest.mark.parametrize("data", [b"bytes"])
def test_bytes_are_no_text(data: bytes) -> None:
    with pytest.raises((TypeError, AttributeError)):
        _Door(cast(io.TextIOWrapper, io.StringIO())).write(data)  # type: ignore[arg-type]
