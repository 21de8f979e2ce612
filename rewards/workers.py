"""Rewards beside the next rollouts: processes that measure images, and outlive images that cannot be measured."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch

from cellfluxrl.data.processes import begin_worker
from cellfluxrl.rewards.context import NO_CONTEXT, Context
from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.partial import PartlyMeasured, finite_rows
from cellfluxrl.rewards.plugins import load_plugins
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.rows import Rows

logger = logging.getLogger(__name__)

START_TIMEOUT = 300.0  # seconds; a process imports torch and loads the suite
END_TIMEOUT = 10.0  # seconds; until a process that was killed has ended
NAMED_FAILURES = 4  # in a warning


class RewardWorkers:
    """Measures batches of images in separate processes, while this one continues.

    Segmentation takes the CPU; a policy that samples on a GPU, or on other cores, need not wait for it. Images are
    measured in pieces of `chunk_size`, whatever the number of processes, so that this number changes no result: it is
    that of `suite.measure(images, moa, batch_size=chunk_size)`. The form of the reward, which compares images with
    each other, is left to [`score_partly`].

    One image cannot end the run: where measuring a piece raises an error, takes longer than `timeout` seconds, or ends
    its process, the piece is tried again in a fresh process, then image by image. An image that fails alone is marked,
    named in a warning and counted in `failed_images`. The same holds for images with pixels that are not finite.

    The processes, each with one torch thread, load the suite once from a temporary folder. They know custom rewards
    and segmenters of the suite's plug-ins, of installed packages with entry points, and those that are registered
    where the main script is imported. They ignore Ctrl-C, which this process answers, and end when it ends.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> with RewardWorkers(suite, num_workers=2) as workers:                      # doctest: +SKIP
        ...     pending = workers.submit(images, moa)
        ...     more = sample_the_next_rollouts()
        ...     scores = score_partly(suite, pending.result(), moa, form="energy", groups=groups)
    """

    def __init__(self, suite: RewardSuite, num_workers: int = 1, timeout: float = 60.0, chunk_size: int = 32):
        for name, value in {"num_workers": num_workers, "timeout": timeout, "chunk_size": chunk_size}.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.suite, self.chunk_size, self.failed_images = suite, chunk_size, 0
        self._folder = tempfile.TemporaryDirectory(prefix="rewards-")
        suite.save_pretrained(self._folder.name)
        plugins = suite.config["plugins"]
        self._workers = [_Worker(self._folder.name, plugins or (), timeout) for _ in range(num_workers)]
        self._idle: queue.Queue[_Worker] = queue.Queue()
        self._closed = False
        self._threads = ThreadPoolExecutor(num_workers, initializer=_block_interrupts)
        for worker in self._workers:
            self._idle.put(worker)
            self._threads.submit(worker.start)  # loads beside what comes next; a problem is raised by the first result

    def submit(self, images: torch.Tensor, moa: Sequence[str], context: Context = NO_CONTEXT) -> PendingMeasurements:
        """Begin to measure `(N, C, H, W)` images, floats in [-1, 1] or uint8.

        Raises:
            ValueError: For what the suite refuses: an unknown MoA, images of another kind or size.
        """
        if self._closed:
            raise ValueError("these workers were closed")
        self.suite.check_batch(images, moa, context=context)
        rows = finite_rows(images) if images.is_floating_point() else torch.arange(len(images))
        looked_at = set().union(*self.suite.looks_at.values())
        whole = _Piece(_array(images), np.array(moa), context.only(looked_at).map(_array))
        chunks = [
            (part, self._threads.submit(self._measure, whole.take(part.numpy())))
            for part in (rows.split(self.chunk_size) if len(rows) else ())
        ]
        return PendingMeasurements(self, chunks, len(images))

    def close(self) -> None:
        """End the processes; what is still pending is cancelled."""
        self._closed = True
        for wait in (False, True):
            self._threads.shutdown(wait=wait, cancel_futures=True)
            for worker in self._workers:  # twice: one may have been about to start
                worker.kill()
        self._folder.cleanup()

    def __enter__(self) -> RewardWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _measure(self, piece: _Piece) -> tuple[PartlyMeasured, dict[int, str]]:
        """Measure a piece: what was measured, and by the row of each image that failed, why."""
        worker = self._idle.get()
        try:
            for _ in range(2):
                try:
                    return self._attempt(worker, piece), {}
                except _EndedError:
                    continue
                except _FailedError:  # again would be the same
                    break
            whole, reasons = PartlyMeasured.nothing(self.suite, len(piece)), {}
            for i in range(len(piece)):
                row = slice(i, i + 1)
                try:
                    whole.put(row, self._attempt(worker, piece.take(row)))
                except _FailedError as error:
                    reasons[i] = str(error)
            return whole, reasons
        finally:
            self._idle.put(worker)

    def _attempt(self, worker: _Worker, piece: _Piece) -> PartlyMeasured:
        if self._closed:
            raise CancelledError
        columns = {name: torch.from_numpy(column) for name, column in worker.measure(piece).items()}
        return PartlyMeasured.all_of(Measured.from_tensors(columns))


class PendingMeasurements:
    """Measurements that [`RewardWorkers.submit`] began; [`result`] waits for them."""

    def __init__(
        self,
        workers: RewardWorkers,
        chunks: list[tuple[torch.Tensor, Future[tuple[PartlyMeasured, dict[int, str]]]]],
        count: int,
    ):
        self._workers, self._chunks, self._count = workers, chunks, count
        self._whole: PartlyMeasured | None = None

    def result(self) -> PartlyMeasured:
        """What was measured, and which images failed.

        Raises:
            RuntimeError: If a process cannot load the suite.
        """
        if self._whole is None:
            whole = PartlyMeasured.nothing(self._workers.suite, self._count)
            reasons: dict[int, str] = {}
            for rows, future in self._chunks:
                part, why = future.result()
                whole.put(rows, part)
                reasons |= {int(rows[i]): reason for i, reason in why.items()}
            self._report(whole.failed, reasons)
            self._whole = whole
        return self._whole

    def _report(self, failed: torch.Tensor, reasons: dict[int, str]) -> None:
        images = failed.nonzero()[:, 0].tolist()
        if not images:
            return
        self._workers.failed_images += len(images)
        named = [f"{i} ({reasons.get(i, 'its pixels are not finite')})" for i in images[:NAMED_FAILURES]]
        more = f" and {len(images) - NAMED_FAILURES} more" if len(images) > NAMED_FAILURES else ""
        logger.warning("no reward for %d of %d images: %s%s", len(images), len(failed), ", ".join(named), more)


@dataclass(frozen=True)
class _Piece(Rows):
    """Images that a process measures at once; arrays, which need no shared memory on their way."""

    images: np.ndarray
    moa: np.ndarray
    context: Context


def _array(values: Any) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


class _FailedError(Exception):
    """Measuring raised an error."""


class _EndedError(_FailedError):
    """The process ended, or took too long and was ended."""


class _Worker:
    """A process that measures images, and is started again after it has ended; used by one thread at a time."""

    def __init__(self, folder: str, plugins: Sequence[str], timeout: float):
        self.folder, self.plugins, self.timeout = folder, plugins, timeout
        self.process: BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process, unless it runs, and wait until it has loaded the suite."""
        if self.process is not None and self.process.is_alive():
            return
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.folder, self.plugins), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        try:
            problem = self._answer(None, START_TIMEOUT)
        except _EndedError as error:
            raise RuntimeError(
                f"a process for the rewards did not start: {error}; a script needs "
                '`if __name__ == "__main__":` around what it runs'
            ) from error
        if problem:
            self.kill()
            raise RuntimeError(f"a process for the rewards cannot load the suite: {problem}")

    def measure(self, piece: _Piece) -> dict[str, np.ndarray]:
        """The columns of [`Measured`]; if it fails, the next call starts a fresh process where that is needed."""
        self.start()
        answer = self._answer(piece, self.timeout)
        if isinstance(answer, str):
            raise _FailedError(answer)
        return answer

    def kill(self) -> None:
        """End the process at once."""
        if self.process is not None and self.process.pid is not None:
            self.process.kill()
            self.process.join(END_TIMEOUT)

    def _answer(self, piece: _Piece | None, timeout: float) -> Any:
        assert self.process is not None
        assert self._connection is not None
        begun = time.monotonic()
        deadline = threading.Timer(timeout, self.process.kill)  # which ends what waits for the process
        deadline.start()
        try:
            if piece is not None:
                # Through the pipe: shared memory would save milliseconds at most, see benchmarks/reward_workers.py.
                self._connection.send(piece)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self.kill()
            late = time.monotonic() - begun >= timeout
            raise _EndedError(f"no answer within {timeout:g} s" if late else "its process ended") from error
        finally:
            deadline.cancel()


def _serve(connection: Connection, folder: str, plugins: Sequence[str]) -> None:
    """What a process does: load the suite, then measure what comes until the connection ends."""
    begin_worker()
    torch.set_num_threads(1)
    try:
        load_plugins(plugins)
        suite = RewardSuite.from_pretrained(folder)
        # Torch aligns the memory that it allocates, but neither that of a file nor, below, that of a message, and
        # where a tensor lies can decide the last bit of a product.
        for tensor in (*suite.parameters(), *suite.buffers()):
            tensor.data = tensor.data.clone()
    except Exception as error:
        connection.send(_described(error))
        return
    connection.send(None)
    while True:
        try:
            piece = connection.recv()
        except EOFError:
            return
        try:
            images = torch.from_numpy(piece.images).clone()
            measured = suite.measure_batches(images, piece.moa.tolist(), len(images), piece.context)
            # Measurements and features are not wanted, and would take their time on the way.
            columns = Measured(measured.values, measured.scores).tensors()
            connection.send({name: column.numpy() for name, column in columns.items()})
        except Exception as error:  # a plug-in may raise anything
            connection.send(_described(error))


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _block_interrupts() -> None:
    """Let processes that this thread starts inherit that Ctrl-C is not for them, from their first instruction on."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        resource_tracker.ensure_running()  # when it starts, which the first process would cause, it unblocks Ctrl-C
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
