"""Seconds to measure a batch of rollouts: in this process, and in worker processes beside it.

Run as `OMP_NUM_THREADS=1 python benchmarks/reward_workers.py`. Simulated cells of 48x48; the medians of a few runs.
"Waits" is what a policy that samples meanwhile, for as long as measuring takes in its own process, still waits for.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Pipe, shared_memory
from threading import Thread

import numpy as np
import torch

from cellfluxrl import MoAClassifier, RewardSuite, SimulatedCells
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.rewards.workers import RewardWorkers

REPEATS = 7


def median_seconds(function: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def fitted_suite(folder: str) -> tuple[RewardSuite, torch.Tensor, list[str]]:
    """A suite with an untrained classifier, which takes as long as any, and images to measure."""
    builder = SimulatedCells(cache_dir=folder, cells_per_moa=48, controls_per_plate=48, num_plates=2)
    builder.download_and_prepare()
    cells = builder.as_dataset()["train"]
    suite = RewardSuite.fit(cells, MoAClassifier(moas=[CONTROL, *MOAS]).eval())
    return suite, images_to_tensor(open_images(cells)[:]), cells["moa"]


def through_pipe(array: np.ndarray) -> None:
    """Send an array as the workers do; a thread receives it."""
    ours, theirs = Pipe()
    receiver = Thread(target=theirs.recv)
    receiver.start()
    ours.send(array)
    receiver.join()


def through_shared_memory(array: np.ndarray) -> None:
    """Copy an array into shared memory, open it by its name and read it once."""
    memory = shared_memory.SharedMemory(create=True, size=array.nbytes)
    np.ndarray(array.shape, array.dtype, memory.buf)[:] = array
    other = shared_memory.SharedMemory(memory.name)
    np.ndarray(array.shape, array.dtype, other.buf).copy()
    other.close()
    memory.close()
    memory.unlink()


def waited(workers: RewardWorkers, images: torch.Tensor, moa: list[str], busy: float) -> float:
    """Seconds that `result` waits after `busy` seconds of sleep, as of a policy that samples on a GPU."""
    pending = workers.submit(images, moa)
    time.sleep(busy)
    start = time.perf_counter()
    pending.result()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        suite, images, moa = fitted_suite(folder)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        images, moa = images[order], [moa[i] for i in order]

        print("\n| images | float32 MB | pipe, ms | shared memory, ms | uint8 through a pipe, ms |")
        print("| --- | --- | --- | --- | --- |")
        for count in (64, 256):
            array = images[:count].numpy()
            milliseconds = [
                1000 * median_seconds(lambda a=array, f=f: f(a)) for f in (through_pipe, through_shared_memory)
            ]
            milliseconds.append(1000 * median_seconds(lambda a=array: through_pipe(a.astype(np.uint8))))
            print(f"| {count} | {array.nbytes / 1e6:.1f} | " + " | ".join(f"{m:.1f}" for m in milliseconds) + " |")

        print("\n| images | processes | here, s | workers, s | overhead | waits, s |")
        print("| --- | --- | --- | --- | --- | --- |")
        for processes in (1, 2):
            with RewardWorkers(suite, processes) as workers:
                start = time.perf_counter()
                workers.submit(images[: 32 * processes], moa[: 32 * processes]).result()
                started = time.perf_counter() - start
                for count in (64, 256):
                    some, names = images[:count], moa[:count]
                    here = median_seconds(lambda s=some, n=names: suite.measure(s, n, batch_size=32))
                    there = median_seconds(lambda w=workers, s=some, n=names: w.submit(s, n).result())
                    waits = statistics.median(waited(workers, some, names, here) for _ in range(REPEATS))
                    print(
                        f"| {count} | {processes} | {here:.3f} | {there:.3f} | {there / here - 1:+.0%} | {waits:.3f} |"
                    )
            print(f"{processes} started in {started:.1f} s")


if __name__ == "__main__":
    main()
