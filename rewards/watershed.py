"""From images of cells to labelled nuclei and cells, a whole batch at a time.

The images of a batch are stacked into one tall *strip*, each inside a frame of zeros one pixel wide::

    (N, H, W)  ->  (N, H + 2, W + 2)  ->  (N * (H + 2), W + 2)

On the strip an ordinary 2-D labelling or distance transform treats all images in one call, which for small crops is
several times faster than a loop. The frames keep neighbours on the strip apart. Only watersheds run image by image, as
their ties are settled by all that is on the strip. So the masks of an image never depend on the batch it came in.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage as ndi
from skimage.segmentation import watershed

from cellfluxrl.rewards.segmentation import NUCLEUS_CHANNEL, Masks, check_images, register_segmenter

_HISTOGRAM_BINS = 256
_IMAGES_PER_STRIP = 64  # a strip of 48x48 crops then stays in the processor's cache
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@register_segmenter
@dataclass(frozen=True)
class WatershedSegmenter:
    """Segment with thresholds and watersheds: no weights, no training, the same result on every machine.

    Nuclei come from the DNA channel: smooth, threshold with Otsu's method [1]_ within bounds, split touching nuclei by
    a watershed [2]_ of their distance transform. Cells come from the mean of all other channels: smooth, threshold
    permissively, remove small pieces, and share out the others between the nuclei (`share_out`, similar to [3]_). A
    piece of cytoplasm without a nucleus is a cell of its own. Which pixels are cell at all is decided without the DNA
    channel: the reward for nuclei that lie inside cells could not fail otherwise.

    Lengths are in pixels of an image whose shorter side is `image_size`; other images are measured in the same
    proportion. Intensities are on the images' own scale of 0 to 1.

    Args:
        channel_names: The channels in the order of the images' second axis. One is "dna"; all others are cytoplasm.
        image_size: The shorter side, in pixels, of the images that the lengths below refer to.
        nucleus_sigma: Standard deviation of the Gaussian that smooths the DNA channel, in pixels.
        nucleus_floor: Lowest threshold for nuclei.
        nucleus_ceiling: Highest threshold for nuclei, so that one very bright nucleus does not hide the others.
        nucleus_contrast: An image has nuclei only if its smoothed DNA channel is on average this much brighter above
            Otsu's threshold than below, which noise is not.
        nucleus_height_sigma: Standard deviation of the Gaussian that smooths the distance transform, in pixels; larger
            values split fewer nuclei.
        nucleus_distance: Of two summits within this many rows and columns of each other only the higher is a nucleus.
        nucleus_area: Smaller nuclei are removed, in square pixels.
        cell_sigma: Standard deviation of the Gaussian that smooths the cytoplasm, in pixels.
        cell_fraction: The threshold for cells is this fraction of Otsu's, within the next two bounds.
        cell_floor: Lowest threshold for cells.
        cell_ceiling: Highest threshold for cells, so that crops without background are cells throughout.
        cell_area: Smaller pieces of cytoplasm are removed before they are shared out, in square pixels.

    Raises:
        ValueError: If "dna" or the cytoplasm is missing from `channel_names`, or a setting is out of range.

    References:
        .. [1] N. Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9, 62-66 (1979).
        .. [2] S. Beucher, C. Lantuejoul, Use of watersheds in contour detection, Int. Workshop on Image Processing
           (1979).
        .. [3] T. Jones, A. Carpenter, P. Golland, Voronoi-based segmentation of cells on image manifolds, CVBIA
           (2005); here without the term for intensity.

    Example:
        >>> y, x = np.mgrid[:48, :48]
        >>> disc = np.hypot(y - 24, x - 24)
        >>> image = np.stack([disc < 8, disc < 18, disc < 18]).astype(np.float32) * 0.6
        >>> masks = WatershedSegmenter()(image[None])
        >>> masks.nuclei.shape, masks.nuclei.max(), masks.cells.max()
        ((1, 48, 48), np.int32(1), np.int32(1))
    """

    name: ClassVar[str] = "watershed"

    channel_names: tuple[str, ...] = ("dna", "tubulin", "actin")
    image_size: int = 48
    nucleus_sigma: float = 1.25
    nucleus_floor: float = 0.15
    nucleus_ceiling: float = 0.35
    nucleus_contrast: float = 0.22
    nucleus_height_sigma: float = 1.0
    nucleus_distance: float = 5.0
    nucleus_area: float = 30.0
    cell_sigma: float = 1.0
    cell_fraction: float = 0.6
    cell_floor: float = 0.08
    cell_ceiling: float = 0.2
    cell_area: float = 60.0

    def __post_init__(self) -> None:
        # A list is what JSON returns.
        object.__setattr__(self, "channel_names", tuple(self.channel_names))
        if self.channel_names.count(NUCLEUS_CHANNEL) != 1 or len(self.channel_names) < 2:
            raise ValueError(
                f"channel_names must hold one {NUCLEUS_CHANNEL!r} and at least one other channel, "
                f"got {self.channel_names!r}"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "channel_names" and not 0 < value < float("inf"):
                raise ValueError(f"{field.name} must be positive and finite, got {value!r}")
        for kind in ("nucleus", "cell"):
            floor, ceiling = getattr(self, f"{kind}_floor"), getattr(self, f"{kind}_ceiling")
            if floor > ceiling:
                raise ValueError(f"{kind}_floor must not exceed {kind}_ceiling, got {floor!r} and {ceiling!r}")

    def __call__(self, images: np.ndarray) -> Masks:
        """Label the nuclei and the cells of a batch.

        Args:
            images: (N, C, H, W) floats in [0, 1], channels in the order of `channel_names`.

        Returns:
            `Masks` with (N, H, W) labels. Each image's are the same whatever else is in the batch.

        Raises:
            ValueError: If the shape, the type or a value of `images` is not as above.
        """
        check_images(images, self.channel_names)
        dna = self.channel_names.index(NUCLEUS_CHANNEL)
        count, _, height, width = images.shape
        nuclei = np.zeros((count, height, width), dtype=np.int32)
        cells = np.zeros_like(nuclei)
        for part in _parts(count):
            # Contiguous float32 planes: the filters below are several times slower on strided ones.
            channels = images[part].astype(np.float32).transpose(1, 0, 2, 3)
            nuclei[part] = self._nuclei(np.ascontiguousarray(channels[dna]))
            cells[part] = self._cells(np.delete(channels, dna, axis=0).mean(axis=0), nuclei[part])
        return Masks(nuclei, cells)

    def _nuclei(self, dna: np.ndarray) -> np.ndarray:
        """Label the nuclei in (N, H, W) images of DNA."""
        scale = self._scale(dna)
        smooth = smooth_images(dna, self.nucleus_sigma * scale)
        otsu = otsu_thresholds(smooth)
        threshold = np.clip(otsu, self.nucleus_floor, self.nucleus_ceiling)
        threshold[_contrast(smooth, otsu) < self.nucleus_contrast] = np.inf
        foreground = fill_holes(smooth > threshold[:, None, None])
        height = smooth_images(distance_to_background(foreground), self.nucleus_height_sigma * scale)
        labels = split_touching(foreground, height, self.nucleus_distance * scale)
        return remove_small(labels, self.nucleus_area * scale**2)

    def _cells(self, cytoplasm: np.ndarray, nuclei: np.ndarray) -> np.ndarray:
        """Label the cells in (N, H, W) images of cytoplasm, one for each nucleus and each piece without one."""
        scale = self._scale(cytoplasm)
        smooth = smooth_images(cytoplasm, self.cell_sigma * scale)
        threshold = np.clip(self.cell_fraction * otsu_thresholds(smooth), self.cell_floor, self.cell_ceiling)
        pieces = label_pieces(smooth > threshold[:, None, None])
        foreground = remove_small(pieces, self.cell_area * scale**2) > 0
        # No share is too small to stay: where the foreground is must not depend on the nuclei.
        return remove_small(share_out(foreground, nuclei), area=1)

    def _scale(self, images: np.ndarray) -> float:
        """Return how many pixels of `images` one pixel of the settings is."""
        return min(images.shape[-2:]) / self.image_size


def smooth_images(images: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth each of (N, H, W) images with a Gaussian of standard deviation `sigma` in pixels."""
    return ndi.gaussian_filter(images, sigma=(0, sigma, sigma), mode="nearest", truncate=3.0)


def otsu_thresholds(images: np.ndarray) -> np.ndarray:
    """Compute Otsu's threshold of each image, all at once.

    Equal to `skimage.filters.threshold_otsu` on a histogram of 256 bins between 0 and 1.

    Args:
        images: (N, H, W) floats in [0, 1].

    Returns:
        (N,) float64 thresholds, each the centre of the brightest bin of the background.

    Example:
        >>> float(otsu_thresholds(np.array([[[0.1, 0.1, 0.9]]]))[0])
        0.099609375
    """
    count = len(images)
    bins = np.minimum((images * _HISTOGRAM_BINS).astype(np.int64), _HISTOGRAM_BINS - 1).reshape(count, -1)
    bins += np.arange(count)[:, None] * _HISTOGRAM_BINS
    histogram = np.bincount(bins.ravel(), minlength=count * _HISTOGRAM_BINS).reshape(count, _HISTOGRAM_BINS)
    centres = (np.arange(_HISTOGRAM_BINS) + 0.5) / _HISTOGRAM_BINS

    below = histogram.cumsum(axis=1)[:, :-1]
    above = histogram.sum(axis=1, keepdims=True) - below
    mass_below = (histogram * centres).cumsum(axis=1)
    mass_above = mass_below[:, -1:] - mass_below[:, :-1]
    mean_gap = mass_below[:, :-1] / np.maximum(below, 1) - mass_above / np.maximum(above, 1)
    return centres[np.argmax(below * above * mean_gap**2, axis=1)]


def fill_holes(foreground: np.ndarray) -> np.ndarray:
    """Fill the background that does not reach the border of its image, in (N, H, W) booleans."""
    strip = _to_strip(foreground)
    background, _ = ndi.label(~strip)
    # The frames of all images are one connected background, so everything outside has the corner's label.
    return _from_strip(background != background[0, 0], len(foreground))


def distance_to_background(foreground: np.ndarray) -> np.ndarray:
    """Return the (N, H, W) float32 distance in pixels to the background; outside the image counts as background."""
    distance = ndi.distance_transform_edt(_to_strip(foreground))
    return _from_strip(distance, len(foreground)).astype(np.float32)


def label_pieces(foreground: np.ndarray) -> np.ndarray:
    """Label the connected pieces of (N, H, W) booleans: (N, H, W) int32, counted through the batch, 0 elsewhere."""
    labels, _ = ndi.label(_to_strip(foreground), _EIGHT_NEIGHBOURS)
    return np.ascontiguousarray(_from_strip(labels, len(foreground)))


def split_touching(foreground: np.ndarray, height: np.ndarray, distance: float) -> np.ndarray:
    """Divide the foreground between the summits of a landscape by a watershed.

    Args:
        foreground: (N, H, W) booleans.
        height: (N, H, W) landscape above 0 with a summit for each object.
        distance: Of two summits within this many rows and columns of each other only the higher counts, but every
            connected piece keeps its highest.

    Returns:
        (N, H, W) int32 labels, 0 for the background; no two images have another one in common.
    """
    reach = 2 * round(distance) + 1
    highest = ndi.maximum_filter(height, size=(1, reach, reach), mode="nearest")
    pieces = label_pieces(foreground)
    peak_of_piece = np.zeros(pieces.max(initial=0) + 1, dtype=height.dtype)
    np.maximum.at(peak_of_piece, pieces.ravel(), height.ravel())
    summits = label_pieces(foreground & ((height == highest) | (height == peak_of_piece[pieces])))
    return _divide(pieces, summits, lambda n: -height[n])


def share_out(foreground: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Divide the foreground between seeds: each pixel goes to about the nearest that it is connected with.

    A watershed of the distance to the nearest seed. The boundary between two seeds is exact to a few pixels, except
    where a straight line to the nearest leaves the foreground, as around a corner: there it need not be halfway.

    Args:
        foreground: (N, H, W) booleans.
        seeds: (N, H, W) labels, 1 to K in each image. Their pixels outside of the foreground do not count. A piece of
            foreground without a seed becomes an object of its own.

    Returns:
        (N, H, W) int32 labels, 0 for the background; no two images have another one in common.

    Example:
        >>> foreground = np.array([[[1, 1, 1, 1, 1, 0, 1]]], dtype=bool)
        >>> seeds = np.array([[[0, 1, 0, 0, 2, 0, 0]]])
        >>> share_out(foreground, seeds).tolist()
        [[[1, 1, 1, 2, 2, 0, 4]]]
    """
    before = np.arange(len(seeds), dtype=np.int32)[:, None, None] * seeds.max(initial=0)
    markers = np.where(foreground & (seeds > 0), seeds + before, 0)
    return _divide(label_pieces(foreground), markers, lambda n: ndi.distance_transform_edt(markers[n] == 0))


def remove_small(labels: np.ndarray, area: float) -> np.ndarray:
    """Remove the objects of less than `area` pixels and number the others from 1 in each image.

    Args:
        labels: (N, H, W) labels, 0 for the background; no two images have another one in common.
        area: Area in square pixels.

    Returns:
        (N, H, W) int32 labels, 1 to K in each image, in the order of `labels`.
    """
    areas = np.bincount(labels.ravel(), minlength=1)
    areas[0] = 0
    image = np.zeros(len(areas), dtype=np.int64)
    image[labels] = np.arange(len(labels))[:, None, None]
    kept = np.flatnonzero(areas >= max(area, 1))
    kept = kept[np.argsort(image[kept], kind="stable")]
    kept_before = np.searchsorted(image[kept], image[kept])  # in other images
    number = np.zeros(len(areas), dtype=np.int32)
    number[kept] = 1 + np.arange(len(kept)) - kept_before
    return number[labels]


def _divide(pieces: np.ndarray, markers: np.ndarray, height: Callable[[int], np.ndarray]) -> np.ndarray:
    """Give each piece to the marker in it; several markers divide it by a watershed, none leaves it on its own.

    Args:
        pieces: (N, H, W) labels of connected pieces, 0 for the background; no two images have another one in common.
        markers: (N, H, W) labels inside the pieces, 0 elsewhere; no two images have another one in common.
        height: From the index of an image to its (H, W) landscape, flooded from below. Called only for images with
            several markers in a piece.

    Returns:
        (N, H, W) int32 labels: those of the markers, and higher ones for pieces without.
    """
    marked = markers > 0
    owner = np.arange(pieces.max(initial=0) + 1, dtype=np.int32) + np.int32(markers.max(initial=0))
    owner[0] = 0
    owner[pieces[marked]] = markers[marked]
    labels = owner[pieces]
    rivals = marked & (labels != markers)
    divided = np.zeros(len(owner), dtype=bool)
    divided[pieces[rivals]] = True
    # Image by image, since a watershed settles ties by the order of its queue, which other images would change.
    for n in np.flatnonzero(rivals.any(axis=(1, 2))):
        mask = divided[pieces[n]]
        labels[n][mask] = watershed(height(n), markers[n], connectivity=_EIGHT_NEIGHBOURS, mask=mask)[mask]
    return labels


def _parts(count: int) -> Iterator[slice]:
    """Cut `count` images into slices that fit a strip."""
    return (slice(start, start + _IMAGES_PER_STRIP) for start in range(0, count, _IMAGES_PER_STRIP))


def _contrast(images: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return each image's mean above its threshold minus its mean below; 0 if either has no pixel."""
    pixels = images.reshape(len(images), -1)
    above = pixels > thresholds[:, None]
    count_above = above.sum(axis=1)
    count_below = pixels.shape[1] - count_above
    sum_above = (pixels * above).sum(axis=1, dtype=np.float64)
    sum_below = pixels.sum(axis=1, dtype=np.float64) - sum_above
    contrast = sum_above / np.maximum(count_above, 1) - sum_below / np.maximum(count_below, 1)
    return np.where((count_above > 0) & (count_below > 0), contrast, 0.0)


def _to_strip(stack: np.ndarray) -> np.ndarray:
    """Frame each of (N, H, W) planes with zeros and put one below the other: (N * (H + 2), W + 2)."""
    return np.pad(stack, ((0, 0), (1, 1), (1, 1))).reshape(-1, stack.shape[2] + 2)


def _from_strip(strip: np.ndarray, count: int) -> np.ndarray:
    """Undo `_to_strip` for `count` planes."""
    return strip.reshape(count, -1, strip.shape[1])[:, 1:-1, 1:-1]
