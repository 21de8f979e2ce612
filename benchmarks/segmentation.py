"""Crops per second of segmentation and measurement: the batch version and a plain loop over images.

Run as `OMP_NUM_THREADS=1 python benchmarks/segmentation.py`. Real crops are used where CELLFLUXRL_BBBC021_DIR holds
them, simulated cells elsewhere.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import label, perimeter_crofton, regionprops
from skimage.segmentation import watershed

from cellfluxrl.data.building.normalization import normalize_plate
from cellfluxrl.data.simulated import CONTROL, MOAS, simulate_cells
from cellfluxrl.rewards.segmentation.measurements import measure
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

COUNT, SIZES = 1000, (48, 96)
DEFAULT_REAL_DATA = Path(__file__).parents[2] / "shared" / "bbbc021_real"


def real_crops(path: Path, size: int) -> np.ndarray:
    """Return (COUNT, 3, size, size) crops of a plate, scaled to [0, 1] as in training."""
    crops = normalize_plate(np.load(path)["image"].transpose(0, 3, 1, 2), size)[:COUNT]
    return (crops / 255).astype(np.float32)


def simulated_crops(size: int) -> np.ndarray:
    """Return (COUNT, 3, size, size) simulated images of all mechanisms of action in turn."""
    names = (CONTROL, *MOAS)
    moas = [names[i % len(names)] for i in range(COUNT)]
    return (simulate_cells(moas, image_size=size).image / 255).astype(np.float32)


def batched(images: np.ndarray) -> None:
    measure(WatershedSegmenter()(images))


def looped(images: np.ndarray) -> None:
    """Do about the same image by image, as scikit-image's documentation does it."""
    for image in images:
        dna, cytoplasm = gaussian(image[0], 1.25), gaussian(image[1:].mean(axis=0), 1.0)
        foreground = binary_fill_holes(dna > np.clip(threshold_otsu(dna), 0.15, 0.35))
        distance = gaussian(distance_transform_edt(foreground), 1.0)
        markers = np.zeros(foreground.shape, dtype=np.int32)
        summits = peak_local_max(distance, min_distance=5, labels=label(foreground))
        markers[tuple(summits.T)] = 1 + np.arange(len(summits))
        nuclei = watershed(-distance, markers, mask=foreground)
        mask = cytoplasm > np.clip(0.6 * threshold_otsu(cytoplasm), 0.08, 0.2)
        cells = watershed(distance_transform_edt(nuclei == 0), nuclei, mask=mask)
        for nucleus in regionprops(nuclei):
            _ = 4 * np.pi * nucleus.area / perimeter_crofton(nucleus.image, directions=4) ** 2
        _ = [cell.area for cell in regionprops(cells)]
        _ = ((nuclei > 0) & (cells > 0)).sum() / max((nuclei > 0).sum(), 1)


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
    for size in SIZES:
        images = real_crops(path, size) if path.exists() else simulated_crops(size)
        print(f"{len(images)} {'real' if path.exists() else 'simulated'} crops of {size}x{size}")
        rates = [crops_per_second(function, images) for function in (batched, looped)]
        print(f" batch: {rates[0]:6.0f} crops/s")
        print(f"  loop: {rates[1]:6.0f} crops/s; ratio {rates[0] / rates[1]:.1f}")
        if path.exists():
            none = np.mean(WatershedSegmenter()(images).nuclei.max(axis=(1, 2)) == 0)
            print(f"  without any nucleus: {none:.2%}")


if __name__ == "__main__":
    main()
