import os
import signal
import threading

import pytest

from cellfluxrl.data import processes

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to a thread are POSIX")


@pytest.fixture
def default_interrupt():
    """A shell that runs the tests in the background has Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("to_all", [True, False], ids=["to the process", "to another thread"])
def test_ctrl_c_while_a_process_starts_waits_until_it_has_started(default_interrupt, to_all):
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    started = []

    def start() -> None:
        with processes._interrupts_later():
            if to_all:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                signal.pthread_kill(other.ident, signal.SIGINT)
            threading.Event().wait(0.05)  # a signal that another thread took is answered at the next instruction
            started.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        end.set()
        other.join()
    assert started
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with processes._interrupts_later():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
