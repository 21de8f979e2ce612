"""Where the nuclei of a field of view are: fast enough for a whole screen, and whatever the illumination.

The field is averaged over blocks until a nucleus is about `WORKING_DIAMETER` across. What stands out of the local
background is divided among the brightness maxima, each region gets its threshold, and objects whose outline
or brightness says that they are two are split by a watershed: the classical recipe of CellProfiler [1]_.

References:
    .. [1] Carpenter et al., "CellProfiler: image analysis software for identifying and quantifying cell phenotypes",
       Genome Biology 7, R100 (2006).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed

from cellfluxrl.data.building.illumination import block_mean

MIN_DIAMETER = 4  # pixels
WORKING_DIAMETER = 11  # blocks

# Lengths in nucleus diameters.
SMOOTHING = 0.1
BLUR = 0.22  # over which a nucleus has one maximum
BACKGROUND_WINDOW = 5  # wider than a clump of nuclei, narrower than the changes of the illumination
PEAK_DISTANCE = 0.5
SEED_DISTANCE = 0.35  # between the middles of two touching nuclei, at least

# Thresholds.
NOISE_LIMIT = 3  # standard deviations of one block's noise, which is about ten after smoothing
DIMMEST = 0.15  # of the brighter nuclei
EDGE = 0.45  # of a nucleus' brightness
BRIGHTNESS_WEIGHT = 0.1  # beside the depth below the outline, when touching nuclei are divided
AREA_RANGE = (0.25, 6.0)  # in areas of a disc of the given diameter: smaller is debris, larger a clump or dirt


def find_nuclei(dna: np.ndarray, diameter: float) -> np.ndarray:
    """Row and column, `(N, 2)` float32 in pixels, of the centroids of all nuclei in one image, sorted from the top.

    There are none if there is nothing but background and noise, or if the image is smaller than a nucleus.

    Args:
        dna: `(H, W)` uint8 or uint16, any size, the DNA channel of a field of view, before illumination correction.
        diameter: Of a typical nucleus in pixels, at least `MIN_DIAMETER` (BBBC021: 32). A third less or more finds
            nearly the same nuclei.

    Example:
        >>> field = np.full((100, 120), 20, dtype=np.uint8)
        >>> field[30:50, 60:80] = 200
        >>> find_nuclei(field, diameter=20).round().tolist()
        [[40.0, 70.0]]
    """
    if not MIN_DIAMETER <= diameter < np.inf:
        raise ValueError(f"diameter must be at least {MIN_DIAMETER} pixels, got {diameter}")
    factor = max(1, round(diameter / WORKING_DIAMETER))
    blocks = block_mean(dna, factor)
    if min(dna.shape) < diameter:
        return np.empty((0, 2), dtype=np.float32)
    size = diameter / factor
    depth, brightness = _foreground(blocks, size)
    labels = _split(depth / size + BRIGHTNESS_WEIGHT * brightness, depth > 0, size)
    centres, areas = _centroids(labels)
    discs = areas / (np.pi / 4 * size**2)
    centres = centres[(discs >= AREA_RANGE[0]) & (discs <= AREA_RANGE[1])]
    centres = (centres + 0.5) * factor - 0.5
    return centres[np.lexsort((centres[:, 1], centres[:, 0]))].astype(np.float32)


def _foreground(blocks: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each block the distance to its object's outline (0 outside) and its brightness relative to the brightest."""
    smooth = ndimage.gaussian_filter(blocks, SMOOTHING * size)
    noise = 1.4826 * np.median(np.abs(blocks - smooth))
    signal = smooth - _background(smooth, size)
    blurred = ndimage.gaussian_filter(signal, np.sqrt(BLUR**2 - SMOOTHING**2) * size)

    peaks = _local_maxima(blurred, PEAK_DISTANCE * size) & (blurred > NOISE_LIMIT * noise)
    peak_labels, count = ndimage.label(peaks)
    if count == 0:
        return np.zeros_like(blocks), np.zeros_like(blocks)
    # The peaks are sorted out by the brighter half of them, because debris can be more frequent than nuclei.
    heights = blurred[peaks]
    dimmest = DIMMEST * np.median(heights[heights >= np.median(heights)])
    regions = watershed(-blurred, peak_labels, mask=signal > max(NOISE_LIMIT * noise, dimmest))

    height_of = np.full(count + 1, np.inf)  # background is never bright enough
    height_of[peak_labels[peaks]] = heights
    height = height_of[regions]
    # Between touching nuclei the surface curves upwards: there the blurred one lies above.
    inside = (signal > EDGE * height) & (signal > blurred)
    inside = ndimage.binary_fill_holes(inside)
    return ndimage.distance_transform_edt(inside), np.where(inside, blurred / height, 0)


def _background(smooth: np.ndarray, size: float) -> np.ndarray:
    """Opening: what remains when everything narrower than the window is cut off; it follows slopes."""
    coarse = smooth[::2, ::2]  # nothing finer is needed, and it is four times faster
    window = int(BACKGROUND_WINDOW * size / 2)
    # Continued with its slope beyond the border, where the window would otherwise find nothing as bright.
    spare = int(size)
    continued = np.pad(coarse, window + spare, mode="reflect", reflect_type="odd")
    opened = ndimage.grey_opening(continued, size=(window, window))[window:-window, window:-window]
    fine = ndimage.uniform_filter(opened.repeat(2, axis=0).repeat(2, axis=1), spare)
    height, width = smooth.shape
    return fine[2 * spare : 2 * spare + height, 2 * spare : 2 * spare + width]


def _split(score: np.ndarray, inside: np.ndarray, size: float) -> np.ndarray:
    """Divide the foreground among the maxima of `score`; labels from 1."""
    score = np.where(inside, score, 0)
    seeds, _ = ndimage.label(_local_maxima(score, SEED_DISTANCE * size) & inside, np.ones((3, 3)))
    return watershed(-score, seeds, mask=inside)


def _centroids(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroids `(N, 2)` and areas `(N,)` of the objects 1 to N."""
    positions = np.nonzero(labels)
    owner = labels[positions] - 1
    areas = np.bincount(owner)
    return np.stack([np.bincount(owner, weights=axis) / areas for axis in positions], axis=1), areas


def _local_maxima(image: np.ndarray, distance: float) -> np.ndarray:
    """Where nothing within a square of this half-width is larger."""
    return image == ndimage.maximum_filter(image, 2 * int(distance) + 1)
