"""Ctrl-C waits for the end of the iteration."""

import os
import signal
import threading

import pytest

from cellfluxrl.rl.interrupt import PATIENCE, Interrupt


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_while_it_is_entered(number):
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
    assert signal.getsignal(number) == before


def test_the_third_signal_interrupts_at_once():
    with Interrupt(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in range(PATIENCE):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interrupt.requested


def test_another_thread_can_enter_it_too():
    seen = []

    def work():
        with Interrupt() as interrupt:
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
