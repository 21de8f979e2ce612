"""Pictures of cells, and the style of all curves: outlined crops, grids of them, colours and axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from cellfluxrl.data.images import to_uint8

NUCLEUS_COLOR = (255, 255, 255)
CELL_COLOR = (255, 221, 51)
GRID_BACKGROUND = (20, 21, 24)  # nearly black, as the background of the crops
GRID_TEXT = (235, 235, 235)
GRID_SEPARATOR = 3  # px
GRID_MARGIN = 12  # px, around the titles
TITLE_CHARACTERS = 14  # longer titles are broken into lines
DOTS_PER_INCH = 130
# Okabe and Ito's colours, which colour-blind readers tell apart too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
TEXT_COLOR = "#333333"


def outlined(
    images: torch.Tensor, nuclei: np.ndarray | None = None, cells: np.ndarray | None = None, scale: int = 3
) -> np.ndarray:
    """Show crops in colour, enlarged, with the outlines of their nuclei (white) and cells (yellow).

    Pixels become squares of `scale` x `scale`. An outline is one display pixel wide and lies inside its object, so
    that the outlines of touching cells run side by side.

    Args:
        images: `(N, C, H, W)`; in [-1, 1]; the first channel is shown in blue, the second in green, the third in red
            (DNA, tubulin and actin of BBBC021), a single one in gray.
        nuclei, cells: `(N, H, W)`; labels, 0 is background.
        scale: Display pixels per pixel.

    Returns:
        `(N, scale * H, scale * W, 3)`, uint8 RGB.

    Raises:
        ValueError: If the images have another shape, or the labels do not belong to them.

    Example:
        >>> outlined(torch.zeros(2, 3, 48, 48), scale=2).shape
        (2, 96, 96, 3)
    """
    if images.ndim != 4 or images.shape[1] == 0:
        raise ValueError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}")
    shown = to_uint8(images)[:, :3]
    if shown.shape[1] == 1:
        shown = shown.repeat(3, axis=1)
    shown = np.pad(shown, ((0, 0), (0, 3 - shown.shape[1]), (0, 0), (0, 0)))
    pictures = _enlarge(shown[:, ::-1].transpose(0, 2, 3, 1), scale)
    # Nuclei last: where a nucleus touches the edge of its cell, the smaller outline stays whole.
    for name, labels, color in (("cells", cells, CELL_COLOR), ("nuclei", nuclei, NUCLEUS_COLOR)):
        if labels is None:
            continue
        expected = (images.shape[0], *images.shape[2:])
        if labels.shape != expected:
            raise ValueError(f"{name} must have shape {expected} as the images have, got {labels.shape}")
        for picture, label_image in zip(pictures, _enlarge(labels, scale), strict=True):
            picture[find_boundaries(label_image, mode="inner")] = color
    return pictures


def _enlarge(batch: np.ndarray, scale: int) -> np.ndarray:
    """Repeat rows and columns of `(N, H, W, ...)`."""
    return batch.repeat(scale, axis=1).repeat(scale, axis=2)


def image_grid(
    rows: Mapping[str, np.ndarray], path: str | Path, headers: Mapping[int, str] | None = None
) -> Image.Image:
    """Put labelled rows of pictures below each other, write them as a PNG, and return them.

    Args:
        rows: By title, N pictures, `(N, H, W, 3)` uint8 RGB, as [`outlined`] makes them; one shape for every row.
        path: The PNG file.
        headers: Texts above the grid, by the column where each begins; a line separates it from the columns before.

    Raises:
        ValueError: If there are no pictures, or the rows do not fit below each other.

    Example:
        >>> from cellfluxrl.data.simulated import simulate_cells
        >>> crops = simulate_cells(["DMSO", "DNA damage"])
        >>> pictures = outlined(torch.from_numpy(crops.image) / 127.5 - 1, crops.nucleus_labels, crops.cell_labels)
        >>> _ = image_grid({"ground truth": pictures}, "cells.png")                   # doctest: +SKIP
    """
    count, height, width = _common_shape(rows)
    font, small = ImageFont.load_default(size=max(12, height // 7)), ImageFont.load_default(size=14)
    titles = [textwrap.fill(title, TITLE_CHARACTERS) for title in rows]
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = max(round(ruler.multiline_textbbox((0, 0), title, font=font)[2]) for title in titles) + 2 * GRID_MARGIN
    row_step, column_step = height + GRID_SEPARATOR, width + GRID_SEPARATOR
    above = 2 * GRID_MARGIN if headers else 0

    size = (left + count * column_step, above + len(rows) * row_step + GRID_SEPARATOR)
    grid = Image.new("RGB", size, GRID_BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for i, (title, pictures) in enumerate(zip(titles, rows.values(), strict=True)):
        top = above + GRID_SEPARATOR + i * row_step
        draw.text((GRID_MARGIN, top + height / 2), title, fill=GRID_TEXT, font=font, anchor="lm")
        for j, picture in enumerate(pictures):
            grid.paste(Image.fromarray(picture), (left + j * column_step, top))
    for column, header in (headers or {}).items():
        x = left + column * column_step
        draw.text((x, above / 2 + 1), header, fill=GRID_TEXT, font=small, anchor="lm")
        if column:
            draw.line([(x - 2, 0), (x - 2, size[1])], fill=GRID_TEXT, width=1)
    grid.save(path)
    return grid


def _common_shape(rows: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    """Number, height and width of the pictures of every row."""
    shapes = {title: pictures.shape for title, pictures in rows.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"all rows must have pictures, as many and of one size, got {shapes}")
    shape = next(iter(shapes.values()))
    if len(shape) != 4 or shape[0] == 0 or shape[3] != 3:
        raise ValueError(f"a row must have shape (N, H, W, 3) with N > 0, got {shape}")
    return shape[:3]


def smoothed(values: np.ndarray) -> np.ndarray:
    """Mean of each value and its neighbours, a tenth of all values; fewer at the ends."""
    reach = len(values) // 20
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])


def styled(axes: Axes) -> Axes:
    """Quiet axes: the data are the darkest thing in the panel."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("#999999")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=TEXT_COLOR)
    axes.xaxis.label.set(size=9, color=TEXT_COLOR)
    axes.yaxis.label.set(size=9, color=TEXT_COLOR)
    return axes
