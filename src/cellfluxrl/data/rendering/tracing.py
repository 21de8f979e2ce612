"""The second step of a simulated picture: each pixel goes to the cell whose outline it is deepest in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellfluxrl.data.rendering.phenotypes import MAX_CELLS, REFERENCE_SIZE


@dataclass(frozen=True)
class Pixels:
    """What the stains need to know at each pixel, (n, H * W), of the cell that owns it."""

    cells: dict[str, np.ndarray]  # (n, MAX_CELLS), by `owner` of a pixel: see `of_cell`
    owner: np.ndarray  # index of the cell
    inside: np.ndarray  # in a visible cell, else background
    in_nucleus: np.ndarray
    depth: np.ndarray  # px from the cell's edge, at least 0
    row: np.ndarray  # position from the nucleus' centre, px
    column: np.ndarray
    nucleus_level: np.ndarray  # 0 at the nucleus' centre (or its lobes'), 1 at its edge
    visible: np.ndarray  # (n, MAX_CELLS)

    def of_cell(self, name: str) -> np.ndarray:
        """A cell's value at each of its pixels."""
        return _at_owner(self.cells[name], self.owner)


def _at_owner(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    first_of_image = MAX_CELLS * np.arange(len(owner))[:, None]
    return values.astype(np.float32).ravel().take(first_of_image + owner)


def trace_cells(cells: dict[str, np.ndarray], noise: dict[str, np.ndarray], image_size: int) -> Pixels:
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
    return Pixels(cells, owner, inside, in_nucleus, depth, row, column, nucleus_level, visible)


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
    return np.sqrt(np.maximum(squared, 0)) / (cell["nucleus_radius"] * lobe_radius(cell["nucleus_lobing"]))


def lobe_radius(lobing: np.ndarray) -> np.ndarray:
    """Radius of a lobe in nucleus radii: smaller the further apart, so that the area stays about the same."""
    return 1 / (1 + 0.55 * lobing)


def nucleus_extent(cells: dict[str, np.ndarray]) -> np.ndarray:
    """How far a nucleus reaches along its long axis, in nucleus radii."""
    return (lobe_radius(cells["nucleus_lobing"]) + cells["nucleus_lobing"]) * np.sqrt(cells["nucleus_elongation"])


def _along_axis(row, column, angle, elongation) -> tuple[np.ndarray, np.ndarray]:
    """Turn into the frame of an ellipse and squeeze it to a circle of equal area."""
    stretch = np.sqrt(elongation)
    cosine, sine = np.cos(angle), np.sin(angle)
    return (column * cosine + row * sine) / stretch, (row * cosine - column * sine) * stretch
