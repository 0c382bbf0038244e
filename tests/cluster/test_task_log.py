"""Why a task failed and how far its work is, by what its pod printed."""

import pytest

from star.cluster.task_log import Progress, failure_reason, progress_of, retries, work_lines

KFP = "[KFP Executor 2026-01-01 00:00:31,100 INFO]: Looking for component `distill`\n"
END = """I0101 00:00:59.100000      21 launcher_v2.go:151] publish success.
F0101 00:00:59.200000      21 main.go:57] failed to execute component: exit status {code}
time="2026-01-01T00:00:59.000Z" level=info msg="sub-process exited" argo=true error="<nil>"
Error: exit status 1
"""
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    raise E\n'
ATTEMPT = "attempt {n} of 3 (distill) ended after 5.0 s: {how}\n"


@pytest.mark.parametrize(
    ("printed", "code", "text", "input_fault"),
    [
        ("star: no file at tools.json: check the path\n", 2, "no file at tools.json: check the path", True),
        ("star: two faults:\n    the first\n    the second\n", 2, "two faults:\nthe first\nthe second", True),
        (ATTEMPT.format(n=1, how="input, no other attempt") + "star: bad row\n", 1, "bad row", True),
        ("star: the reward collapsed\n", 1, "the reward collapsed", False),
        (f"{TRACEBACK}star.errors.InputError: bad row\n", 1, "bad row", True),
        (f"{TRACEBACK}E: first\n\n{TRACEBACK}ValueError: a\nb\n", 1, "ValueError: a\nb", False),
        ("1\n2\n3\n4\n5\n6\n", 3, "2\n3\n4\n5\n6\nexit code 3", False),
        ("star: stopped\nand went on\n", 3, "star: stopped\nand went on\nexit code 3", False),
        (
            ATTEMPT.format(n=3, how="killed, no other attempt")
            + "star: ended by SIGKILL, because the container's memory of 3 GiB was full: raise `memory`\n",
            1,
            "OOMKilled: ended by SIGKILL, because the container's memory of 3 GiB was full: raise `memory`",
            False,
        ),
    ],
)
def test_the_reason_is_what_the_task_ended_with(printed: str, code: int, text: str, input_fault: bool) -> None:
    reason = failure_reason(KFP + printed + END.format(code=code))
    assert reason and (reason.text, reason.input_fault, reason.is_error) == (text, input_fault, True)


def test_a_log_without_an_end_shows_its_last_lines() -> None:
    reason = failure_reason(KFP + "step 1\nstep 2\n")
    assert reason and (reason.text, reason.headline, reason.is_error) == ("step 1\nstep 2", "step 2", False)
    assert failure_reason(KFP) is None and failure_reason("") is None
    assert len(failure_reason("x" * 10_000).text) < 600


def test_a_bar_is_the_line_that_it_shows_last() -> None:
    assert work_lines("load:  0%\rload: 50%\rload: 100%\r\nloaded\r\n") == ["load: 100%", "loaded"]


def test_an_error_of_the_launcher_itself_is_kept() -> None:
    error = "F0101 00:00:59.200000      21 main.go:57] failed to upload output artifact: AccessDenied"
    assert work_lines(KFP + f"done\n{error}\n") == ["done", error]


def test_attempts_that_were_followed_by_another_are_listed() -> None:
    first = ATTEMPT.format(n=1, how="unavailable, next in 60 s: MLflow did not answer: check it")
    assert retries(first + ATTEMPT.format(n=2, how="done")) == [
        "attempt 1 of 3 failed (unavailable): MLflow did not answer: check it; the next starts in 60 s"
    ]


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (
            "distil the student (CKD): 40/270, about 3 min 2 s left",
            Progress("distil the student (CKD)", 40, 270, "3 min 2 s"),
        ),
        ("distil the student (CKD): 0/270", Progress("distil the student (CKD)", 0, 270, None)),
        ("read rows: 12000", Progress("read rows", 12000, None, None)),
        ("loss: 0.5", None),
        ("", None),
    ],
)
def test_progress_is_that_of_the_last_progress_line(line: str, progress: Progress | None) -> None:
    found = progress_of(f"{KFP}{line}\nsomething else\n")
    assert found == progress and (found is None or str(found) == line)
