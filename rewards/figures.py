"""Pictures of scores: their distributions beside those of real cells, and the worst and the best images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from cellfluxrl.data.images import PALETTE, as_model_images, composite, from_rgb, to_uint8
from cellfluxrl.figures import COLORS, DOTS_PER_INCH, GRID_BACKGROUND, GRID_TEXT, TEXT_COLOR, outlined, styled
from cellfluxrl.rewards.suite import RewardSuite

FEW_MOAS = 3  # so many names have room side by side
PANELS_PER_LINE = 3
BANDWIDTH = 0.25  # standard deviations
LIMIT = 10.0
DRAWN = 2000  # of more images a violin is no smoother
REAL_COLOR, SCORED_COLOR = "#9a9a9a", COLORS[0]

PER_LINE = 8
TILE = 168  # px; crops are enlarged to about this
GAP, MARGIN, LINE_HEIGHT = 24, 16, 17
FAINT, WORST_COLOR = (160, 164, 172), (255, 140, 110)


def score_violins(table: pd.DataFrame, suite: RewardSuite, path: str | Path) -> None:
    """Draw the distribution of each statistic beside that of real cells of the MoA, and write a PNG.

    Each MoA has a violin of two halves of equal area: grey for real cells, blue for what was scored; a dot is the
    mean. Statistics are in standard deviations from the mean of real cells of that MoA. The axis holds 99 % of them;
    it ends at ±10, and what lies beyond is drawn there. The table is that of [`score_images`].

    Raises:
        ValueError: If the suite has no reward that compares a statistic.
    """
    names = suite.statistic_names
    if not names:
        raise ValueError("the suite has no reward that compares a statistic with real cells: there is nothing to draw")
    moas = sorted(set(table["moa"]))
    upright = len(moas) <= FEW_MOAS
    columns = min(PANELS_PER_LINE, len(names))
    lines = -(-len(names) // columns)
    height = 2.5 if upright else 0.9 + 0.36 * len(moas)
    figure = Figure(figsize=(3.2 * columns + (0 if upright else 1.6), height * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    shown = [styled(panel) for panel in axes.flat[: len(names)]]
    reach = 0.0
    titles = {reward.name: reward.title for reward in suite.rewards}
    for k, (name, panel) in enumerate(zip(names, shown, strict=True)):
        panel.set_title(titles[name], fontsize=10, color=TEXT_COLOR)
        for position, moa in enumerate(moas):
            real = suite.reference[suite.moas.index(moa), :, k].cpu().numpy()
            scored = table.loc[table["moa"] == moa, f"z_{name}"].to_numpy()[:DRAWN]
            _violin(panel, real, scored, position, upright=upright)
            reach = max(reach, *np.abs(np.quantile(np.concatenate([real, scored]), [0.005, 0.995])))
    _label(figure, shown, moas, min(max(reach, 3.0), LIMIT) + 0.5, upright=upright)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _violin(panel: Axes, real: np.ndarray, scored: np.ndarray, position: int, *, upright: bool) -> None:
    """Real cells to the left of, or above, `position`, and what was scored on the other side."""
    at = np.linspace(-LIMIT - 0.5, LIMIT + 0.5, 421)
    halves = [values.clip(-LIMIT, LIMIT) for values in (real, scored)]
    densities = [np.exp(-(((at[:, None] - values) / BANDWIDTH) ** 2) / 2).mean(axis=1) for values in halves]
    widest = max(density.max() for density in densities)
    for side, color, values, density in zip((-1, 1), (REAL_COLOR, SCORED_COLOR), halves, densities, strict=True):
        fill = panel.fill_betweenx if upright else panel.fill_between
        fill(at, position, position + side * 0.44 * density / widest, where=density > 1e-3, color=color, linewidth=0)
        mean = (position + side * 0.1, values.mean())
        panel.plot(*(mean if upright else mean[::-1]), "o", color="white", markersize=4, markeredgecolor=TEXT_COLOR)


def _label(figure: Figure, panels: Sequence[Axes], moas: list[str], reach: float, *, upright: bool) -> None:
    for panel in panels:
        if upright:
            panel.set_xticks(range(len(moas)), [textwrap.fill(moa, 12) for moa in moas])
            panel.set_xlim(-0.6, len(moas) - 0.4)
            panel.set_ylim(-reach, reach)
        else:
            panel.grid(axis="x", color="#e6e6e6", linewidth=0.8)
            panel.grid(visible=False, axis="y")
            panel.set_yticks(range(len(moas)), moas)
            panel.set_ylim(len(moas) - 0.4, -0.6)
            panel.set_xlim(-reach, reach)
        (panel.axhline if upright else panel.axvline)(0, color="#666666", linewidth=0.8)
    axis = "supylabel" if upright else "supxlabel"
    getattr(figure, axis)("standard deviations from the mean of real cells", fontsize=9, color=TEXT_COLOR)
    handles = [figure.axes[0].fill_between([], [], [], color=color) for color in (REAL_COLOR, SCORED_COLOR)]
    figure.legend(
        handles, ["real cells of the MoA", "scored images"], loc="outside upper left", ncols=2, frameon=False
    )


def score_sheet(
    table: pd.DataFrame, rows: Sequence[int], images: Sequence[np.ndarray], suite: RewardSuite, path: str | Path
) -> None:
    """Show images with the outlines of their nuclei and cells, and their rewards below, and write a PNG.

    Shown are the `rows` of the table of [`score_images`], as many of the worst as of the best ([`worst_and_best`]);
    `images` are theirs, `(C, H, W)`, uint8 or floats in [0, 1]. The reward in red, in the list of each of the worst,
    is the one that sets it back most from the mean of all images.
    """
    pictures = _outlined_tiles(images, suite)
    names = [reward.name for reward in suite.rewards]
    setback = pd.DataFrame({n: suite.weights[n] * (table[f"reward_{n}"] - table[f"reward_{n}"].mean()) for n in names})
    count, side = len(rows) // 2, pictures.shape[1:3]
    width = max(TILE, side[1])
    captions = [textwrap.wrap(str(moa), 22)[:2] for moa in table["moa"].iloc[rows]]
    tall = max(map(len, captions))
    title_height = 3 * MARGIN
    block = title_height + side[0] + (tall + 2 + len(names)) * LINE_HEIGHT + GAP
    size = (2 * MARGIN + max(count, 2) * (width + GAP) - GAP, 2 * block + MARGIN)  # two are as wide as the title
    sheet = Image.new("RGB", size, GRID_BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    fonts = [ImageFont.load_default(size=points) for points in (18, 14, 12)]
    for i, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        line, column = divmod(i, count)
        left, top = MARGIN + column * (width + GAP), line * block
        if column == 0:
            title = ("the worst by combined", "the best by combined")[line]
            draw.text((left, top + 1.7 * MARGIN), title, fill=GRID_TEXT, font=fonts[0], anchor="lm")
        top += title_height
        sheet.paste(Image.fromarray(pictures[i]), (left, top))
        top += side[0] + MARGIN // 2
        draw.multiline_text((left, top), "\n".join(caption), fill=GRID_TEXT, font=fonts[1])
        worst = setback.iloc[row].idxmin() if line == 0 else None
        _draw_scores(draw, table.iloc[row], names, worst, (left, top + tall * LINE_HEIGHT, width), fonts[1:])
    sheet.save(path)


def _draw_scores(
    draw: ImageDraw.ImageDraw,
    row: pd.Series,
    names: Sequence[str],
    worst: str | None,
    box: tuple[int, int, int],
    fonts: Sequence[Any],
) -> None:
    left, top, width = box
    lines: list[tuple[str, Any, tuple[int, int, int], Any]] = [("combined", row["combined"], GRID_TEXT, fonts[0])]
    for name in names:
        color = WORST_COLOR if name == worst else FAINT
        lines.append((name.replace("_", " "), row[f"reward_{name}"], color, fonts[1]))
    for i, (text, value, color, font) in enumerate(lines):
        y = top + (i + 1) * LINE_HEIGHT
        draw.text((left, y), text, fill=color, font=font, anchor="ls")
        draw.text((left + width, y), f"{value:.2f}", fill=color, font=font, anchor="rs")


def _outlined_tiles(images: Sequence[np.ndarray], suite: RewardSuite) -> np.ndarray:
    """`(N, H, W, 3)` uint8 pictures of about `TILE` pixels."""
    batch = torch.cat([as_model_images(image, suite.channel_names) for image in images])
    masks = suite.segment(batch)
    if batch.shape[1] not in (1, 3):
        colors = PALETTE[: batch.shape[1]]
        shown = np.stack([from_rgb(composite(image, colors)) for image in to_uint8(batch)])
        batch = as_model_images(shown, ("blue", "green", "red"))
    return outlined(batch, masks.nuclei, masks.cells, scale=max(1, round(TILE / max(batch.shape[2:]))))


def worst_and_best(table: pd.DataFrame, count: int = PER_LINE) -> np.ndarray:
    """Rows of the `count` lowest values of `combined`, the worst first, then of as many of the highest, best first."""
    order = np.argsort(table["combined"].to_numpy(), kind="stable")
    count = min(count, len(order) // 2) or 1
    return np.concatenate([order[:count], order[::-1][:count]])
