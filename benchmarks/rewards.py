"""Crops per second of the reward suite on one core, its cost and its memory against the number of crops.

Run as `OMP_NUM_THREADS=1 python benchmarks/rewards.py`. Simulated cells; the classifier has random weights, which
changes nothing in its speed.
"""

import resource
import time

import numpy as np
import torch

from cellfluxrl import MoAClassifier, RewardSuite
from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells

COUNT = 1000
REPEATS = 3


def suite_of(size: int) -> RewardSuite:
    suite = RewardSuite(dict(MoAClassifier(moas=[CONTROL, *MOAS]).config), image_size=[size, size])
    suite.count += 1
    return suite.eval()


def seconds_to_score(suite: RewardSuite, images: np.ndarray, moas: list[str], repeats: int = REPEATS) -> float:
    """The least of a few runs, the one least disturbed by other programs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        suite(images, moas)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    print(f"{torch.get_num_threads()} thread(s)")
    names = (CONTROL, *MOAS)
    moas = [names[i % len(names)] for i in range(COUNT)]
    for size in (48, 96):
        images = simulate_cells(moas, image_size=size).image
        suite = suite_of(size)
        suite(images[:64], moas[:64])
        print(f"{size}x{size}: {COUNT / seconds_to_score(suite, images, moas):6.0f} crops/s")
    for count in (500, 1000, 2000, 4000, 8000):
        many = images[np.arange(count) % COUNT]
        seconds = seconds_to_score(suite, many, list(np.resize(moas, count)), repeats=1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{count:6d} crops of 96x96: {seconds / count * 1e3:.2f} ms a crop, {many.nbytes / 2**20:.0f} MiB of "
              f"pixels, peak memory of the process {peak:.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
