"""A second segmenter, made of textbook steps only: what no reward was computed from may judge the rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.ndimage import distance_transform_edt, maximum_filter
from skimage.segmentation import watershed

from cellfluxrl.rewards.segmentation.labelling import (
    distance_to_background,
    fill_holes,
    label_pieces,
    otsu_thresholds,
    remove_small,
    smooth_images,
)
from cellfluxrl.rewards.segmentation.protocol import (
    NUCLEUS_CHANNEL,
    Masks,
    check_images,
    check_settings,
    register_segmenter,
)

_IMAGES_PER_PART = 64  # what is computed at once then stays in the processor's cache


@register_segmenter
@dataclass(frozen=True)
class OtsuSegmenter:
    """Segment with Otsu's threshold and the distance transform, as the gallery of scikit-image does [1]_.

    Nuclei are what is brighter than Otsu's threshold of the smoothed nucleus channel, divided by a watershed of the
    distance to the background. Cells are the foreground of the mean of all other channels, each pixel given to its
    nearest nucleus; pieces without a nucleus are cells too.

    It is rougher than [`WatershedSegmenter`], and shares no threshold, no landscape and no fitted number with it. That
    is its use: a gain that only one of two segmenters sees is a gain of the segmenter.

    Lengths are in pixels of an image whose shorter side is `image_size`; other images are measured in the same
    proportion.

    Args:
        channel_names: The channels in the order of the images' second axis.
        nucleus_channel: The channel that shows nuclei; all others are cytoplasm.
        image_size: The shorter side, in pixels, of the images that the lengths below refer to.
        sigma: Standard deviation of the Gaussian that smooths every channel, in pixels.
        floor: Lowest threshold, so that noise is not a cell.
        nucleus_radius: The deepest points of two nuclei are at least this far apart, in pixels.
        cell_fraction: The threshold for cells is this fraction of Otsu's, which bright cells would draw too high.
        nucleus_area: Smaller nuclei are removed, in square pixels.
        cell_area: Smaller cells are removed, in square pixels.

    Raises:
        ValueError: If `nucleus_channel` is not one of `channel_names`, there is no other, or a setting is out of
            range.

    References:
        .. [1] https://scikit-image.org/docs/stable/auto_examples/segmentation/plot_watershed.html

    Example:
        >>> y, x = np.mgrid[:48, :48]
        >>> disc = np.hypot(y - 24, x - 24)
        >>> image = np.stack([disc < 8, disc < 18, disc < 18]).astype(np.float32) * 0.6
        >>> masks = OtsuSegmenter()(image[None])
        >>> masks.nuclei.max(), masks.cells.max()
        (np.int32(1), np.int32(1))
    """

    name: ClassVar[str] = "otsu"

    channel_names: tuple[str, ...] = ("dna", "tubulin", "actin")
    nucleus_channel: str = NUCLEUS_CHANNEL
    image_size: int = 48
    sigma: float = 1.0
    floor: float = 0.08
    nucleus_radius: float = 5.0
    cell_fraction: float = 0.7
    nucleus_area: float = 30.0
    cell_area: float = 60.0

    def __post_init__(self) -> None:
        check_settings(self)
        if len(self.channel_names) < 2:
            raise ValueError(f"cells are found in other channels than the nuclei, got only {self.channel_names!r}")

    def __call__(self, images: np.ndarray) -> Masks:
        """Label the nuclei and the cells of (N, C, H, W) floats in [0, 1]."""
        check_images(images, self.channel_names)
        first = self.channel_names.index(self.nucleus_channel)
        others = [c for c in range(images.shape[1]) if c != first]
        nuclei = np.zeros((len(images), *images.shape[2:]), dtype=np.int32)
        cells = np.zeros_like(nuclei)
        scale = min(images.shape[2:]) / self.image_size
        for start in range(0, len(images), _IMAGES_PER_PART):
            part = slice(start, start + _IMAGES_PER_PART)
            batch = images[part].astype(np.float32)
            nuclei[part] = self._nuclei(np.ascontiguousarray(batch[:, first]), scale)
            cells[part] = self._cells(batch[:, others].mean(axis=1), nuclei[part], scale)
        return Masks(nuclei, cells)

    def _nuclei(self, dna: np.ndarray, scale: float) -> np.ndarray:
        smooth = smooth_images(dna, self.sigma * scale)
        threshold = np.maximum(otsu_thresholds(smooth), self.floor)
        foreground = fill_holes(smooth > threshold[:, None, None])
        foreground &= ~foreground.all(axis=(1, 2), keepdims=True)  # Otsu's threshold divides no blank image
        depth = smooth_images(distance_to_background(foreground), self.sigma * scale)
        width = 2 * round(self.nucleus_radius * scale) + 1
        deepest = (depth == maximum_filter(depth, size=(1, width, width))) & foreground
        # One by one: the order in which ties are settled depends on all that a watershed is given.
        parts = zip(-depth, label_pieces(deepest), foreground, strict=True)
        labels = np.stack([watershed(height, seeds, mask=mask) for height, seeds, mask in parts])
        return remove_small(labels.astype(np.int32), self.nucleus_area * scale**2)

    def _cells(self, cytoplasm: np.ndarray, nuclei: np.ndarray, scale: float) -> np.ndarray:
        smooth = smooth_images(cytoplasm, self.sigma * scale)
        threshold = np.maximum(self.cell_fraction * otsu_thresholds(smooth), self.floor)
        foreground = fill_holes(smooth > threshold[:, None, None])
        pieces = label_pieces(foreground)
        # Numbers that no two images have in common: label k of image n.
        first = np.arange(len(nuclei), dtype=np.int32)[:, None, None] * (nuclei.max(initial=0) + 1)
        seeds = np.where((nuclei > 0) & foreground, nuclei + first, 0)
        nearest = np.stack([_nearest_label(image) for image in seeds])
        shared = np.isin(pieces, np.unique(pieces[seeds > 0])) & foreground
        labels = np.where(shared, nearest, np.where(foreground, pieces + seeds.max(initial=0), 0))
        return remove_small(labels.astype(np.int32), self.cell_area * scale**2)


def _nearest_label(labels: np.ndarray) -> np.ndarray:
    """Give each pixel of (H, W) the label that is nearest."""
    if not labels.any():
        return labels
    nearest = distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return labels[tuple(np.asarray(nearest))]
