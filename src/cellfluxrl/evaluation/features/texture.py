"""Texture inside a region: granularity spectrum, Haralick's features, local binary patterns."""

from __future__ import annotations

import cv2
import numpy as np
from scipy.special import entr
from skimage.feature import graycomatrix, graycoprops
from skimage.morphology import disk

GRANULARITY_RADII = range(1, 9)  # px
GRANULARITY_SIZE = 48  # px; images are made smaller as long as their shorter side stays at least this
HARALICK_DISTANCES = (1, 3)  # px
HARALICK_PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "ASM", "correlation")
GRAY_LEVELS = 16
LBP_NEIGHBOURS = 8


def granularity(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of a region's intensity in bright structures of each size `(N, C, 8)`, for radii of 1 to 8 px.

    The share of radius r is what the opening with a disc of radius r removes and the one with r - 1 left: the pattern
    spectrum of Maragos (1989), on which CellProfiler's granularity is built; CellProfiler puts back what is connected
    to the rest (opening by reconstruction), which takes far longer. Images are uint8 `(N, H, W, C)`, the region is
    `(N, H, W)` booleans. Images of 96 px or more are averaged down to between 48 and 96 px first, so that the radii
    mean about the same. NaN where the region has no intensity.
    """
    weights = mask[..., None].astype(np.float32)
    factor = min(images.shape[1:3]) // GRANULARITY_SIZE
    if factor > 1:
        images, weights = _block_means(images, factor, "edge"), _block_means(weights, factor, "constant")
    discs = [disk(radius) for radius in GRANULARITY_RADII]
    count, height, width, channels = images.shape
    left = np.empty((count, len(discs) + 1, channels))
    for n, image in enumerate(images):
        opened = [image, *(cv2.morphologyEx(image, cv2.MORPH_OPEN, d) for d in discs)]
        # OpenCV drops the axis of a single channel.
        pixels = np.stack([o.reshape(height * width, channels) for o in opened]).astype(np.float32)
        left[n] = weights[n].ravel() @ pixels
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        shares = -np.diff(left, axis=1) / left[:, :1]
    return shares.transpose(0, 2, 1)


def haralick(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Haralick's features of a region `(N, C, 12)`: how often grey levels are neighbours (Haralick et al., 1973).

    Contrast, dissimilarity, homogeneity, angular second moment, correlation (as in [`skimage.feature.graycoprops`])
    and entropy in bits, of pixels 1 px apart and then 3 px apart. Pairs of pixels that both lie in the region count,
    in four directions and both orders; grey levels are 16 equal parts of the range of 8 bits. Arguments as in
    [`granularity`]; NaN where the region has no pairs.
    """
    count, _, _, channels = images.shape
    levels = np.where(mask[..., None], images // (256 // GRAY_LEVELS) + 1, 0).astype(np.uint8)
    angles = np.arange(4) * np.pi / 4
    matrices = np.empty((GRAY_LEVELS, GRAY_LEVELS, count * channels, len(HARALICK_DISTANCES)))
    for n, image in enumerate(np.ascontiguousarray(levels.transpose(0, 3, 1, 2)).reshape(-1, *images.shape[1:3])):
        pairs = graycomatrix(image, HARALICK_DISTANCES, angles, levels=GRAY_LEVELS + 1, symmetric=True)
        matrices[:, :, n] = pairs[1:, 1:].sum(axis=-1)  # level 0 is outside of the region
    total = matrices.sum(axis=(0, 1))
    features = [graycoprops(matrices, name) for name in HARALICK_PROPERTIES]
    features.append(entr(matrices / np.maximum(total, 1)).sum(axis=(0, 1)) / np.log(2))
    stacked = np.where(total > 0, features, np.nan)  # (features, N * C, distances)
    return stacked.transpose(1, 2, 0).reshape(count, channels, -1)


def local_binary_patterns(images: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share of a region's pixels with each local binary pattern `(N, C, 10)` (Ojala et al., 2002).

    Uniform, invariant to rotation: a pattern says how many of the 8 neighbours are at least as bright, 0 (a spot) to 8
    (a hole, or flat), if they are side by side; 9 is any other. The neighbours are the pixels themselves, beyond the
    border its last ones: [`skimage.feature.local_binary_pattern`] interpolates, and how it rounds decides between
    equals. Arguments as in [`granularity`]; NaN where the region is empty.
    """
    count, height, width, channels = images.shape
    framed = np.pad(images.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    around = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]  # clockwise
    centre = framed[:, :, 1:-1, 1:-1]
    bright = [framed[:, :, row : row + height, column : column + width] >= centre for row, column in around]
    steps = sum((a != b).view(np.uint8) for a, b in zip(bright, bright[1:] + bright[:1], strict=True))
    patterns = np.where(steps <= 2, sum(b.view(np.uint8) for b in bright), LBP_NEIGHBOURS + 1)
    bins = LBP_NEIGHBOURS + 2
    offsets = np.arange(count * channels).reshape(count, channels, 1, 1) * bins
    inside = np.broadcast_to(mask[:, None], patterns.shape)
    histogram = np.bincount((patterns + offsets)[inside], minlength=count * channels * bins)
    area = mask.sum(axis=(1, 2))[:, None, None]
    return np.where(area > 0, histogram.reshape(count, channels, bins) / np.maximum(area, 1), np.nan)


def _block_means(stack: np.ndarray, factor: int, mode: str) -> np.ndarray:
    """Average (N, H, W, C) over squares of `factor` pixels; the last ones are filled up by `numpy.pad`'s `mode`."""
    padding = [(0, 0), *((0, -size % factor) for size in stack.shape[1:3]), (0, 0)]
    count, height, width, channels = (padded := np.pad(stack.astype(np.float32), padding, mode)).shape
    return padded.reshape(count, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))
