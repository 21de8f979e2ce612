"""A panel of morphology features per crop in the manner of CellProfiler, which nothing is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch

from cellfluxrl.data.images import to_uint8, to_unit
from cellfluxrl.evaluation.features.texture import (
    GRANULARITY_RADII,
    HARALICK_DISTANCES,
    HARALICK_PROPERTIES,
    LBP_NEIGHBOURS,
    granularity,
    haralick,
    local_binary_patterns,
)
from cellfluxrl.rewards.segmentation.labelling import distance_to_background
from cellfluxrl.rewards.segmentation.measurements import object_areas, object_perimeters
from cellfluxrl.rewards.segmentation.protocol import Masks, Segmenter

OBJECTS = ("Nucleus", "Cell")
COUNTS = ("Image_Count_Nuclei", "Image_Count_Cells", "Image_AreaOccupied_Cells")
SHAPE = (
    *("Area", "Perimeter", "FormFactor", "Eccentricity", "Solidity", "Extent"),
    *("MajorAxisLength", "MinorAxisLength", "MaximumRadius"),
)
RELATIONS = ("Cell_AreaShape_NucleusShare", "Cell_AreaShape_NucleusOffset")
INTENSITY = ("Mean", "Std", "Quantile05", "Median", "Quantile95", "MeanEdge", "MassDisplacement")
QUANTILES = (0.05, 0.5, 0.95)
RINGS = 4
_PIXELS_PER_PART = 64 * 48 * 48  # what is computed at once then stays in the processor's cache
_RANGE_TOLERANCE = 1e-4


def morphology_feature_names(channel_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of [`morphology_features`], as in CellProfiler: object, category, measure, channel.

    Example:
        >>> names = morphology_feature_names(["dna", "tubulin", "actin"])
        >>> len(names), names[3], names[-1]
        (173, 'Nucleus_AreaShape_Area', 'Cell_Texture_LBP_9_actin')
    """
    textures = [f"Haralick_{n}_{d}px" for d in HARALICK_DISTANCES for n in (*HARALICK_PROPERTIES, "entropy")]
    textures += [f"LBP_{pattern}" for pattern in range(LBP_NEIGHBOURS + 2)]
    cell = [
        *(f"RadialDistribution_FracAtD_{ring}of{RINGS}" for ring in range(1, RINGS + 1)),
        *(f"Granularity_{radius}" for radius in GRANULARITY_RADII),
        *(f"Texture_{name}" for name in textures),
    ]
    pairs = list(itertools.combinations(channel_names, 2))
    return (
        *COUNTS,
        *(f"{thing}_AreaShape_{name}" for thing in OBJECTS for name in SHAPE),
        *RELATIONS,
        *(f"{o}_Intensity_{name}_{channel}" for o in OBJECTS for channel in channel_names for name in INTENSITY),
        *(f"{thing}_Correlation_{a}_{b}" for thing in OBJECTS for a, b in pairs),
        *(f"Cell_{name}_{channel}" for channel in channel_names for name in cell),
    )


def morphology_features(images: torch.Tensor, masks: Masks | Segmenter) -> np.ndarray:
    """Measure the largest nucleus of each crop and the cell around it: `(N, F)` of [`morphology_feature_names`].

    Categories and measures follow CellProfiler (Carpenter et al., 2006; Stirling et al., 2021): area and shape,
    intensity, radial distribution, granularity, texture and correlation between channels. Lengths are in pixels and
    intensities in [0, 1]. NaN where a crop has no such object, and where the value is undefined: shares and
    correlations of a channel without any light.

    The cell is the one that most of the nucleus lies in, the nucleus included. Its rings divide the way from the
    centre of the nucleus to the cell's edge: a pixel's place is d / (d + e), d its distance from the one and e from
    the other.

    Args:
        images: `(N, C, H, W)`; in [-1, 1].
        masks: Labels of the nuclei and cells, or what finds them in these images.

    Raises:
        ValueError: If the images have another shape or range, or the labels do not belong to them.
    """
    _check(images)
    if not isinstance(masks, Masks):
        masks = masks(to_unit(images.float()).clamp(0, 1).cpu().numpy())
    expected = (len(images), *images.shape[2:])
    for name, labels in (("nuclei", masks.nuclei), ("cells", masks.cells)):
        if labels.shape != expected:
            raise ValueError(f"{name} must have shape {expected} as the images have, got {labels.shape}")
    if not len(images):
        return np.empty((0, len(morphology_feature_names(range(images.shape[1])))))
    step = max(1, _PIXELS_PER_PART // (expected[1] * expected[2]))
    parts = [slice(start, start + step) for start in range(0, len(images), step)]
    return np.concatenate([_measure(images[p], masks.nuclei[p], masks.cells[p]) for p in parts])


def _check(images: torch.Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point() or min(images.shape[1:]) < 1:
        raise ValueError(f"images must be floats of shape (N, C, H, W), got {tuple(images.shape)} {images.dtype}")
    if len(images):
        low, high = (float(value) for value in images.aminmax())
        if not (low >= -1 - _RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):  # NaN fails both
            raise ValueError(f"images must be finite and lie in [-1, 1], got values from {low:g} to {high:g}")


def _measure(images: torch.Tensor, nuclei: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Features `(N, F)` of a few images."""
    count, channels = images.shape[:2]
    grey = to_unit(images.float()).cpu().numpy().reshape(count, channels, -1)
    bytes_last = np.ascontiguousarray(to_uint8(images).transpose(0, 2, 3, 1))
    nucleus = _largest(nuclei, object_areas(nuclei))
    cell = _largest(cells, object_areas(np.where(nucleus, cells, 0)))
    centre, to_edge = _centroids(nucleus), distance_to_background(cell)
    whole_crop = [(object_areas(labels) > 0).sum(axis=1) for labels in (nuclei, cells)]
    per_channel = [
        _radial_distribution(grey, centre, to_edge, cell),
        granularity(bytes_last, cell),
        haralick(bytes_last, cell),
        local_binary_patterns(bytes_last, cell),
    ]
    columns = [
        *whole_crop,
        (cells > 0).mean(axis=(1, 2)),
        _shape(nucleus, distance_to_background(nucleus)),
        _shape(cell, to_edge),
        _relations(nucleus, cell, centre),
        *(_intensity(grey, region) for region in (nucleus, cell)),
        *(_correlations(grey, region) for region in (nucleus, cell)),
        np.concatenate(per_channel, axis=2),
    ]
    return np.concatenate([np.reshape(c, (count, -1)) for c in columns], axis=1, dtype=np.float64)


def _largest(labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """`(N, H, W)` booleans: the object with the largest of its (N, K) `areas`; nothing if all are 0."""
    chosen = np.pad(areas, ((0, 0), (1, 0))).argmax(axis=1)
    return (labels == chosen[:, None, None]) & (labels > 0)


def _per(total: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Divide; what is per nothing is NaN."""
    nothing = np.full(np.broadcast_shapes(total.shape, amount.shape), np.nan)
    return np.divide(total, amount, out=nothing, where=amount > 0)


def _coordinates(size: int) -> np.ndarray:
    return np.arange(size) - (size - 1) / 2  # from the middle of the image


def _centroids(mask: np.ndarray) -> np.ndarray:
    """`(N, 2)` rows and columns, from the middle of the image."""
    _, height, width = mask.shape
    sums = [mask.sum(axis=2) @ _coordinates(height), mask.sum(axis=1) @ _coordinates(width)]
    return _per(np.stack(sums, axis=1), mask.sum(axis=(1, 2))[:, None].astype(np.float64))


def _shape(mask: np.ndarray, to_edge: np.ndarray) -> np.ndarray:
    """`(N, 9)` measures of the shape of one object an image, in the order of `SHAPE`."""
    area = mask.sum(axis=(1, 2)).astype(np.float64)
    perimeter = object_perimeters(mask.astype(np.int32)).sum(axis=1)  # one label, or none in the whole batch
    perimeter = np.where(area > 0, perimeter, np.nan) if perimeter.size else np.full(len(mask), np.nan)
    major, minor = _axes(mask, area)
    heights, widths = (_extents(mask.any(axis=axis)) for axis in (2, 1))
    columns = {
        "Area": np.where(area > 0, area, np.nan),
        "Perimeter": perimeter,
        "FormFactor": 4 * np.pi * area / perimeter**2,
        "Eccentricity": np.sqrt(np.maximum(1 - _per(minor, major) ** 2, 0)),
        "Solidity": _per(area, _convex_areas(mask)),
        "Extent": _per(area, heights * widths),
        "MajorAxisLength": major,
        "MinorAxisLength": minor,
        "MaximumRadius": np.where(area > 0, to_edge.max(axis=(1, 2)), np.nan),
    }
    return np.stack([columns[name] for name in SHAPE], axis=1)


def _axes(mask: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The axes of the ellipses with the objects' second moments, as `skimage.measure.regionprops` does."""
    y, x = _coordinates(mask.shape[1]), _coordinates(mask.shape[2])
    along_rows = mask @ x
    mean_y, mean_x = _centroids(mask).T
    var_y = _per(mask.sum(axis=2) @ y**2, area) - mean_y**2
    var_x = _per(mask.sum(axis=1) @ x**2, area) - mean_x**2
    covariance = _per(along_rows @ y, area) - mean_y * mean_x
    middle, radius = (var_y + var_x) / 2, np.hypot((var_y - var_x) / 2, covariance)
    return 4 * np.sqrt(np.maximum(middle + radius, 0)), 4 * np.sqrt(np.maximum(middle - radius, 0))


def _extents(occupied: np.ndarray) -> np.ndarray:
    """How many of `(N, L)` rows or columns lie between the first and the last that is occupied."""
    first, last = occupied.argmax(axis=1), occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)
    return np.where(occupied.any(axis=1), last - first, 0)


def _convex_areas(mask: np.ndarray) -> np.ndarray:
    """Count the pixels whose centres lie in the convex hull of the objects' pixel centres, by Pick's theorem."""
    areas = np.zeros(len(mask))
    for n, image in enumerate(mask.view(np.uint8)):
        points = cv2.findNonZero(image)
        if points is None:
            continue
        hull = cv2.convexHull(points)[:, 0].astype(np.int64)
        steps = np.abs(hull - np.roll(hull, 1, axis=0))
        boundary = np.gcd(steps[:, 0], steps[:, 1]).sum()
        areas[n] = cv2.contourArea(hull.astype(np.float32)) + boundary / 2 + 1
    return areas


def _relations(nucleus: np.ndarray, cell: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """`(N, 2)`: nucleus' share of the cell's area, distance of their centres in radii of a disc of that area."""
    area = cell.sum(axis=(1, 2)).astype(np.float64)
    offset = np.hypot(*(centre - _centroids(cell)).T)
    inside = (nucleus & cell).sum(axis=(1, 2)).astype(np.float64)
    return np.stack([_per(inside, area), _per(offset, np.sqrt(area / np.pi))], axis=1)


def _means(grey: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Mean of `grey`, `(N, C, H * W)` in [0, 1], in the `(N, H, W)` region: `(N, C)`."""
    flat = region.reshape(len(region), -1).astype(np.float64)
    return _per((grey @ flat[:, :, None])[..., 0], flat.sum(axis=1)[:, None])


def _intensity(grey: np.ndarray, region: np.ndarray) -> np.ndarray:
    """`(N, C, 7)` measures of intensity, in the order of `INTENSITY`."""
    mean = _means(grey, region)
    std = np.sqrt(_means((grey - mean[..., None]) ** 2, region))
    edge = _means(grey, _inner_boundary(region))
    return np.stack([mean, std, *_quantiles(grey, region), edge, _mass_displacement(grey, region)], axis=2)


def _inner_boundary(region: np.ndarray) -> np.ndarray:
    """Pixels of the region beside the background, which all outside of the image is."""
    padded = np.pad(region, ((0, 0), (1, 1), (1, 1)))
    beside = padded[:, 2:, 1:-1] & padded[:, :-2, 1:-1] & padded[:, 1:-1, 2:] & padded[:, 1:-1, :-2]
    return region & ~beside


def _quantiles(grey: np.ndarray, region: np.ndarray) -> Iterator[np.ndarray]:
    """Give (N, C) quantiles in the region, interpolated linearly as `numpy.quantile` does."""
    flat = region.reshape(len(region), 1, -1)
    ordered = np.sort(np.where(flat, grey, np.float32(np.inf)), axis=2)
    area = flat.sum(axis=2)
    for quantile in QUANTILES:
        place = quantile * np.maximum(area - 1, 0)
        below, above = np.floor(place).astype(np.int64), np.ceil(place).astype(np.int64)
        low, high = (
            np.take_along_axis(ordered, np.broadcast_to(i, grey.shape[:2])[..., None], axis=2)[..., 0]
            for i in (below, above)
        )
        with np.errstate(invalid="ignore"):  # infinity stands where the region is empty
            yield np.where(area > 0, low + (place - below) * (high - low), np.nan)


def _mass_displacement(grey: np.ndarray, region: np.ndarray) -> np.ndarray:
    """`(N, C)` distances between the centre of the region and that of the light in it."""
    count, height, width = region.shape
    light = grey.reshape(count, -1, height, width) * region[:, None]
    total = light.sum(axis=(2, 3), dtype=np.float64)
    row = _per(light.sum(axis=3) @ _coordinates(height), total)
    column = _per(light.sum(axis=2) @ _coordinates(width), total)
    centre = _centroids(region)
    return np.hypot(row - centre[:, :1], column - centre[:, 1:])


def _radial_distribution(grey: np.ndarray, centre: np.ndarray, to_edge: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """`(N, C, RINGS)`: the share of the cell's intensity in each ring."""
    count, height, width = cell.shape
    centre = np.nan_to_num(centre)  # without a nucleus there is no cell either
    rows = (_coordinates(height) - centre[:, :1])[:, :, None]
    columns = (_coordinates(width) - centre[:, 1:])[:, None, :]
    distance = np.hypot(rows, columns)
    place = distance / np.maximum(distance + to_edge, 1e-9)
    # Rounding merges what differs by the last digit only, so that a rotated image has the same rings.
    ring = np.minimum((np.round(place * RINGS, 6)).astype(np.int64), RINGS - 1)
    inside = np.stack([(cell & (ring == k)).reshape(count, -1) for k in range(RINGS)], axis=2)
    light = grey @ inside.astype(np.float64)
    return _per(light, light.sum(axis=2, keepdims=True))


def _correlations(grey: np.ndarray, region: np.ndarray) -> np.ndarray:
    """`(N, C (C - 1) / 2)` Pearson correlations over the region's pixels, pairs in the order of combinations."""
    flat = region.reshape(len(region), 1, -1)
    centred = np.where(flat, grey - np.nan_to_num(_means(grey, region))[..., None], 0.0)
    products = centred @ centred.transpose(0, 2, 1)
    first, second = np.triu_indices(grey.shape[1], k=1)
    squares = np.diagonal(products, axis1=1, axis2=2)
    norm = np.sqrt(squares[:, first] * squares[:, second])
    return _per(products[:, first, second], np.where(norm > 1e-9, norm, 0.0))  # less than that is rounding
