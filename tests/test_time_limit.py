"""A time limit ends its block, whatever the block does, and nothing else."""

import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from star.limits import RECORD_SECONDS_IN_ALL, SECONDS_PER_RECORD
from star.time_limit import TookTooLong, record_limit, time_limit


def _work(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_work_is_ended_with_the_limit_in_its_reason() -> None:
    with pytest.raises(TookTooLong, match=r"more than 0\.1 s"), time_limit(0.1):
        _work(1)
    with time_limit(0.1):
        _work(0.01)
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def _work_on_whatever_happens() -> None:
    for _ in range(2):
        with suppress(TookTooLong):
            _work(1)
    _work(1)


def test_work_that_catches_all_errors_is_ended_too() -> None:
    start = time.thread_time()
    with pytest.raises(TookTooLong), time_limit(0.1):
        _work_on_whatever_happens()
    assert time.thread_time() - start < 1


def test_the_outer_one_of_two_limits_counts() -> None:
    with time_limit(5):
        with time_limit(0.05):
            _work(0.15)
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 1


def test_other_threads_neither_have_a_limit_nor_use_one_up() -> None:
    done = []

    def elsewhere() -> None:
        with time_limit(0.01):
            _work(0.3)
        done.append(True)

    thread = threading.Thread(target=elsewhere)
    with time_limit(0.3):
        thread.start()
        thread.join()
    assert done


def test_an_import_is_not_ended_and_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_module_of_a_test.py").write_text(
        "import time\nend = time.thread_time() + 0.4\nwhile time.thread_time() < end: pass\nWHOLE = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with time_limit(0.2):
        import slow_module_of_a_test  # type: ignore[import-not-found]  # written above
    assert slow_module_of_a_test.WHOLE
    del sys.modules["slow_module_of_a_test"]


def test_no_limit_is_felt_outside_of_its_block() -> None:
    ended = 0
    for number in range(24):
        try:
            # Around the limit, so that the signal comes in the block, in its end, and behind it.
            with time_limit(0.02):
                _work(0.012 + number / 500)
        except TookTooLong:
            ended += 1
        _work(0.002)
    assert 0 < ended < 24


def test_after_many_slow_records_one_has_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert record_limit().seconds == SECONDS_PER_RECORD
    monkeypatch.setattr(record_limit, "lost", RECORD_SECONDS_IN_ALL)
    start = time.thread_time()
    said = r"more than 0\.1 s .*, and those before it that took too long 60 s in all"
    with pytest.raises(TookTooLong, match=said), record_limit():
        _work(5)
    assert time.thread_time() - start < 1
    assert record_limit.lost == RECORD_SECONDS_IN_ALL + 0.1
    with time_limit(1), record_limit():
        _work(0.3)
    with pytest.raises(ZeroDivisionError), record_limit():
        _ = 1 / 0
    assert record_limit.lost == RECORD_SECONDS_IN_ALL + 0.1
