"""Crops per second of segmentation and measurement: the batch version and a plain loop over images.

Run as `OMP_NUM_THREADS=1 python benchmarks/segmentation.py`. Real crops are used where CELLFLUXRL_BBBC021_DIR holds
them, simulated cells elsewhere.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from skimage.measure import perimeter_crofton, regionprops

from cellfluxrl.data.normalization import normalize_plate
from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.rewards.measurements import measure
from cellfluxrl.rewards.watershed import WatershedSegmenter

COUNT, SIZE = 1000, 48
DEFAULT_REAL_DATA = Path(__file__).parents[2] / "shared" / "bbbc021_real"


def real_crops(path: Path) -> np.ndarray:
    """Return (COUNT, 3, SIZE, SIZE) crops of a plate, scaled to [0, 1] as in training."""
    crops = normalize_plate(np.load(path)["image"].transpose(0, 3, 1, 2), SIZE)[:COUNT]
    return (crops / 255).astype(np.float32)


def simulated_crops() -> np.ndarray:
    """Return (COUNT, 3, SIZE, SIZE) simulated images of all mechanisms of action in turn."""
    names = (CONTROL, *MOAS)
    moas = [names[i % len(names)] for i in range(COUNT)]
    return (simulate_cells(moas, image_size=SIZE).image / 255).astype(np.float32)


def batched(images: np.ndarray) -> None:
    measure(WatershedSegmenter()(images))


def looped(images: np.ndarray) -> None:
    """Do the same image by image, with scikit-image's own measurements of every object."""
    segment = WatershedSegmenter()
    for image in images:
        masks = segment(image[None])
        for nucleus in regionprops(masks.nuclei[0]):
            _ = 4 * np.pi * nucleus.area / perimeter_crofton(nucleus.image, directions=4) ** 2
        _ = [cell.area for cell in regionprops(masks.cells[0])]
        _ = ((masks.nuclei > 0) & (masks.cells > 0)).sum() / max((masks.nuclei > 0).sum(), 1)


def crops_per_second(function: Callable[[np.ndarray], None], images: np.ndarray, repeats: int = 3) -> float:
    """Return the best rate of a few runs, the one least disturbed by other programs."""
    function(images[:8])
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(images)
        seconds.append(time.perf_counter() - start)
    return len(images) / min(seconds)


def main() -> None:
    path = Path(os.environ.get("CELLFLUXRL_BBBC021_DIR", DEFAULT_REAL_DATA)) / "Week4_27801.npz"
    images = real_crops(path) if path.exists() else simulated_crops()
    print(f"{len(images)} {'real' if path.exists() else 'simulated'} crops of {SIZE}x{SIZE}")
    for name, function in (("batch", batched), ("loop", looped)):
        print(f"{name:>6}: {crops_per_second(function, images):6.0f} crops/s")


if __name__ == "__main__":
    main()
