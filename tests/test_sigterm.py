"""SIGTERM: what each of the three blocks does at the first and at a second signal, and which handler is set afterwards."""

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from star.sigterm import (
    EXIT_STATUS,
    SigtermFlag,
    sigterm_raises_system_exit,
    sigterm_raises_system_exit_by_default,
)


@pytest.fixture(autouse=True)
def handler_restored() -> Iterator[None]:
    """Every test starts with the default handler and must restore it."""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    yield
    found = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert found is signal.SIG_DFL


def send_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("block", [sigterm_raises_system_exit, sigterm_raises_system_exit_by_default])
def test_sigterm_raises_system_exit_143(block) -> None:
    with pytest.raises(SystemExit) as exited, block():
        send_sigterm()
    assert exited.value.code == EXIT_STATUS == 143


def test_a_handler_that_is_set_already_is_left_in_place_by_default() -> None:
    with SigtermFlag(on_first=lambda: None, ignore_repeats=True) as flag, sigterm_raises_system_exit_by_default():
        send_sigterm()
    assert flag.received


def test_repeats_do_not_interrupt_the_clean_up() -> None:
    cleaned_up = False
    # What runs after the signal, inside the block, is what this test and the next two are about.
    with pytest.raises(SystemExit), sigterm_raises_system_exit(ignore_repeats=True):  # noqa: PT012 - see above
        try:
            send_sigterm()
        finally:
            send_sigterm()
            cleaned_up = True
    assert cleaned_up


def test_before_exit_is_called_before_the_exception() -> None:
    order = []
    before_exit = partial(order.append, "called")
    with pytest.raises(SystemExit), sigterm_raises_system_exit(before_exit=before_exit):  # noqa: PT012 - see above
        try:
            send_sigterm()
        except SystemExit:
            order.append("raised")
            raise
    assert order == ["called", "raised"]


def test_the_flag_notes_the_first_signal_and_a_second_one_ends_the_work() -> None:
    notes = []
    with (  # noqa: PT012 - see above
        pytest.raises(SystemExit),
        sigterm_raises_system_exit(),
        SigtermFlag(on_first=lambda: notes.append("first"), ignore_repeats=False) as flag,
    ):
        send_sigterm()
        assert flag.received
        send_sigterm()
        pytest.fail("the second SIGTERM must end the work")
    assert notes == ["first"]


def test_the_flag_can_ignore_repeats() -> None:
    notes = []
    with SigtermFlag(on_first=lambda: notes.append("first"), ignore_repeats=True):
        send_sigterm()
        send_sigterm()
    assert notes == ["first"]


def test_other_threads_do_nothing() -> None:
    handlers = []

    def use_all() -> None:
        with (
            sigterm_raises_system_exit(),
            sigterm_raises_system_exit_by_default(),
            SigtermFlag(on_first=lambda: None, ignore_repeats=False),
        ):
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=use_all)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]
