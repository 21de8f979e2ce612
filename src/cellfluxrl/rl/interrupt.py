"""Ctrl-C that waits for the end of the running iteration."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

PATIENCE = 3


class Interrupted(KeyboardInterrupt):
    """The user interrupted, and what was running is saved; the message tells how to go on."""


class Interrupt:
    """While it is entered, Ctrl-C (SIGINT) and SIGTERM only set `requested`; the third of them interrupts at once.

    Two are not enough to mean it: where a launcher started the process, the terminal sends one and the launcher
    another. Signals that the process ignores stay ignored, and only the main thread can be interrupted.

    Example:
        >>> with Interrupt() as interrupt:
        ...     interrupt.requested
        False
    """

    def __init__(self) -> None:
        self.requested = False
        self._count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._count += 1
        if self._count >= PATIENCE:
            raise KeyboardInterrupt
