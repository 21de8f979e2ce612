"""The first step of a simulated picture: random numbers become cells with a size, shape, brightness and place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellfluxrl.data.rendering.phenotypes import DMSO_PHENOTYPE, MAX_CELLS, MOA_EFFECTS, REFERENCE_SIZE
from cellfluxrl.data.rendering.tracing import nucleus_extent

# Smooth random fields by their correlation length in px: what they shape is said where they are used.
FIELDS = (("warp_row", 3.0), ("warp_column", 3.0), ("coarse", 1.9), ("fine", 0.95))

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
class Draws:
    """Random numbers of a chunk: standard normals and uniforms in [0, 1) per cell, noise per pixel."""

    normal: dict[str, np.ndarray]  # each (n, MAX_CELLS)
    uniform: dict[str, np.ndarray]  # each (n, MAX_CELLS)
    fields: np.ndarray  # (n, fields, 48, 48)
    camera: np.ndarray  # (n, 3, H, W)


def draw_random_numbers(indices: range, image_size: int, seed: int) -> Draws:
    """Take every image's numbers from a separate generator, in the same order whatever its MoA."""
    generators = [np.random.Generator(np.random.SFC64([seed, index])) for index in indices]
    normal = np.stack([g.standard_normal((len(_NORMALS), MAX_CELLS), dtype=np.float32) for g in generators], axis=1)
    uniform = np.stack([g.random((len(_UNIFORMS), MAX_CELLS), dtype=np.float32) for g in generators], axis=1)
    field_shape = (len(FIELDS), REFERENCE_SIZE, REFERENCE_SIZE)
    return Draws(
        normal=dict(zip(_NORMALS, normal, strict=True)),
        uniform=dict(zip(_UNIFORMS, uniform, strict=True)),
        fields=np.stack([g.standard_normal(field_shape, dtype=np.float32) for g in generators]),
        camera=np.stack([g.standard_normal((3, image_size, image_size), dtype=np.float32) for g in generators]),
    )


def draw_cells(names: list[str], effect: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
    """Give every cell, (n, MAX_CELLS), its phenotype, shape and place."""
    cells, population = _draw_phenotypes(names, effect, draws)
    cells["nucleus_lobes"] = 2 + np.floor(3 * draws.uniform["lobes"])
    cells["mitotic"] = (draws.uniform["mitotic"] < population["mitotic_fraction"][:, None]).astype(np.float32)
    _round_up_mitotic_cells(cells)
    # A nucleus needs cytoplasm around it.
    cells["cell_radius"] = np.maximum(cells["cell_radius"], 1.25 * cells["nucleus_radius"] * nucleus_extent(cells))

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


def _draw_phenotypes(names: list[str], effect: np.ndarray, draws: Draws) -> tuple[dict, dict]:
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


def _place_cells(cells: dict[str, np.ndarray], mean_neighbours: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
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
    slack = 0.25 * (radius - cells["nucleus_radius"] * nucleus_extent(cells))
    return {
        "row": row,
        "column": column,
        # Where the cell's centre is, relative to its nucleus.
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
