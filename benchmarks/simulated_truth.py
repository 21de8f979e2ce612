"""Simulated crops of several cells whose number of nuclei and cells is beyond doubt.

A crop cuts cells off. What is left of a cell whose nucleus lies outside cannot be told from its neighbours, and a
sliver of a nucleus can be counted or not; and a nucleus in fragments is one or several. So only crops are taken in
which every cell shows at least 45 square pixels of its nucleus (a fifth of a control nucleus), or less than 60 of
itself and 20 of its nucleus, which nobody would count; in which every nucleus is in one piece; and in which there are
at least two cells to count. Areas are in pixels of a 48-pixel crop.
"""

import cv2
import numpy as np

from cellfluxrl.data.simulated import CONTROL, MOAS, SimulatedCrops, simulate_cells

PLATES = 6
WHOLE_NUCLEUS, NO_NUCLEUS, NO_CELL, FRAGMENT = 45, 20, 60, 10


def known_crops(count: int, seed: int, image_size: int = 48) -> tuple[SimulatedCrops, np.ndarray]:
    """Return `count` such crops of all mechanisms of action and several plates, and their mechanisms."""
    names = np.array((CONTROL, *MOAS))
    drawn = 6 * count  # about one in four is taken
    moas = names[np.arange(drawn) % len(names)]
    crops = simulate_cells(moas, plate=np.arange(drawn) // len(names) % PLATES, image_size=image_size, seed=seed)
    rows = np.flatnonzero([is_known(*pair) for pair in zip(crops.nucleus_labels, crops.cell_labels, strict=True)])
    rows = rows[:count]
    chosen = {name: getattr(crops, name)[rows] for name in ("image", "nucleus_labels", "cell_labels")}
    return SimulatedCrops(**chosen, parameters={k: v[rows] for k, v in crops.parameters.items()}), moas[rows]


def is_known(nucleus_labels: np.ndarray, cell_labels: np.ndarray) -> bool:
    """Whether the nuclei and cells of a square crop can be counted."""
    unit = (len(cell_labels) / 48) ** 2
    cells = np.bincount(cell_labels.ravel())[1:] / unit
    nuclei = np.bincount(nucleus_labels.ravel(), minlength=len(cells) + 1)[1:] / unit
    whole = nuclei >= WHOLE_NUCLEUS
    if whole.sum() < 2 or not (whole | ((nuclei < NO_NUCLEUS) & (cells < NO_CELL))).all():
        return False
    return all(fragments(nucleus_labels == 1 + k, unit) == 1 for k in np.flatnonzero(whole))


def fragments(nucleus: np.ndarray, unit: float) -> int:
    """Count the connected pieces, but for specks, of an (H, W) mask."""
    stats = cv2.connectedComponentsWithStats(nucleus.astype(np.uint8), connectivity=4)[2]
    return int((stats[1:, cv2.CC_STAT_AREA] >= FRAGMENT * unit).sum())
