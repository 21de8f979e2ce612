"""Operations on stacks of images and their labels, for all images of a stack at once.

The images of a stack are often put one below the other into a tall *strip*, each inside a frame of zeros one pixel
wide::

    (N, H, W)  ->  (N, H + 2, W + 2)  ->  (N * (H + 2), W + 2)

On the strip an ordinary 2-D labelling or distance transform treats all images in one call, which for small crops is
several times faster than a loop. The frames keep neighbours on the strip apart, so that no image's result depends on
the stack it came in. Pixels of an object are connected along rows and columns, those of the background also
diagonally.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

_HISTOGRAM_BINS = 256


def smooth_images(images: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth each of (N, H, W) float32 images with a Gaussian of standard deviation `sigma` in pixels."""
    smooth = np.empty_like(images)
    width = 2 * int(np.ceil(3 * sigma)) + 1
    for image, out in zip(images, smooth, strict=True):
        cv2.GaussianBlur(image, (width, width), sigma, dst=out, borderType=cv2.BORDER_REPLICATE)
    return smooth


def local_means(images: np.ndarray, mask: np.ndarray, width: float) -> np.ndarray:
    """Average (N, H, W) float32 neighbours inside `mask` in a square about `width` wide; 0 where there are none."""
    size = 2 * round(width / 2 - 0.5) + 1
    weights = mask.astype(np.float32)
    means = np.empty_like(images)
    options = {"ddepth": -1, "ksize": (size, size), "normalize": False, "borderType": cv2.BORDER_CONSTANT}
    for out, total, count in zip(means, images * weights, weights, strict=True):
        out[:] = cv2.boxFilter(total, **options) / np.maximum(cv2.boxFilter(count, **options), 1)
    return means


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize each of (N, H, W) float32 images to (height, width): averaging to smaller ones, bilinear to larger."""
    resized = np.empty((len(images), *size), dtype=images.dtype)
    interpolation = cv2.INTER_AREA if size[0] < images.shape[1] else cv2.INTER_LINEAR
    for image, out in zip(images, resized, strict=True):
        cv2.resize(image, (size[1], size[0]), dst=out, interpolation=interpolation)
    return resized


def refine(labels: np.ndarray, edge: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Carry (N, h, w) labels over to larger (N, H, W) images, where an object ends at the brightness `edge`.

    Only the pixels within one pixel of the smaller images of an object's edge are decided anew.
    """
    square = np.ones((3, 3), np.uint8)
    size = (images.shape[1], images.shape[2])
    levels = resize(edge, size)
    refined = np.empty(images.shape, dtype=np.int32)
    for n, small in enumerate(labels.astype(np.float32)):
        around = cv2.dilate(small, square)
        inner = (around == small) & (cv2.erode(small, square) == small)
        grown = np.where(small > 0, small, around)
        both = cv2.resize(np.stack([grown, inner], axis=-1), size[::-1], interpolation=cv2.INTER_NEAREST)
        refined[n] = np.where((both[..., 1] > 0) | (images[n] > levels[n]), both[..., 0], 0)
    return refined


def otsu_thresholds(images: np.ndarray) -> np.ndarray:
    """Compute the (N,) thresholds of (N, H, W) floats in [0, 1].

    Each is equal to `skimage.filters.threshold_otsu` on a histogram of 256 bins between 0 and 1.
    """
    count = len(images)
    bins = np.minimum((images * _HISTOGRAM_BINS).astype(np.int32), _HISTOGRAM_BINS - 1).reshape(count, -1)
    bins += np.arange(count, dtype=np.int32)[:, None] * _HISTOGRAM_BINS
    histogram = np.bincount(bins.ravel(), minlength=count * _HISTOGRAM_BINS).reshape(count, _HISTOGRAM_BINS)
    centres = (np.arange(_HISTOGRAM_BINS) + 0.5) / _HISTOGRAM_BINS

    below = histogram.cumsum(axis=1)[:, :-1]
    above = histogram.sum(axis=1, keepdims=True) - below
    mass_below = (histogram * centres).cumsum(axis=1)
    mass_above = mass_below[:, -1:] - mass_below[:, :-1]
    mean_gap = mass_below[:, :-1] / np.maximum(below, 1) - mass_above / np.maximum(above, 1)
    return centres[np.argmax(below * above * mean_gap**2, axis=1)]


def fill_holes(foreground: np.ndarray, area: float = np.inf) -> np.ndarray:
    """Fill background of less than `area` pixels that does not reach the border, in (N, H, W) booleans."""
    _, background = cv2.connectedComponents((~to_strip(foreground)).view(np.uint8), connectivity=8)
    # The frames of all images are one connected background, so everything outside has the corner's label.
    holes = np.bincount(background.ravel()) < area
    holes[background[0, 0]] = False
    return from_strip(holes[background], len(foreground)) | foreground


def distance_to_background(foreground: np.ndarray) -> np.ndarray:
    """Return the (N, H, W) float32 distance in pixels to the background; outside the image counts as background."""
    strip = to_strip(foreground).view(np.uint8)
    return from_strip(cv2.distanceTransform(strip, cv2.DIST_L2, cv2.DIST_MASK_5), len(foreground))


def label_pieces(foreground: np.ndarray) -> np.ndarray:
    """Label the connected pieces of (N, H, W) booleans: (N, H, W) int32, counted through the stack, 0 elsewhere."""
    _, labels = cv2.connectedComponents(to_strip(foreground).view(np.uint8), connectivity=4)
    return np.ascontiguousarray(from_strip(labels, len(foreground)))


def remove_small(labels: np.ndarray, area: float) -> np.ndarray:
    """Remove the objects of less than `area` pixels from (N, H, W) labels that differ from image to image.

    The others are numbered from 1 in each image, in the order of their first pixels.
    """
    flat = labels.ravel()
    pixels = np.flatnonzero(flat)[::-1]
    label = flat[pixels]
    areas = np.bincount(label, minlength=1)
    first = np.zeros(len(areas), dtype=np.int64)
    first[label] = pixels  # the last one written is the first in the image
    kept = np.flatnonzero(areas >= max(area, 1))
    kept = kept[np.argsort(first[kept])]
    image = first[kept] // max(labels[0].size, 1) if len(labels) else first[kept]
    number = np.zeros(len(areas), dtype=np.int32)
    number[kept] = 1 + np.arange(len(kept)) - np.searchsorted(image, image)  # less those in earlier images
    return number[labels]


def basins(height: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Label each pixel of the foreground by the summit that the steepest ascent from it reaches.

    These are the catchment basins of a watershed of the landscape turned upside down (J. Cousty et al., Watershed
    cuts, IEEE Trans. PAMI 31, 1362-1374, 2009), without a queue of pixels. `height` is in [0, 1); no two images have a
    label but 0 in common.
    """
    inside = to_strip(foreground)
    # Height and index in one number: the highest neighbour carries its index, and no two pixels are equal.
    index = np.arange(inside.size, dtype=np.float64).reshape(inside.shape)
    indices = 2.0 ** inside.size.bit_length()
    ranks = np.floor(to_strip(height) * 2.0**20).astype(np.float64) * indices + index
    ranks[~inside] = -1
    highest = cv2.dilate(ranks, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))

    pixels = np.flatnonzero(inside)
    position = np.zeros(inside.size, dtype=np.int32)
    position[pixels] = np.arange(len(pixels), dtype=np.int32)
    target = position[highest.ravel()[pixels].astype(np.int64) & (int(indices) - 1)]
    while not np.array_equal(further := target[target], target):
        target = further
    number = np.zeros(len(pixels), dtype=np.int32)
    summits = np.flatnonzero(target == np.arange(len(pixels)))
    number[summits] = 1 + np.arange(len(summits))
    labels = np.zeros(inside.size, dtype=np.int32)
    labels[pixels] = number[target]
    return np.ascontiguousarray(from_strip(labels.reshape(inside.shape), len(height)))


@dataclass(frozen=True)
class Borders:
    """The B borders between touching regions of a stack."""

    first: np.ndarray  # (B,) labels of one region of each border
    second: np.ndarray  # (B,) and of the other
    pixels: np.ndarray  # (2, P) the pixels on either side of all borders, as indices into the flat stack
    border: np.ndarray  # (P,) the border that a pair of pixels belongs to

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Average P values over each border."""
        count = len(self.first)
        return np.bincount(self.border, weights=values, minlength=count) / np.bincount(self.border, minlength=count)

    def highest(self, values: np.ndarray) -> np.ndarray:
        """Take the highest of P values, at least 0, of each border."""
        highest = np.zeros(len(self.first), dtype=values.dtype)
        np.maximum.at(highest, self.border, values)
        return highest


def join_regions(labels: np.ndarray, seeds: np.ndarray, barrier: Callable, limit: float = np.inf) -> np.ndarray:
    """Join (N, H, W) regions 1 to K across their lowest barriers, until only barriers above a limit are left.

    In each round every region without a seed joins the neighbour behind its lowest barrier, and barriers, (B,) heights
    of the `Borders`, are measured anew: Boruvka's algorithm for the minimum spanning forest rooted at the seeds,
    (K + 1,) booleans, a watershed cut of the graph of regions. No two seeds are ever joined. A joined region has the
    label of one of its parts.
    """
    labels, seeded = labels.astype(np.int32), seeds.copy()
    pixels = _touching_pixels(labels)
    count = len(seeds)
    while True:
        flat = labels.ravel()
        sides = flat[pixels]
        apart = sides[0] != sides[1]
        pixels, sides = pixels[:, apart], sides[:, apart].astype(np.int64)
        keys, border = np.unique(sides.min(axis=0) * count + sides.max(axis=0), return_inverse=True)
        borders = Borders(keys // count, keys % count, pixels, border)
        heights = barrier(labels, borders)
        target = _lowest_neighbour(borders, heights, ~seeded, limit)
        if (target == np.arange(count)).all():
            return labels
        np.logical_or.at(seeded, target, seeded)
        labels = target.astype(np.int32)[labels]


def _touching_pixels(labels: np.ndarray) -> np.ndarray:
    """Return (2, P) flat indices of pixels side by side or one below the other in different regions."""
    _, height, width = labels.shape
    inside = labels > 0
    beside = np.flatnonzero((labels[:, :, :-1] != labels[:, :, 1:]) & inside[:, :, :-1] & inside[:, :, 1:])
    below = np.flatnonzero((labels[:, :-1] != labels[:, 1:]) & inside[:, :-1] & inside[:, 1:])
    if len(beside):
        beside += beside // (width - 1)  # from a grid without the last column to the whole one
    if len(below):
        below += below // ((height - 1) * width) * width
    return np.stack([np.concatenate([beside, below]), np.concatenate([beside + 1, below + width])])


def _lowest_neighbour(borders: Borders, heights: np.ndarray, moving: np.ndarray, limit: float) -> np.ndarray:
    """Return (K + 1,) the label that each region ends in when the moving ones join their lowest neighbour."""
    source = np.concatenate([borders.first, borders.second])
    target = np.concatenate([borders.second, borders.first])
    height = np.concatenate([heights, heights])
    edge = np.tile(np.arange(len(heights)), 2)  # settles ties alike on both sides, so that no ring of regions forms
    allowed = np.flatnonzero(moving[source] & (height <= limit))
    order = allowed[np.lexsort((edge[allowed], height[allowed]))[::-1]]
    joined = np.arange(len(moving))
    joined[source[order]] = target[order]  # the last, that is the lowest, stays
    mutual = (joined[joined] == np.arange(len(joined))) & (np.arange(len(joined)) < joined)
    joined[mutual] = np.flatnonzero(mutual)
    while not np.array_equal(further := joined[joined], joined):
        joined = further
    return joined


def to_strip(stack: np.ndarray) -> np.ndarray:
    """Frame each of (N, H, W) planes with zeros and put one below the other: (N * (H + 2), W + 2)."""
    count, height, width = stack.shape
    strip = np.zeros((count, height + 2, width + 2), dtype=stack.dtype)
    strip[:, 1:-1, 1:-1] = stack
    return strip.reshape(-1, width + 2)


def from_strip(strip: np.ndarray, count: int) -> np.ndarray:
    """Undo `to_strip` for `count` planes."""
    return strip.reshape(count, -1, strip.shape[1])[:, 1:-1, 1:-1]
