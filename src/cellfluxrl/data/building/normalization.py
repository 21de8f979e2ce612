"""From the raw intensities of a plate to 8 bits."""

from __future__ import annotations

import numpy as np
from skimage.transform import resize

from cellfluxrl.data.schema import HIGH_PERCENTILE, LOW_PERCENTILE

LEVELS = 65536


def intensity_histogram(crops: np.ndarray) -> np.ndarray:
    """Count the intensities of each channel of uint16 `(N, C, H, W)` crops: int64 of shape `(C, 65536)`."""
    return np.stack([np.bincount(crops[:, c].ravel(), minlength=LEVELS) for c in range(crops.shape[1])])


def plate_stretch(histogram: np.ndarray) -> np.ndarray:
    """What becomes of each intensity, float32 `(C, 65536)`, given the [`intensity_histogram`] of ALL cells of a plate.

    Square root, then a stretch of each channel to [0, 1] between percentiles: those of the controls alone would
    saturate treated cells that are brighter.
    """
    roots = np.sqrt(np.arange(LEVELS, dtype=np.float32))
    table = np.empty(histogram.shape, np.float32)
    for c, counts in enumerate(histogram):
        low = _percentile(counts, roots, LOW_PERCENTILE)
        high = _percentile(counts, roots, HIGH_PERCENTILE)
        table[c] = np.clip((roots - low) / max(high - low, 1e-6), 0, 1)
    return table


def _percentile(counts: np.ndarray, values: np.ndarray, percent: float) -> float:
    # As numpy.percentile of the values repeated `counts` times: linear between the two nearest order statistics.
    below = np.cumsum(counts)
    position = (below[-1] - 1) * percent / 100
    first, second = np.searchsorted(below, [np.floor(position), np.ceil(position)], side="right")
    return float(values[first] + (values[second] - values[first]) * (position % 1))


def apply_stretch(crops: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Look up each intensity of uint16 `(N, C, H, W)` crops in [`plate_stretch`]'s table, whatever its type."""
    return np.stack([stretch[c][crops[:, c]] for c in range(crops.shape[1])], axis=1)


def resize_crops(crops: np.ndarray, image_size: int) -> np.ndarray:
    """Resize float32 `(N, C, H, W)` crops with antialiasing to `(N, C, image_size, image_size)`."""
    if crops.shape[2:] == (image_size, image_size):
        return crops
    return resize(crops, (*crops.shape[:2], image_size, image_size), order=1, anti_aliasing=True).astype(np.float32)


def to_8_bits(crops: np.ndarray, stretch: np.ndarray, image_size: int) -> np.ndarray:
    """Stretch ([`plate_stretch`]) and resize uint16 `(N, C, H, W)` crops to uint8 `(N, C, image_size, image_size)`."""
    if crops.shape[2:] == (image_size, image_size):
        return apply_stretch(crops, np.round(255 * stretch).astype(np.uint8))
    return np.round(255 * resize_crops(apply_stretch(crops, stretch), image_size)).astype(np.uint8)


def normalize_plate(crops: np.ndarray, image_size: int) -> np.ndarray:
    """Stretch all crops of a plate, uint16 `(N, C, H, W)`, between percentiles of theirs, and resize them to uint8."""
    return to_8_bits(crops, plate_stretch(intensity_histogram(crops)), image_size)
