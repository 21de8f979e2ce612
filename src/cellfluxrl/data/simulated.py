"""Simulated multi-cell fluorescence crops with ground truth: drug effects to learn from without any download.

The renderer imitates BBBC021's single-cell crops [1]_: one cell in the centre, its neighbours around it, DNA,
beta-tubulin and actin in three channels. A picture is made in four steps:

1. *draw*: every image has its own random generator, and every cell gets its size, shape and brightness from the
   phenotype of its MoA (`DMSO_PHENOTYPE` and `MOA_EFFECTS` below are all the biology there is);
2. *trace*: each pixel goes to the cell whose outline it is deepest in, so neighbours touch and never overlap;
3. *stain*: nuclei, filaments, cortex and stress fibres are painted in the coordinates of the pixel's own cell;
4. *photograph*: the plate's blur, gain and background, shot noise, and a square-root stretch to 8 bits.

All lengths are in pixels of a 48 x 48 crop (`REFERENCE_SIZE`); a larger crop shows the same cells more finely.
A control nucleus is 16 px across, 22 px in BBBC021's 68 x 68 crops resized to 48 x 48: the simulated field of view is
1.4 times as wide, so that a crop holds several cells to count.

References:
    .. [1] Ljosa, Sokolnicki and Carpenter, "Annotated high-throughput microscopy image sets for validation",
       Nature Methods 9, 637 (2012).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.errors import unknown_name

CHANNELS = ("dna", "tubulin", "actin")
REFERENCE_SIZE = 48
MIN_IMAGE_SIZE = 16
MAX_CELLS = 9  # the central cell and at most eight neighbours
HILL_COEFFICIENT = 1.5

# --------------------------------------------------------------------------------------------------------------------
# The biology: what an untreated cell looks like, and which of its numbers a mechanism of action changes.
# --------------------------------------------------------------------------------------------------------------------

DMSO_PHENOTYPE: dict[str, float] = {
    "nucleus_radius": 8.2,  # px
    "nucleus_elongation": 1.22,  # long axis over short axis
    "nucleus_lobing": 0.0,  # distance of the lobes from the nucleus' centre, in nucleus radii; 1 = fragments
    "dna_brightness": 1.0,
    "dna_texture": 0.16,  # contrast of chromatin and nucleoli
    "mitotic_fraction": 0.03,  # of the cells, round and with condensed DNA
    "cell_radius": 18.0,  # px
    "cell_elongation": 1.45,
    "cell_spikiness": 0.15,  # amplitude of the outline's harmonics, in cell radii
    "neighbours": 6.0,  # mean number of cells around the central one
    "tubulin_brightness": 1.0,
    "tubulin_filaments": 0.6,  # 0 = diffuse, 1 = all of it in filaments
    "tubulin_bundling": 0.0,  # share of filaments that merged into few thick bundles
    "tubulin_aggregate": 0.0,  # brightness of one round aggregate beside the nucleus
    "actin_brightness": 1.0,
    "actin_cortex": 0.8,  # brightness of the rim under the membrane
    "actin_fibres": 0.6,  # contrast of the stress fibres
    "actin_clumps": 0.0,  # brightness of actin aggregates
}

# One row per MoA, BBBC021's spelling: only what differs from DMSO at full effect. The headline effects follow
# Ljosa et al., J. Biomol. Screen. 18, 1321 (2013) and Caie et al., Mol. Cancer Ther. 9, 1913 (2010); the reference
# beside a row explains its mechanism. The numbers are ours: chosen for the direction and rough size of the effect.
MOA_EFFECTS: dict[str, dict[str, float]] = {
    # Depolymerised filaments gather in clumps and the cell retracts (Schliwa, J. Cell Biol. 92, 79, 1982).
    "Actin disruptors": {
        "cell_radius": 13.5, "cell_spikiness": 0.20, "neighbours": 4.0,
        "actin_cortex": 0.35, "actin_fibres": 0.05, "actin_clumps": 1.7,
    },
    # Cytokinesis fails, cells become polyploid (Ditchfield et al., J. Cell Biol. 161, 267, 2003).
    "Aurora kinase inhibitors": {
        "nucleus_radius": 10.4, "nucleus_lobing": 0.65, "cell_radius": 21.5, "neighbours": 3.5,
    },
    # Statins: without prenylated Rho cells lose fibres and retract (Fenton et al., J. Cell Biol. 117, 347, 1992).
    "Cholesterol-lowering": {
        "nucleus_radius": 7.3, "nucleus_elongation": 1.5, "cell_radius": 13.5, "cell_elongation": 2.9,
        "cell_spikiness": 0.15, "neighbours": 3.5, "actin_fibres": 0.25,
    },
    # Arrested cells keep growing and divide no more (Rodier and Campisi, J. Cell Biol. 192, 547, 2011).
    "DNA damage": {
        "nucleus_radius": 10.6, "dna_brightness": 0.95, "dna_texture": 0.24, "cell_radius": 19.5,
        "neighbours": 2.6, "mitotic_fraction": 0.0,
    },
    # Stalled in S phase: unreplicated DNA, smooth chromatin (Vesela et al., Biomolecules 7, 19, 2017).
    "DNA replication": {
        "nucleus_radius": 9.6, "nucleus_elongation": 1.12, "dna_brightness": 0.68, "dna_texture": 0.05,
        "neighbours": 4.0, "mitotic_fraction": 0.0,
    },
    # Unseparated poles: a ring of chromosomes around one aster (Mayer et al., Science 286, 971, 1999).
    "Eg5 inhibitors": {
        "mitotic_fraction": 0.85, "cell_radius": 15.5, "neighbours": 3.8,
    },
    # Src-family inhibitors restore junctions: cobblestones (Nam et al., Clin. Cancer Res. 8, 2430, 2002).
    "Epithelial": {
        "nucleus_radius": 7.6, "cell_radius": 14.0, "cell_elongation": 1.1, "cell_spikiness": 0.04,
        "neighbours": 8.0, "actin_cortex": 1.7, "actin_fibres": 0.15,
    },
    # Broad kinase inhibition at sub-lethal doses: spread cells, fewer stress fibres; the mildest row on purpose.
    "Kinase inhibitors": {
        "cell_radius": 19.0, "actin_fibres": 0.15, "actin_cortex": 0.5, "actin_brightness": 0.75,
    },
    # No polymer, no spindle: diffuse tubulin, arrest and micronuclei (Jordan and Wilson, Nat Rev Cancer 4, 253, 2004).
    "Microtubule destabilizers": {
        "nucleus_radius": 7.6, "nucleus_lobing": 0.75, "mitotic_fraction": 0.22, "cell_radius": 14.0,
        "cell_elongation": 1.12, "neighbours": 4.0, "tubulin_filaments": 0.05,
    },
    # Excess polymer in bundles; mitotic slippage leaves lobed nuclei (Jordan and Wilson, 2004).
    "Microtubule stabilizers": {
        "nucleus_lobing": 0.70, "nucleus_radius": 8.6, "cell_elongation": 1.25, "neighbours": 4.0,
        "tubulin_filaments": 1.0, "tubulin_bundling": 0.9, "tubulin_brightness": 1.3,
    },
    # Proteasome inhibitors: aggresome at the centrosome (Johnston et al., J. Cell Biol. 143, 1883, 1998).
    "Protein degradation": {
        "nucleus_radius": 7.1, "dna_brightness": 1.2, "cell_radius": 15.0, "neighbours": 4.0,
        "tubulin_aggregate": 2.6,
    },
    # Growth stops: small, compact, bright cells (Lloyd, Cell 154, 1194, 2013, on what sets cell size).
    "Protein synthesis": {
        "nucleus_radius": 7.2, "dna_texture": 0.10, "cell_radius": 13.2, "neighbours": 4.5,
        "tubulin_brightness": 1.35, "actin_brightness": 1.35,
    },
}  # fmt: skip


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
    """Effect strength of a dose: a Hill curve, 0 without compound, 0.5 at the half-effect concentration.

    Args:
        concentration: in uM, not negative; any shape.
        half_effect_concentration: in uM, positive; broadcasts against `concentration`.

    Returns:
        Values in [0, 1], of the broadcast shape; the Hill coefficient is `HILL_COEFFICIENT`.

    Raises:
        ValueError: if a concentration is negative or not finite, or a half-effect concentration is not positive.

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
        plate: index of the plate, at least 0, a scalar or (N,). A plate has its own gain per channel, blur and
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
    draws = _draw_random_numbers(indices, image_size, seed)
    cells = _draw_cells(names[chosen], effect[chosen], draws)
    noise = {name: _smooth_noise(draws.fields[:, i], sigma, image_size) for i, (name, sigma) in enumerate(_FIELDS)}
    pixels = _trace_cells(cells, noise, image_size)
    stained = _stain(pixels, noise)
    image = _photograph(stained, plate[chosen], draws.camera, scale)

    order, rank = _visible_first(pixels.visible)
    cell_labels = np.where(pixels.inside, np.take_along_axis(rank, pixels.owner, axis=1) + 1, 0)
    cell_labels = cell_labels.astype(np.uint8).reshape(-1, image_size, image_size)
    nucleus_labels = cell_labels * pixels.in_nucleus.reshape(cell_labels.shape)
    parameters = _ground_truth(cells, pixels.visible, order, scale)
    parameters["n_nuclei"] = np.array([len(np.unique(labels[labels > 0])) for labels in nucleus_labels])
    parameters |= {"effect": effect[chosen].copy(), "plate": plate[chosen].copy()}
    return SimulatedCrops(image, nucleus_labels, cell_labels, parameters)


# --------------------------------------------------------------------------------------------------------------------
# 1. Draw
# --------------------------------------------------------------------------------------------------------------------

# Smooth random fields by their correlation length in px: what they shape is told where they are used.
_FIELDS = (("warp_row", 3.0), ("warp_column", 3.0), ("coarse", 1.9), ("fine", 0.95))

# Spread between cells of one image: standard deviation of the logarithm.
_LOG_SPREAD = {
    "nucleus_radius": 0.09,
    "dna_brightness": 0.22,
    "cell_radius": 0.12,
    "cell_spikiness": 0.30,
    "tubulin_brightness": 0.22,
    "actin_brightness": 0.22,
    "actin_cortex": 0.25,
    "actin_fibres": 0.30,
    "dna_texture": 0.25,
    "tubulin_aggregate": 0.30,
    "actin_clumps": 0.25,
    "nucleus_lobing": 0.20,
}
_NORMALS = (*_LOG_SPREAD, "nucleus_elongation", "cell_elongation", "thickness", "response")
_NORMALS += ("offset_row", "offset_column", *(f"harmonic{i}" for i in range(6)))
_UNIFORMS = ("neighbours", "mitotic", "lobes", "distance", "direction", "slot", "ring_start")
_UNIFORMS += ("cell_angle", "nucleus_angle", "aggregate_angle", "phase")


@dataclass(frozen=True)
class _Draws:
    """Random numbers of a chunk: standard normals and uniforms in [0, 1) per cell, noise per pixel."""

    normal: dict[str, np.ndarray]  # each (n, MAX_CELLS)
    uniform: dict[str, np.ndarray]  # each (n, MAX_CELLS)
    fields: np.ndarray  # (n, fields, 48, 48)
    camera: np.ndarray  # (n, 3, H, W)


def _draw_random_numbers(indices: range, image_size: int, seed: int) -> _Draws:
    """Take every image's numbers from a generator of its own, in the same order whatever its MoA."""
    generators = [np.random.Generator(np.random.SFC64([seed, index])) for index in indices]
    normal = np.stack([g.standard_normal((len(_NORMALS), MAX_CELLS), dtype=np.float32) for g in generators], axis=1)
    uniform = np.stack([g.random((len(_UNIFORMS), MAX_CELLS), dtype=np.float32) for g in generators], axis=1)
    field_shape = (len(_FIELDS), REFERENCE_SIZE, REFERENCE_SIZE)
    return _Draws(
        normal=dict(zip(_NORMALS, normal, strict=True)),
        uniform=dict(zip(_UNIFORMS, uniform, strict=True)),
        fields=np.stack([g.standard_normal(field_shape, dtype=np.float32) for g in generators]),
        camera=np.stack([g.standard_normal((3, image_size, image_size), dtype=np.float32) for g in generators]),
    )


def _draw_cells(names: list[str], effect: np.ndarray, draws: _Draws) -> dict[str, np.ndarray]:
    """Give every cell, (n, MAX_CELLS), its phenotype, shape and place."""
    cells, population = _draw_phenotypes(names, effect, draws)
    cells["nucleus_lobes"] = 2 + np.floor(3 * draws.uniform["lobes"])
    cells["mitotic"] = (draws.uniform["mitotic"] < population["mitotic_fraction"][:, None]).astype(np.float32)
    _round_up_mitotic_cells(cells)
    # A nucleus needs cytoplasm around it.
    cells["cell_radius"] = np.maximum(cells["cell_radius"], 1.25 * cells["nucleus_radius"] * _nucleus_extent(cells))

    # The same amount of protein in a smaller cell is a thicker, hence brighter cell.
    thickness = (DMSO_PHENOTYPE["cell_radius"] / cells["cell_radius"]) * np.exp(0.35 * draws.normal["thickness"])
    cells["tubulin_brightness"] = cells["tubulin_brightness"] * thickness
    cells["actin_brightness"] = cells["actin_brightness"] * thickness
    for name in ("cell_angle", "nucleus_angle", "aggregate_angle", "phase"):
        cells[name] = 2 * np.pi * draws.uniform[name]
    # Cells lie about along their neighbours, nuclei along their cell.
    cells["cell_angle"] = cells["cell_angle"][:, :1] + 0.2 * (cells["cell_angle"] - np.pi) * (np.arange(MAX_CELLS) > 0)
    cells["nucleus_angle"] = cells["cell_angle"] + 0.15 * cells["nucleus_angle"]
    for i in range(6):
        cells[f"harmonic{i}"] = 0.5 * cells["cell_spikiness"] * draws.normal[f"harmonic{i}"]
    return cells | _place_cells(cells, population["neighbours"], draws)


def _draw_phenotypes(names: list[str], effect: np.ndarray, draws: _Draws) -> tuple[dict, dict]:
    """Values of `DMSO_PHENOTYPE`'s entries as the MoA changes them: of each cell, (n, MAX_CELLS), and on average."""
    control = np.array(list(DMSO_PHENOTYPE.values()), dtype=np.float32)
    treated = np.array([[*(DMSO_PHENOTYPE | MOA_EFFECTS.get(n, {})).values()] for n in names], dtype=np.float32)
    change = (treated - control).T[:, :, None]  # (phenotype, n, 1)
    # Cells respond unequally to the same dose: some hardly, few more than expected.
    response = effect[:, None] * np.clip(0.9 + 0.28 * draws.normal["response"], 0, 1.3)
    cells = dict(zip(DMSO_PHENOTYPE, control[:, None, None] + change * response, strict=True))
    population = dict(zip(DMSO_PHENOTYPE, control[:, None] + change[:, :, 0] * effect, strict=True))

    for name, spread in _LOG_SPREAD.items():
        cells[name] = np.maximum(cells[name], 0) * np.exp(spread * draws.normal[name])
    for name in ("nucleus_elongation", "cell_elongation"):
        cells[name] = 1 + np.abs(cells[name] - 1) * np.exp(0.35 * draws.normal[name])
    cells["tubulin_filaments"] = np.clip(cells["tubulin_filaments"], 0, 1)
    cells["tubulin_bundling"] = np.clip(cells["tubulin_bundling"], 0, 1)
    return cells, population


def _round_up_mitotic_cells(cells: dict[str, np.ndarray]) -> None:
    """Change, in place, the cells in mitosis: round and thick, with DNA condensed in one small bright body."""
    mitotic = cells["mitotic"] > 0
    changes = {"nucleus_radius": 0.80, "cell_radius": 0.78, "cell_spikiness": 0.2, "nucleus_lobing": 0.0}
    changes |= {"dna_brightness": 2.0, "actin_fibres": 0.2, "tubulin_brightness": 1.1, "dna_texture": 0.7}
    for name, factor in changes.items():
        cells[name] = np.where(mitotic, factor * cells[name], cells[name])
    for name in ("cell_elongation", "nucleus_elongation"):
        cells[name] = np.where(mitotic, 1 + 0.2 * (cells[name] - 1), cells[name])


def _place_cells(cells: dict[str, np.ndarray], mean_neighbours: np.ndarray, draws: _Draws) -> dict[str, np.ndarray]:
    """Centre nucleus 0 in the crop and spread a Poisson number of neighbours over eight directions around it."""
    radius = cells["cell_radius"]
    slots = np.argsort(draws.uniform["slot"][:, 1:], axis=1)  # a random direction for each of the neighbours
    turn = (slots + 0.6 * draws.uniform["direction"][:, 1:]) / (MAX_CELLS - 1) + draws.uniform["ring_start"][:, :1]
    # Touching at the least; some further away, where a larger crop of the well would show a gap.
    distance = (radius[:, :1] + radius[:, 1:]) * (0.72 + 0.38 * draws.uniform["distance"][:, 1:])
    # Elongated cells are packed as round ones in a picture that is then stretched along the central cell's axis.
    stretch, angle = np.sqrt(cells["cell_elongation"][:, :1]), cells["cell_angle"][:, :1]
    along = stretch * distance * np.cos(2 * np.pi * turn)
    across = distance * np.sin(2 * np.pi * turn) / stretch
    at_centre = ((0, 0), (1, 0))
    row = np.pad(along * np.sin(angle) + across * np.cos(angle), at_centre)
    column = np.pad(along * np.cos(angle) - across * np.sin(angle), at_centre)
    count = _poisson(draws.uniform["neighbours"][:, 0], mean_neighbours, MAX_CELLS - 1)
    slack = 0.25 * (radius - cells["nucleus_radius"] * _nucleus_extent(cells))
    return {
        "row": row,
        "column": column,
        # Where the cell's own centre is, seen from its nucleus.
        "offset_row": slack * np.clip(draws.normal["offset_row"], -1.5, 1.5),
        "offset_column": slack * np.clip(draws.normal["offset_column"], -1.5, 1.5),
        "present": np.arange(MAX_CELLS) <= count[:, None],
    }


def _poisson(uniform: np.ndarray, mean: np.ndarray, largest: int) -> np.ndarray:
    """Turn uniforms into Poisson counts of at most `largest`, monotone in the mean."""
    term = np.exp(-mean)
    cumulative, count = term.copy(), np.zeros(uniform.shape, dtype=int)
    for k in range(1, largest + 1):
        count += uniform >= cumulative
        term = term * mean / k
        cumulative += term
    return count


# --------------------------------------------------------------------------------------------------------------------
# 2. Trace
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pixels:
    """What the stains need to know at each pixel, (n, H * W), of the cell that owns it."""

    cells: dict[str, np.ndarray]  # (n, MAX_CELLS), by `owner` of a pixel: see `own`
    owner: np.ndarray  # index of the cell
    inside: np.ndarray  # in a visible cell, else background
    in_nucleus: np.ndarray
    depth: np.ndarray  # px from the cell's edge, at least 0
    row: np.ndarray  # position from the nucleus' centre, px
    column: np.ndarray
    nucleus_level: np.ndarray  # 0 at the nucleus' centre (or its lobes'), 1 at its edge
    visible: np.ndarray  # (n, MAX_CELLS)

    def own(self, name: str) -> np.ndarray:
        """A cell's value at each of its pixels."""
        return _at_owner(self.cells[name], self.owner)


def _at_owner(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    first_of_image = MAX_CELLS * np.arange(len(owner))[:, None]
    return values.astype(np.float32).ravel().take(first_of_image + owner)


def _trace_cells(cells: dict[str, np.ndarray], noise: dict[str, np.ndarray], image_size: int) -> _Pixels:
    """Give each pixel to the cell it is deepest in, and find its place in cell and nucleus."""
    scale = image_size / REFERENCE_SIZE
    axis = ((np.arange(image_size, dtype=np.float32) + 0.5) / scale) - REFERENCE_SIZE / 2
    # Coordinates shaken by smooth noise make outlines irregular, those of nuclei less than those of cells.
    row = np.repeat(axis, image_size) + 0.45 * noise["warp_row"]
    column = np.tile(axis, image_size) + 0.45 * noise["warp_column"]

    nearest = np.full(row.shape, np.inf, dtype=np.float32)
    second = nearest.copy()
    owner = np.zeros(row.shape, dtype=np.intp)
    for k in range(MAX_CELLS):
        level = _cell_level({name: values[:, k, None] for name, values in cells.items()}, row, column)
        owner[level < nearest] = k
        second = np.minimum(second, np.maximum(level, nearest))
        nearest = np.minimum(nearest, level)

    # Slivers of cells outside the crop are dropped: no segmentation could find them, nor should it.
    flat = (MAX_CELLS * np.arange(len(owner))[:, None] + owner)[nearest < 1]
    area = np.bincount(flat, minlength=owner.shape[0] * MAX_CELLS).reshape(-1, MAX_CELLS)
    visible = area >= 20 * scale**2
    inside = (nearest < 1) & np.take_along_axis(visible, owner, axis=1)

    gap = np.minimum(1 - nearest, 0.5 * (second - nearest))
    depth = np.maximum(gap, 0) * _at_owner(cells["cell_radius"], owner)
    row = row - _at_owner(cells["row"], owner)
    column = column - _at_owner(cells["column"], owner)
    nucleus_level = _nucleus_level({name: _at_owner(cells[name], owner) for name in _NUCLEUS_SHAPE}, row, column)
    in_nucleus = inside & (nucleus_level < 1) & (depth > 0.8)
    return _Pixels(cells, owner, inside, in_nucleus, depth, row, column, nucleus_level, visible)


def _cell_level(cell: dict[str, np.ndarray], row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Distance from one cell's centre, in units of its outline in that direction: below 1 is inside."""
    along, across = _along_axis(
        row - (cell["row"] + cell["offset_row"]),
        column - (cell["column"] + cell["offset_column"]),
        cell["cell_angle"],
        cell["cell_elongation"],
    )
    distance = np.sqrt(along**2 + across**2) + np.float32(1e-3)
    cosine, sine = along / distance, across / distance
    outline = np.ones_like(distance)
    c, s = cosine, sine
    for i in range(3):  # harmonics 2, 3 and 4, by the addition theorem: no trigonometry per pixel
        c, s = c * cosine - s * sine, s * cosine + c * sine
        outline += cell[f"harmonic{2 * i}"] * c + cell[f"harmonic{2 * i + 1}"] * s
    level = distance / (np.maximum(outline, 0.45) * cell["cell_radius"])
    return np.where(cell["present"], level, np.float32(np.inf))


_NUCLEUS_SHAPE = ("nucleus_angle", "nucleus_elongation", "nucleus_radius", "nucleus_lobing", "nucleus_lobes", "phase")


def _nucleus_level(cell: dict[str, np.ndarray], row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """As `_cell_level`, for the nuclei: 2 to 4 equal discs on a ring, which fall together if there is no lobing."""
    along, across = _along_axis(row, column, cell["nucleus_angle"], cell["nucleus_elongation"])
    distance = np.sqrt(along**2 + across**2)
    sector = 2 * np.pi / cell["nucleus_lobes"]
    from_lobe = np.mod(np.arctan2(across, along) - cell["phase"], sector) - 0.5 * sector  # to the nearest by symmetry
    ring = cell["nucleus_lobing"] * cell["nucleus_radius"]
    squared = distance**2 + ring**2 - 2 * distance * ring * np.cos(from_lobe)
    return np.sqrt(np.maximum(squared, 0)) / (cell["nucleus_radius"] * _lobe_radius(cell["nucleus_lobing"]))


def _lobe_radius(lobing: np.ndarray) -> np.ndarray:
    """Radius of a lobe in nucleus radii: smaller the further apart, so that the area stays about the same."""
    return 1 / (1 + 0.55 * lobing)


def _nucleus_extent(cells: dict[str, np.ndarray]) -> np.ndarray:
    return (_lobe_radius(cells["nucleus_lobing"]) + cells["nucleus_lobing"]) * np.sqrt(cells["nucleus_elongation"])


def _along_axis(row, column, angle, elongation) -> tuple[np.ndarray, np.ndarray]:
    """Turn into the frame of an ellipse and squeeze it to a circle of equal area."""
    stretch = np.sqrt(elongation)
    cosine, sine = np.cos(angle), np.sin(angle)
    return (column * cosine + row * sine) / stretch, (row * cosine - column * sine) * stretch


# --------------------------------------------------------------------------------------------------------------------
# 3. Stain
# --------------------------------------------------------------------------------------------------------------------


def _stain(pixels: _Pixels, noise: dict[str, np.ndarray]) -> np.ndarray:
    """Fluorescence, (n, 3, H * W), in units of a typical DMSO cell's; background is 0."""
    nucleus = np.clip((1 - pixels.nucleus_level) * pixels.own("nucleus_radius") + 0.5, 0, 1)  # soft edge of one px
    cell = pixels.inside * np.clip(pixels.depth + 0.3, 0, 1)
    from_nucleus = np.maximum(pixels.nucleus_level - 1, 0) * pixels.own("nucleus_radius")
    around = np.exp(-from_nucleus / 5)  # the cell is thickest around its nucleus
    dna = _stain_dna(pixels, noise) * nucleus
    tubulin = _stain_tubulin(pixels, noise, around) * (1 - 0.5 * nucleus)
    actin = _stain_actin(pixels, noise, around) * (1 - 0.25 * nucleus)
    return cell[:, None] * np.stack([dna, tubulin, actin], axis=1)


def _stain_dna(pixels: _Pixels, noise: dict[str, np.ndarray]) -> np.ndarray:
    """Chromatin with nucleoli as dark holes; in mitosis a ring of chromosomes around a monopolar spindle."""
    chromatin = noise["fine"] - 2.0 * np.clip(noise["coarse"] - 0.9, 0, 1)
    dome = 1 - 0.3 * pixels.nucleus_level**2
    interphase = np.maximum(dome, 0.3) * (1 + pixels.own("dna_texture") * chromatin)
    ring = 0.3 + np.exp(-(((pixels.nucleus_level - 0.68) / 0.25) ** 2))
    shape = np.where(pixels.own("mitotic") > 0, ring * (1 + 0.15 * noise["fine"]), interphase)
    return pixels.own("dna_brightness") * np.maximum(shape, 0.1)


def _stain_tubulin(pixels: _Pixels, noise: dict[str, np.ndarray], around: np.ndarray) -> np.ndarray:
    """Crossing spirals of filaments that leave the nucleus, thick bundles, and an aggregate beside the nucleus."""
    # From the centrosome, which lies beside the nucleus' centre.
    row = pixels.row - 0.6 * pixels.own("nucleus_radius") * np.sin(pixels.own("aggregate_angle"))
    column = pixels.column - 0.6 * pixels.own("nucleus_radius") * np.cos(pixels.own("aggregate_angle"))
    distance, angle = np.sqrt(row**2 + column**2), np.arctan2(row, column)
    phase, sway = pixels.own("phase"), noise["warp_row"] + 0.8 * noise["coarse"]
    fine = 0.35 + 0.85 * (
        _ridge(11 * angle + 0.50 * distance + phase + 1.5 * sway)
        + _ridge(8 * angle - 0.60 * distance - phase + 1.5 * noise["warp_column"])
    )
    bundled = 0.25 + 1.9 * _ridge(5 * angle + 0.22 * distance + phase + 0.8 * sway) ** 2
    bundling = pixels.own("tubulin_bundling")
    filaments = (1 - bundling) * fine + bundling * bundled
    share = pixels.own("tubulin_filaments")
    mesh = (1 - share) * (0.9 + 0.1 * noise["coarse"]) + share * filaments
    # Filaments converge on the nucleus, and so more of them overlap there; dissolved ones do not.
    body = mesh * (0.45 + (0.25 + 1.1 * share) * around)
    aggregate = pixels.own("tubulin_aggregate") * np.exp(-((distance / 3.5) ** 2))
    aster = 1.2 * pixels.own("mitotic") * np.exp(-(pixels.row**2 + pixels.column**2) / 25)
    return pixels.own("tubulin_brightness") * (body + aggregate + aster)


def _stain_actin(pixels: _Pixels, noise: dict[str, np.ndarray], around: np.ndarray) -> np.ndarray:
    """A rim under the membrane, stress fibres along the cell's axis, and clumps."""
    angle = pixels.own("cell_angle")
    across = pixels.row * np.cos(angle) - pixels.column * np.sin(angle)
    fibres = _ridge(2.0 * across + 0.7 * noise["warp_row"] + pixels.own("phase"))
    strength = pixels.own("actin_fibres") * np.clip(0.4 + 0.5 * noise["coarse"], 0, 1.2)  # fibres come in sheets
    body = (0.4 + 0.35 * around) * (1 + 0.12 * noise["fine"]) * (1 - 0.5 * strength + 1.5 * strength * fibres)
    cortex = pixels.own("actin_cortex") * np.exp(-((pixels.depth / 1.4) ** 2)) * (1 + 0.25 * noise["coarse"])
    clumps = pixels.own("actin_clumps") * np.clip(noise["coarse"] - 0.6, 0, 1.5)
    return pixels.own("actin_brightness") * np.maximum(body + cortex + clumps, 0)


def _ridge(phase: np.ndarray) -> np.ndarray:
    """Periodic bright lines in [0, 1], narrower than the gaps between them."""
    return (0.5 + 0.5 * np.cos(phase)) ** 2


# --------------------------------------------------------------------------------------------------------------------
# 4. Photograph
# --------------------------------------------------------------------------------------------------------------------

_WHITE = np.array([1.75, 3.8, 3.0], dtype=np.float32)[:, None]  # fluorescence that saturates, per channel
_PHOTONS = 1200  # in one unit of fluorescence


def _photograph(fluorescence: np.ndarray, plate: np.ndarray, noise: np.ndarray, scale: float) -> np.ndarray:
    """Take the plate's picture, (n, 3, H, W) uint8, of fluorescence (n, 3, H * W)."""
    n, channels, height, width = noise.shape
    optics = [_plate_optics(index) for index in plate.tolist()]
    gain = np.stack([gain for gain, _, _ in optics])[:, :, None]
    background = np.stack([background for _, background, _ in optics])[:, :, None]
    blur = np.stack([_gaussian_matrix(height, height, sigma * scale) for _, _, sigma in optics])[:, None]
    sharp = fluorescence.reshape(n, channels, height, width)
    blurred = (blur @ sharp @ blur.swapaxes(-1, -2)).reshape(n, channels, height * width)
    light = gain * blurred + background
    # Gaussian shot noise: at these counts a Poisson's, and several times faster to draw.
    light = light + np.sqrt(light / _PHOTONS) * noise.reshape(light.shape)
    # A camera's black level is set below its background; the square root lifts dim structures, as on real crops.
    stretched = np.sqrt(np.clip((light - 0.8 * background) / _WHITE, 0, 1))
    return np.rint(255 * stretched).astype(np.uint8).reshape(n, channels, height, width)


def _plate_optics(plate: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Gain and background per channel, (3,) float32, and blur in px of one plate."""
    rng = np.random.default_rng([2012, plate])
    gain = np.exp(0.14 * rng.standard_normal(3)).astype(np.float32)
    background = rng.uniform(0.015, 0.05, size=3).astype(np.float32)
    return gain, background, rng.uniform(0.6, 1.0)


def _smooth_noise(white: np.ndarray, sigma: float, image_size: int) -> np.ndarray:
    """Unit-variance noise, (n, H * W), that varies over about `sigma` px, from white noise (n, 48, 48)."""
    kernel = _gaussian_matrix(image_size, REFERENCE_SIZE, sigma * image_size / REFERENCE_SIZE)
    kernel = kernel / np.sqrt((kernel**2).sum(axis=1, keepdims=True))
    return (kernel @ white @ kernel.T).reshape(len(white), -1)


def _gaussian_matrix(rows: int, columns: int, sigma: float) -> np.ndarray:
    """Matrix (rows, columns) that smooths, and resamples from `columns` to `rows`; `sigma` in rows."""
    target = np.arange(rows, dtype=np.float32)[:, None] + np.float32(0.5)
    source = (np.arange(columns, dtype=np.float32)[None] + np.float32(0.5)) * np.float32(rows / columns)
    weights = np.exp(-0.5 * ((target - source) / np.float32(sigma)) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


# --------------------------------------------------------------------------------------------------------------------
# Ground truth
# --------------------------------------------------------------------------------------------------------------------


def _visible_first(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order that puts visible cells first, and each cell's rank in it; both (n, MAX_CELLS)."""
    order = np.argsort(~visible, axis=1, kind="stable")
    return order, np.argsort(order, axis=1)


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
