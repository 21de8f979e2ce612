"""The default segmenter: from images of cells to labelled nuclei and cells, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from cellfluxrl.rewards.segmentation.labelling import (
    Borders,
    basins,
    distance_to_background,
    fill_holes,
    from_strip,
    join_regions,
    label_pieces,
    local_means,
    otsu_thresholds,
    refine,
    remove_small,
    resize,
    smooth_images,
    to_strip,
)
from cellfluxrl.rewards.segmentation.nucleus_borders import Planes, log_odds_of_one_nucleus
from cellfluxrl.rewards.segmentation.protocol import (
    NUCLEUS_CHANNEL,
    Masks,
    check_images,
    check_settings,
    register_segmenter,
)

_PIXELS_PER_PART = 64 * 48 * 48  # what is computed at once then stays in the processor's cache
_LARGE = 1.5  # times the size that the settings are for
_EDGE_SIGMA = 0.6  # px; takes the noise off an edge without moving it
_NUCLEUS_WINDOW = 13.0  # px, about a nucleus
_CELL_WINDOW = 21.0  # px, about a cell
_DISTANCE_WEIGHT = 0.1  # brightness that one px of distance to the background is worth
_JOIN = 1.0  # log-odds; parts of a nucleus that one border does not join another one may
_FAR = 13.0  # px from the nearest nucleus: further than most cells reach
_FAR_AREA = 5.0  # square px
_MEMBRANE = 0.08  # brightness per px; a cell without a nucleus in view is set apart by more
_SPECK = 12.0  # square px; smaller holes in a cell are filled


@register_segmenter
@dataclass(frozen=True)
class WatershedSegmenter:
    """Segment with thresholds and watersheds: no network, no download, the same result on every machine.

    Nuclei come from the nucleus channel. Otsu's threshold [1]_ finds roughly where they are; their edge is where the
    brightness falls to a fraction of the mean of the nucleus around it, so that neither a bright neighbour nor the
    blur of a bright nucleus moves it. The default fraction, 0.71, is half the intensity, where the edge of a blurred
    object lies, on the square-root scale of this project's images. Touching nuclei are divided into the basins of a
    watershed [2]_ of brightness and distance to the background, and basins are joined again where their size,
    brightness, the neck between them and the cytoplasm around them speak for one nucleus
    (`log_odds_of_one_nucleus`, fitted on simulated nuclei): texture divides no nucleus.

    Cells come from all other channels: a permissive threshold of their mean, then a local one as above. Which pixels
    are cell at all is decided without the nucleus channel, as the reward for nuclei that lie inside cells could not
    fail otherwise. The nuclei share out that foreground by a watershed of the differences in brightness in all
    channels: the "secondary objects" of CellProfiler [3]_. Cytoplasm far from every nucleus, as of a cell whose
    nucleus lies outside the image, is a separate cell where background or a membrane sets it apart.

    Images of more than one and a half times `image_size` are divided at that size, and only the edges of their
    objects are found at full size.

    Lengths are in pixels of an image whose shorter side is `image_size`; other images are measured in the same
    proportion. Intensities are on the images' scale of 0 to 1.

    Args:
        channel_names: The channels in the order of the images' second axis.
        nucleus_channel: The channel that shows nuclei; all others are cytoplasm. If there is no other, cells are
            found in the nucleus channel by the permissive threshold for cells, and containment says little.
        image_size: The shorter side, in pixels, of the images that the lengths below refer to.
        nucleus_sigma: Standard deviation of the Gaussian that smooths the nucleus channel, in pixels; no
            fewer in smaller images, whose noise is the same.
        nucleus_floor: Lowest threshold for nuclei.
        nucleus_ceiling: Highest threshold for nuclei, so that one very bright nucleus does not hide the others.
        nucleus_contrast: An image has nuclei only if its smoothed nucleus channel is on average this much brighter
            above Otsu's threshold than below, which noise is not.
        nucleus_edge: Brightness at the edge of a nucleus as a fraction of the mean around it.
        nucleus_area: Smaller nuclei are removed, in square pixels.
        cell_sigma: Standard deviation of the Gaussian that smooths the cytoplasm, in pixels.
        cell_fraction: The permissive threshold for cells is this fraction of Otsu's, within the next two bounds.
        cell_floor: Lowest threshold for cells.
        cell_ceiling: Highest threshold for cells, so that crops without background are cells throughout.
        cell_edge: Brightness at the edge of a cell as a fraction of the mean around it.
        cell_area: Smaller pieces of cytoplasm are removed before they are shared out, in square pixels.

    Raises:
        ValueError: If `nucleus_channel` is not one of `channel_names`, a name occurs twice, or a setting is out of
            range.

    References:
        .. [1] N. Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9, 62-66 (1979).
        .. [2] S. Beucher, C. Lantuejoul, Use of watersheds in contour detection, Int. Workshop on Image Processing
           (1979).
        .. [3] A. Carpenter et al., CellProfiler: image analysis software for identifying and quantifying cell
           phenotypes, Genome Biology 7, R100 (2006).

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
    nucleus_channel: str = NUCLEUS_CHANNEL
    image_size: int = 48
    nucleus_sigma: float = 1.25
    nucleus_floor: float = 0.15
    nucleus_ceiling: float = 0.35
    nucleus_contrast: float = 0.22
    nucleus_edge: float = 0.71
    nucleus_area: float = 30.0
    cell_sigma: float = 0.9
    cell_fraction: float = 0.6
    cell_floor: float = 0.08
    cell_ceiling: float = 0.2
    cell_edge: float = 0.72
    cell_area: float = 60.0

    def __post_init__(self) -> None:
        check_settings(self)
        for kind in ("nucleus", "cell"):
            floor, ceiling = getattr(self, f"{kind}_floor"), getattr(self, f"{kind}_ceiling")
            if floor > ceiling:
                raise ValueError(f"{kind}_floor must not exceed {kind}_ceiling, got {floor!r} and {ceiling!r}")

    def __call__(self, images: np.ndarray) -> Masks:
        """Label the nuclei and the cells of (N, C, H, W) floats in [0, 1], whatever else is in the batch.

        Raises:
            ValueError: If the shape, the type or a value of `images` is not as above.
        """
        check_images(images, self.channel_names)
        count, channels, height, width = images.shape
        first = self.channel_names.index(self.nucleus_channel)
        others = [c for c in range(channels) if c != first] or [first]
        nuclei = np.zeros((count, height, width), dtype=np.int32)
        cells = np.zeros_like(nuclei)
        step = max(1, _PIXELS_PER_PART // (height * width))
        for part in (slice(start, start + step) for start in range(0, count, step)):
            # Contiguous float32 planes, which the filters below ask for.
            planes = np.ascontiguousarray(images[part].transpose(1, 0, 2, 3), dtype=np.float32)
            dna, cytoplasm = planes[first], planes[others]
            if min(height, width) < _LARGE * self.image_size:
                (nuclei[part], _), (cells[part], _) = self._segment(dna, cytoplasm)
                continue
            # Objects are told apart at the resolution of the settings, and only their edges found at full size.
            size = (round(height / self._scale(dna)), round(width / self._scale(dna)))
            found = self._segment(resize(dna, size), np.stack([resize(c, size) for c in cytoplasm]))
            sigma = _EDGE_SIGMA * self._scale(dna)
            for out, plane, (labels, edge) in zip((nuclei, cells), (dna, cytoplasm.mean(axis=0)), found, strict=True):
                out[part] = refine(labels, edge, smooth_images(plane, sigma))
        return Masks(nuclei, cells)

    def _segment(self, dna: np.ndarray, cytoplasm: np.ndarray) -> tuple[tuple, tuple]:
        """Labels, and the brightness at their edges, of the nuclei and of the cells: (N, H, W) each."""
        scale = self._scale(dna)
        smooth = np.stack([smooth_images(c, self.cell_sigma * scale) for c in cytoplasm])
        # A membrane shows in every channel; bundles of filaments and other bright structures are in one only.
        membranes = np.min([outlines(c, scale) for c in smooth], axis=0)
        nuclei, nucleus_edge = self._nuclei(dna, smooth, membranes)
        return (nuclei, nucleus_edge), self._cells(cytoplasm.mean(axis=0), smooth, membranes, nuclei)

    def _nuclei(self, dna: np.ndarray, cytoplasm: np.ndarray, membranes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label the nuclei in (N, H, W) images of DNA."""
        scale = self._scale(dna)
        # Noise is per pixel, whatever the image size: small images are smoothed no less.
        smooth = smooth_images(dna, self.nucleus_sigma * max(scale, 1))
        otsu = otsu_thresholds(smooth)
        threshold = np.clip(otsu, self.nucleus_floor, self.nucleus_ceiling)
        threshold[_contrast(smooth, otsu) < self.nucleus_contrast] = np.inf
        rough = smooth > threshold[:, None, None]
        sharp = smooth_images(dna, _EDGE_SIGMA * scale)
        edge = self.nucleus_edge * local_means(dna, rough, _NUCLEUS_WINDOW * scale)
        foreground = fill_holes(rough & (sharp > edge))

        distance = distance_to_background(foreground) / np.float32(scale)
        regions = basins(smooth + _DISTANCE_WEIGHT * smooth_images(distance, scale), foreground)
        planes = Planes(sharp, distance, cytoplasm, membranes)

        def two_nuclei(labels: np.ndarray, borders: Borders) -> np.ndarray:
            return -log_odds_of_one_nucleus(labels, borders, planes, scale)

        no_seeds = np.zeros(regions.max(initial=0) + 1, dtype=bool)
        nuclei = join_regions(regions, no_seeds, two_nuclei, limit=-_JOIN)
        return remove_small(nuclei, self.nucleus_area * scale**2), edge

    def _cells(
        self, cytoplasm: np.ndarray, smooth: np.ndarray, membranes: np.ndarray, nuclei: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Label the cells in (N, H, W) images of cytoplasm, one for each nucleus and each piece without one."""
        scale = self._scale(cytoplasm)
        overall = smooth.mean(axis=0)
        threshold = np.clip(self.cell_fraction * otsu_thresholds(overall), self.cell_floor, self.cell_ceiling)
        rough = overall > threshold[:, None, None]
        sharp = smooth_images(cytoplasm, _EDGE_SIGMA * scale)
        edge = self.cell_edge * local_means(cytoplasm, rough, _CELL_WINDOW * scale)
        foreground = fill_holes(rough & (sharp > edge), _SPECK * scale**2)
        pieces = label_pieces(foreground)
        areas = np.bincount(pieces.ravel())
        pieces *= (areas >= self.cell_area * scale**2)[pieces]
        # No share is too small to stay: where the foreground is must not depend on the nuclei.
        return remove_small(share_out(pieces, nuclei, smooth, membranes, scale), area=1), edge

    def _scale(self, images: np.ndarray) -> float:
        """Return how many pixels of `images` one pixel of the settings is."""
        return min(images.shape[-2:]) / self.image_size


def outlines(images: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Find where cells meet: dark lines and steps of brightness in (N, H, W) images, in units of brightness per px.

    The slope plus, where it is positive, the largest curvature; both from differences of neighbouring pixels.
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, 2:] - padded[:, :-2]
    down, across = rows[:, :, 1:-1] / 2, (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    twice = 2 * images
    bend_down = padded[:, 2:, 1:-1] + padded[:, :-2, 1:-1] - twice
    bend_across = padded[:, 1:-1, 2:] + padded[:, 1:-1, :-2] - twice
    bend_both = (rows[:, :, 2:] - rows[:, :, :-2]) / 4
    slope = np.sqrt(down**2 + across**2)
    bend = (bend_down + bend_across) / 2 + np.sqrt(((bend_down - bend_across) / 2) ** 2 + bend_both**2)
    return slope * scale + np.maximum(bend, 0) * scale**2


def share_out(
    pieces: np.ndarray, nuclei: np.ndarray, channels: np.ndarray, membranes: np.ndarray, scale: float = 1.0
) -> np.ndarray:
    """Divide the foreground between nuclei by a watershed of the differences in brightness, in all channels.

    Foreground far from every nucleus, as of a cell whose nucleus lies outside the image, is divided off too. It stays
    a separate object if a membrane sets it apart, and falls to its neighbour otherwise. A piece without any nucleus is
    an object. `pieces` are (N, H, W) labels of the connected pieces of the foreground, counted through the stack;
    `nuclei` labels from 1 in each image; `channels`, (C, N, H, W), the smoothed cytoplasm in [0, 1]; `membranes` those
    of `outlines`. No two images have a label but 0 in common.
    """
    seeds, settled = _cell_seeds(pieces, nuclei, scale)
    thirds = np.array_split(channels, 3) if len(channels) >= 3 else [channels[:1], channels[-1:], channels]
    colors = [c.mean(axis=0) for c in thirds]
    inside = to_strip(pieces > 0)
    # The background differs more from every pixel inside than those do from each other: it is flooded last.
    picture = np.stack([np.where(inside, to_strip(127 * c), 255).astype(np.uint8) for c in colors], axis=-1)
    seeds = to_strip(seeds)
    labels = np.where(inside, seeds + (seeds > 0), 1)  # 1 is the background, 0 is to be divided
    # OpenCV does not look at the outermost pixels: let them be outside of the frames, for every image to have one.
    labels = np.pad(labels, 1, constant_values=1)
    cv2.watershed(np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=255), labels)
    labels = labels[1:-1, 1:-1]
    labels = np.where(inside & (labels > 1), labels - 1, 0)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    while (lines := inside & (labels == 0)).any():
        around = cv2.dilate(labels.astype(np.float32), cross)
        labels = np.where(lines, around.astype(np.int32), labels)
    labels = np.ascontiguousarray(from_strip(labels, len(pieces)))
    flat = membranes.ravel()
    return join_regions(labels, settled, lambda _, borders: borders.mean(np.maximum(*flat[borders.pixels])), _MEMBRANE)


def _cell_seeds(pieces: np.ndarray, nuclei: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Number nuclei, pieces of foreground without one, and foreground far from all; and say which are cells."""
    foreground = pieces > 0
    marked = foreground & (nuclei > 0)
    highest = nuclei.max(initial=0)
    before = np.arange(len(nuclei), dtype=np.int32)[:, None, None] * highest
    seeds = np.where(marked, nuclei + before, 0)
    has_nucleus = np.zeros(pieces.max(initial=0) + 1, dtype=bool)
    has_nucleus[pieces[marked]] = True
    with_nucleus = has_nucleus[pieces]
    alone = foreground & ~with_nucleus
    seeds[alone] = pieces[alone] + len(nuclei) * highest

    far = np.zeros_like(foreground)
    for n in np.flatnonzero(marked.any(axis=(1, 2))):
        away = cv2.distanceTransform((~marked[n]).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
        core = (with_nucleus[n] & (away > _FAR * scale)).view(np.uint8)
        far[n] = cv2.erode(core, np.ones((3, 3), np.uint8), borderValue=1)
    far_pieces = label_pieces(far)
    large = np.bincount(far_pieces.ravel()) >= _FAR_AREA * scale**2
    large[0] = False
    cells = len(nuclei) * highest + len(has_nucleus)
    seeds = np.where(large[far_pieces], far_pieces + np.int32(cells), seeds)
    return seeds, np.arange(cells + len(large)) <= cells


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
