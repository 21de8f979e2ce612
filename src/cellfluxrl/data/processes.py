"""A `map` that works ahead in processes, and whose processes never outlive the one that asked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice

from cellfluxrl.data.cells import Map, R, T


@contextmanager
def process_map(num_proc: int) -> Iterator[Map]:
    """Give a `map` that runs in `num_proc` processes, or the built-in one for 1.

    Results come in order, and at most two items a process are worked ahead, so that memory stays bounded however long
    the iterable. Functions and items are pickled.
    """
    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}")
    if num_proc == 1:
        yield map
        return
    pool = ProcessPoolExecutor(num_proc, multiprocessing.get_context("spawn"), begin_worker)

    def map_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        def submit(item: T) -> Future[R]:
            with _interrupts_later():  # one of the first calls starts the processes
                return pool.submit(function, item)

        items = iter(items)
        waiting = deque(submit(item) for item in islice(items, 2 * num_proc))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(submit(item) for item in islice(items, 1))
            yield result

    try:
        yield map_ahead
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"one of {num_proc} processes ended unexpectedly: where memory ran out, a smaller num_proc needs less; "
            'a script needs `if __name__ == "__main__":` around what it runs'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and processes that are started within never get it.

    Blocking the signal alone, which processes inherit, is not enough: another thread of this process may take it, and
    Python then interrupts the main thread all the same, in the middle of starting a new process.
    """
    if threading.current_thread() is not threading.main_thread():  # it gets no KeyboardInterrupt
        yield
        return
    came = []
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_block else None
    try:
        yield
    finally:
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def begin_worker() -> None:
    """Set up a process of a pool: it ignores Ctrl-C, which the parent answers, and ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
