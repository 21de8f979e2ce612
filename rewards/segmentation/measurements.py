"""From labelled nuclei and cells to the six numbers per image that the biological rewards judge."""

from __future__ import annotations

import numpy as np

from cellfluxrl.rewards.segmentation.protocol import Masks

STATISTICS: tuple[str, ...] = ("roundness", "nucleus_size", "cytoplasm_size", "nucleus_count", "cytoplasm_count")
"""The measurements whose distribution in real images the rewards compare with."""

_PIXELS_PER_PART = 256 * 48 * 48  # what is measured at once, so that memory does not grow with the number of images

# A 2x2 window has a pixel of an object, or not, in its four corners: 16 configurations. Each crosses the boundary in
# some of four directions, which Crofton's formula turns into the length of boundary below.
_AXIS, _DIAGONAL = np.pi / 4, np.pi / (4 * np.sqrt(2))
_CORNER_WEIGHTS = np.array([8, 2, 4, 1])  # upper left, upper right, lower left, lower right
_CROFTON_LENGTHS = np.array(
    [
        *(0, _AXIS + _DIAGONAL, _DIAGONAL, 2 * _DIAGONAL),
        *(0, _AXIS + _DIAGONAL, 0, _DIAGONAL),
        *(_AXIS, 2 * _AXIS, _DIAGONAL, _DIAGONAL),
        *(_AXIS, 2 * _AXIS, 0, 0),
    ]
)


def measure(masks: Masks) -> dict[str, np.ndarray]:
    """Measure the nuclei and cells of each image.

    An image without nuclei or cells is not an error, since a simulator may well produce one: what cannot be measured
    is 0.

    Args:
        masks: Labels of N images.

    Returns:
        (N,) float64 arrays:

        - ``containment``: the share of the pixels of all nuclei that lie in any cell, 0 to 1; 0 without nuclei.
        - ``roundness``: mean over the nuclei of 4 pi area / perimeter^2, about 1 for a disc and less for other shapes
          (a digital disc may reach 1.06: nothing is clipped). Nuclei that touch the border of the image are left out
          if the image has others, since the border cuts their shape. 0 without nuclei.
        - ``nucleus_size``: the largest nucleus' area in square pixels; 0 without nuclei.
        - ``cytoplasm_size``: the largest cell's area in square pixels, its nucleus included; 0 without cells.
        - ``nucleus_count``: the number of nuclei.
        - ``cytoplasm_count``: the number of cells.

    Raises:
        ValueError: If the two masks are not integers of one (N, H, W) shape, or hold negative labels.

    Example:
        >>> y, x = np.mgrid[:48, :48]
        >>> disc = np.hypot(y - 24, x - 24)
        >>> nuclei, cells = (disc < 8).astype(np.int32), (disc < 18).astype(np.int32)
        >>> values = measure(Masks(nuclei[None], cells[None]))
        >>> values["containment"].item(), values["nucleus_size"].item(), round(values["roundness"].item(), 2)
        (1.0, 193.0, 1.01)
    """
    _check_masks(masks)
    step = max(1, _PIXELS_PER_PART // max(masks.nuclei[0].size if len(masks.nuclei) else 1, 1))
    starts = range(0, max(len(masks.nuclei), 1), step)
    parts = [_measure_part(masks.nuclei[i : i + step], masks.cells[i : i + step]) for i in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure_part(nuclei: np.ndarray, cells: np.ndarray) -> dict[str, np.ndarray]:
    nucleus_areas, cell_areas = object_areas(nuclei), object_areas(cells)
    return {
        "containment": _containment(nuclei, cells),
        "roundness": _roundness(nuclei, nucleus_areas),
        "nucleus_size": nucleus_areas.max(axis=1, initial=0).astype(np.float64),
        "cytoplasm_size": cell_areas.max(axis=1, initial=0).astype(np.float64),
        "nucleus_count": (nucleus_areas > 0).sum(axis=1).astype(np.float64),
        "cytoplasm_count": (cell_areas > 0).sum(axis=1).astype(np.float64),
    }


def object_areas(labels: np.ndarray) -> np.ndarray:
    """Count the pixels of every object of every image.

    Args:
        labels: (N, H, W) instance labels, 0 for the background.

    Returns:
        (N, K) int64, K the highest label of the batch: column k - 1 holds label k, 0 where an image lacks it.

    Example:
        >>> object_areas(np.array([[[0, 1, 2, 2]], [[0, 0, 1, 0]]]))
        array([[1, 2],
               [1, 0]])
    """
    ids, shape = _object_ids(labels)
    return np.bincount(ids.ravel(), minlength=shape[0] * shape[1]).reshape(shape)[:, 1:]


def object_perimeters(labels: np.ndarray) -> np.ndarray:
    """Estimate the length of the outline of every object of every image with Crofton's formula in four directions.

    For each object equal to `skimage.measure.perimeter_crofton(labels[n] == k, directions=4)` [1]_, but computed for
    all at once. Averaged over positions it is nearly unbiased on digital discs, where
    `skimage.measure.perimeter` drifts with the radius.

    Args:
        labels: (N, H, W) instance labels, 0 for the background. Outside of the image is background.

    Returns:
        (N, K) float64 lengths in pixels, K the highest label of the batch, as in `object_areas`.

    References:
        .. [1] https://en.wikipedia.org/wiki/Crofton_formula

    Example:
        >>> y, x = np.mgrid[:48, :48]
        >>> disc = (np.hypot(y - 24, x - 24) < 8).astype(np.int32)
        >>> round(float(object_perimeters(disc[None])[0, 0]), 1), round(2 * np.pi * 8, 1)
        (49.1, 50.3)
    """
    ids, shape = _object_ids(np.pad(labels, ((0, 0), (1, 1), (1, 1))))
    upper_left, upper_right = ids[:, :-1, :-1], ids[:, :-1, 1:]
    lower_left, lower_right = ids[:, 1:, :-1], ids[:, 1:, 1:]
    outline = (upper_left != upper_right) | (upper_left != lower_left) | (upper_left != lower_right)
    # Only the windows on an outline: (M, 4).
    corners = np.stack([c[outline] for c in (upper_left, upper_right, lower_left, lower_right)], axis=-1)

    # What the window looks like to the object of each of its corners: an object with two corners in the window sees
    # the same configuration twice, each time with half the length.
    same = corners[:, :, None] == corners[:, None, :]
    lengths = _CROFTON_LENGTHS[same @ _CORNER_WEIGHTS] / same.sum(axis=-1)
    total = np.bincount(corners.ravel(), weights=lengths.ravel(), minlength=shape[0] * shape[1])
    return total.reshape(shape)[:, 1:]


def _containment(nuclei: np.ndarray, cells: np.ndarray) -> np.ndarray:
    nucleus = nuclei > 0
    inside = (nucleus & (cells > 0)).sum(axis=(1, 2))
    return inside / np.maximum(nucleus.sum(axis=(1, 2)), 1)


def _roundness(nuclei: np.ndarray, areas: np.ndarray) -> np.ndarray:
    perimeters = object_perimeters(nuclei)
    roundness = 4 * np.pi * areas / np.where(areas > 0, perimeters, 1) ** 2
    present = areas > 0
    whole = present & ~_touches_border(nuclei)
    counted = np.where(whole.any(axis=1, keepdims=True), whole, present)
    return (roundness * counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)


def _touches_border(labels: np.ndarray) -> np.ndarray:
    """Return (N, K) booleans: whether the object has a pixel in the first or last row or column."""
    ids, shape = _object_ids(labels)
    touches = np.zeros(shape[0] * shape[1], dtype=bool)
    for edge in (ids[:, 0], ids[:, -1], ids[:, :, 0], ids[:, :, -1]):
        touches[edge] = True
    return touches.reshape(shape)[:, 1:]


def _object_ids(labels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Number object k of image n as n * (K + 1) + k, for one bincount over all images; and (N, K + 1)."""
    count, columns = len(labels), int(labels.max(initial=0)) + 1
    return labels + np.arange(count, dtype=np.int64)[:, None, None] * columns, (count, columns)


def _check_masks(masks: Masks) -> None:
    for name, labels in (("nuclei", masks.nuclei), ("cells", masks.cells)):
        if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} must be (N, H, W) integer labels, got {labels.shape} {labels.dtype}")
        if labels.min(initial=0) < 0:
            raise ValueError(f"{name} must be labels of 0 or more, got {labels.min()}")
    if masks.nuclei.shape != masks.cells.shape:
        raise ValueError(f"nuclei and cells must have one shape, got {masks.nuclei.shape} and {masks.cells.shape}")
