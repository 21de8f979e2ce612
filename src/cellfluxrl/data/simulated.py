"""Simulated multi-cell fluorescence crops with ground truth: drug effects to learn from without any download.

The renderer imitates BBBC021's single-cell crops [1]_: one cell in the centre, its neighbours around it, DNA,
beta-tubulin and actin in three channels. A picture is made in four steps:

1. *draw*: every image has a separate random generator, and every cell gets its size, shape and brightness from the
   phenotype of its MoA (`DMSO_PHENOTYPE` and `MOA_EFFECTS` are all the biology there is);
2. *trace*: each pixel goes to the cell whose outline it is deepest in, so neighbours touch and never overlap;
3. *stain*: nuclei, filaments, cortex and stress fibres are painted in the coordinates of the pixel's cell;
4. *photograph*: the plate's blur, gain and background, shot noise, and a square-root stretch to 8 bits.

All lengths are in pixels of a 48 x 48 crop (`REFERENCE_SIZE`); a larger crop shows the same cells more finely.
A control nucleus is 16 px across, 22 px in BBBC021's 68 x 68 crops resized to 48 x 48: the simulated field of view is
1.4 times as wide, so that a crop holds several cells to count.

References:
    .. [1] Ljosa, Sokolnicki and Carpenter, "Annotated high-throughput microscopy image sets for validation",
       Nature Methods 9, 637 (2012).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.rendering.drawing import FIELDS, draw_cells, draw_random_numbers
from cellfluxrl.data.rendering.phenotypes import DMSO_PHENOTYPE, MAX_CELLS, MOA_EFFECTS, REFERENCE_SIZE
from cellfluxrl.data.rendering.staining import photograph, smooth_noise, stain
from cellfluxrl.data.rendering.tracing import trace_cells
from cellfluxrl.errors import unknown_name

__all__ = [
    "CHANNELS",
    "CONTROL",
    "DMSO_PHENOTYPE",
    "MAX_CELLS",
    "MOAS",
    "MOA_EFFECTS",
    "REFERENCE_SIZE",
    "SimulatedCrops",
    "dose_effect",
    "simulate_cells",
]

CHANNELS = ("dna", "tubulin", "actin")
MIN_IMAGE_SIZE = 16
HILL_COEFFICIENT = 1.5


@dataclass(frozen=True)
class SimulatedCrops:
    """A batch of rendered crops and all that is true about them.

    Attributes:
        image: (N, 3, H, W) uint8, channels in the order of `CHANNELS`.
        nucleus_labels: (N, H, W) uint8, 0 = background; nucleus k lies inside cell k. The nucleus of a cell at the
            border may be outside the crop, then its label is missing here.
        cell_labels: (N, H, W) uint8, 0 = background, cells numbered 1 to `n_cells` without gaps; 1 is the central one.
            A label may have several pieces: fragments of a nucleus, or (about 1 cell in 70) two parts of a cell that
            a neighbour or the border cuts apart.
        parameters: ground truth by name. Per image, (N,): "n_cells", "n_nuclei", "effect", "plate". Per cell,
            (N, `MAX_CELLS`), column k - 1 for cell k and NaN beyond `n_cells`: "center_row" and "center_column" (of
            the nucleus, in pixels of the crop), "mitotic" (0 or 1), "nucleus_lobes", and the drawn value of each
            entry of `DMSO_PHENOTYPE` but the two population averages "mitotic_fraction" and "neighbours". Lengths
            are in pixels of the reference crop of 48 x 48.
    """

    image: np.ndarray
    nucleus_labels: np.ndarray
    cell_labels: np.ndarray
    parameters: dict[str, np.ndarray]


def dose_effect(
    concentration: float | np.ndarray, half_effect_concentration: float | np.ndarray
) -> np.floating | np.ndarray:
    """Effect strength of a dose in uM: a Hill curve, 0 without compound, 0.5 at the half-effect concentration.

    Example:
        >>> dose_effect([0.0, 3.0], 3.0).tolist()
        [0.0, 0.5]
    """
    dose = np.asarray(concentration, dtype=np.float64)
    half = np.asarray(half_effect_concentration, dtype=np.float64)
    if not np.all(np.isfinite(dose) & (dose >= 0)):
        raise ValueError(f"concentration must be finite and at least 0 uM, got {concentration!r}")
    if not np.all(np.isfinite(half) & (half > 0)):
        raise ValueError(f"half_effect_concentration must be finite and above 0 uM, got {half_effect_concentration!r}")
    with np.errstate(over="ignore"):  # an infinite ratio is a full effect
        return 1 - 1 / (1 + (dose / half) ** HILL_COEFFICIENT)


def simulate_cells(
    moa: Sequence[str],
    effect: float | np.ndarray = 1.0,
    plate: int | np.ndarray = 0,
    image_size: int = REFERENCE_SIZE,
    seed: int = 0,
) -> SimulatedCrops:
    """Render one crop per entry of `moa`.

    Image i depends on `seed`, i and the i-th inputs only: the first images of a long call equal those of a short one.
    With `effect` 0 image i equals, pixel by pixel, the "DMSO" image of the same seed, i and plate.

    Args:
        moa: N names, each "DMSO" or one of `MOAS`.
        effect: dose response strength in [0, 1], a scalar or (N,); see `dose_effect`. 0 looks like DMSO.
        plate: index of the plate, at least 0, a scalar or (N,). A plate has a gain per channel, blur and
            background, whatever the `seed`.
        image_size: height and width in pixels, at least `MIN_IMAGE_SIZE`. The field of view stays the same.
        seed: at least 0.

    Returns:
        The images with their ground truth.

    Raises:
        ValueError: if a name is unknown or a number out of range; the message says which and what is allowed.

    Example:
        >>> crops = simulate_cells(["DMSO", "DNA damage"], seed=1)
        >>> crops.image.shape, crops.image.dtype.name
        ((2, 3, 48, 48), 'uint8')
        >>> radius = crops.parameters["nucleus_radius"][:, 0]  # of the central cells
        >>> bool(radius[1] > radius[0])
        True
    """
    names, effect, plate, image_size, seed = _checked_inputs(moa, effect, plate, image_size, seed)
    # A few images at a time, so that the arrays of one value per pixel stay in the processor's cache.
    chunk = max(1, 16 * REFERENCE_SIZE**2 // image_size**2)
    parts = [
        _simulate_chunk(range(start, min(start + chunk, len(names))), names, effect, plate, image_size, seed)
        for start in range(0, len(names), chunk)
    ]
    return SimulatedCrops(
        image=np.concatenate([part.image for part in parts]),
        nucleus_labels=np.concatenate([part.nucleus_labels for part in parts]),
        cell_labels=np.concatenate([part.cell_labels for part in parts]),
        parameters={name: np.concatenate([part.parameters[name] for part in parts]) for name in parts[0].parameters},
    )


def _checked_inputs(moa, effect, plate, image_size, seed) -> tuple[list[str], np.ndarray, np.ndarray, int, int]:
    if isinstance(moa, str):
        raise ValueError(f"moa must be a sequence of names, one per image, got the string {moa!r}; use [{moa!r}]")
    names = [str(name) for name in moa]
    if not names:
        raise ValueError("moa is empty; give one name per image")
    for name in names:
        if name != CONTROL and name not in MOA_EFFECTS:
            raise unknown_name("MoA", name, (CONTROL, *MOAS))
    effect = _one_per_image("effect", effect, len(names)).astype(np.float64)
    allowed = (effect >= 0) & (effect <= 1)  # False for NaN
    if not allowed.all():
        raise ValueError(f"effect must be in [0, 1], got {effect[~allowed][0]}")
    plate = _one_per_image("plate", plate, len(names))
    if not np.issubdtype(plate.dtype, np.integer) or plate.min() < 0:
        raise ValueError(f"plate must be integers of at least 0, got {plate[:8].tolist()}")
    image_size = _whole_number("image_size", image_size, MIN_IMAGE_SIZE)
    return names, effect.astype(np.float32), plate, image_size, _whole_number("seed", seed, 0)


def _one_per_image(name: str, value, count: int) -> np.ndarray:
    value = np.asarray(value)
    if value.shape not in ((), (count,)):
        raise ValueError(f"{name} must be one number or one per image, ({count},); got shape {value.shape}")
    return np.broadcast_to(value, count)


def _whole_number(name: str, value, smallest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")
    return int(value)


def _simulate_chunk(indices: range, names, effect, plate, image_size: int, seed: int) -> SimulatedCrops:
    """Draw, trace, stain and photograph the images of `indices`."""
    chosen = slice(indices.start, indices.stop)
    scale = image_size / REFERENCE_SIZE
    draws = draw_random_numbers(indices, image_size, seed)
    cells = draw_cells(names[chosen], effect[chosen], draws)
    noise = {name: smooth_noise(draws.fields[:, i], sigma, image_size) for i, (name, sigma) in enumerate(FIELDS)}
    pixels = trace_cells(cells, noise, image_size)
    stained = stain(pixels, noise)
    image = photograph(stained, plate[chosen], draws.camera, scale)

    order = np.argsort(~pixels.visible, axis=1, kind="stable")  # (n, MAX_CELLS), visible cells first
    rank = np.argsort(order, axis=1)
    cell_labels = np.where(pixels.inside, np.take_along_axis(rank, pixels.owner, axis=1) + 1, 0)
    cell_labels = cell_labels.astype(np.uint8).reshape(-1, image_size, image_size)
    nucleus_labels = cell_labels * pixels.in_nucleus.reshape(cell_labels.shape)
    parameters = _ground_truth(cells, pixels.visible, order, scale)
    parameters["n_nuclei"] = np.array([len(np.unique(labels[labels > 0])) for labels in nucleus_labels])
    parameters |= {"effect": effect[chosen].copy(), "plate": plate[chosen].copy()}
    return SimulatedCrops(image, nucleus_labels, cell_labels, parameters)


def _ground_truth(
    cells: dict[str, np.ndarray], visible: np.ndarray, order: np.ndarray, scale: float
) -> dict[str, np.ndarray]:
    """Per-cell parameters in the order of the labels, NaN where there is no cell, and `n_cells`."""
    population = {"mitotic_fraction", "neighbours"}
    truth = {name: cells[name] for name in (*DMSO_PHENOTYPE, "mitotic", "nucleus_lobes") if name not in population}
    truth["center_row"] = (cells["row"] + REFERENCE_SIZE / 2) * scale - 0.5
    truth["center_column"] = (cells["column"] + REFERENCE_SIZE / 2) * scale - 0.5
    parameters = {
        name: np.take_along_axis(np.where(visible, values, np.nan), order, axis=1).astype(np.float32)
        for name, values in truth.items()
    }
    parameters["n_cells"] = visible.sum(axis=1)
    return parameters
