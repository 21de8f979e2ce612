"""Crops per second of the panel of morphology features, with and without segmentation, on one core.

Run as `OMP_NUM_THREADS=1 python benchmarks/morphology.py`.
"""

import time
from collections.abc import Callable

import torch

from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.evaluation.features.morphology import morphology_feature_names, morphology_features
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

COUNTS = {48: 512, 96: 128, 512: 4}  # crops by their size


def crops_per_second(function: Callable[[], object], count: int, repeats: int = 3) -> float:
    """Return the best rate of a few runs, the one least disturbed by other programs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


def main() -> None:
    torch.set_num_threads(1)
    names = (CONTROL, *MOAS)
    segmenter = WatershedSegmenter()
    print(f"{len(morphology_feature_names(segmenter.channel_names))} features of simulated cells")
    for size, count in COUNTS.items():
        crops = simulate_cells([names[i % len(names)] for i in range(count)], image_size=size)
        images = torch.from_numpy(crops.image).float() / 127.5 - 1
        masks = segmenter(crops.image.astype("float32") / 255)
        alone = crops_per_second(lambda i=images, m=masks: morphology_features(i, m), count)
        both = crops_per_second(lambda i=images: morphology_features(i, segmenter), count)
        print(f"{size}x{size}: {alone:6.1f} crops/s given the masks, {both:6.1f} with the watershed")


if __name__ == "__main__":
    main()
