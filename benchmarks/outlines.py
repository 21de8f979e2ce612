"""Draw real crops with the outlines that the watershed segmenter finds, to be looked at.

Run as `python benchmarks/outlines.py OUTPUT.png`; CELLFLUXRL_BBBC021_DIR says where the crops are. Controls and
treated cells of all plates are taken in turn. DNA is blue, the other channels green and red; nuclei are outlined in
white, cells in yellow.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cellfluxrl.data.building.normalization import normalize_plate
from cellfluxrl.figures import outlined
from cellfluxrl.rewards.segmentation.measurements import measure
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

ROWS, COLUMNS, SIZE, ZOOM, GAP = 8, 8, 48, 3, 4
DEFAULT_REAL_DATA = Path(__file__).parents[2] / "shared" / "bbbc021_real"


def main() -> None:
    folder = Path(os.environ.get("CELLFLUXRL_BBBC021_DIR", DEFAULT_REAL_DATA))
    rng = np.random.default_rng(0)
    chosen = []
    for path in sorted(folder.glob("*.npz")):
        plate = np.load(path, allow_pickle=False)
        crops = normalize_plate(plate["image"].transpose(0, 3, 1, 2), SIZE)
        compounds = sorted(set(plate["compound"].tolist()))
        chosen += [crops[rng.permutation(np.flatnonzero(plate["compound"] == compound))] for compound in compounds]
    taken = np.stack([chosen[i % len(chosen)][i // len(chosen)] for i in range(ROWS * COLUMNS)])
    segment = WatershedSegmenter()
    everything = (np.concatenate(chosen) / 255).astype(np.float32)
    counts = measure(segment(everything))["nucleus_count"]
    print(f"{len(counts)} real crops; {np.mean(counts == 0):.2%} without a nucleus")

    masks = segment((taken / 255).astype(np.float32))
    tiles = outlined(torch.from_numpy(taken) / 127.5 - 1, masks.nuclei, masks.cells, scale=ZOOM)
    tiles = np.pad(tiles, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    rows = tiles.reshape(ROWS, COLUMNS, *tiles.shape[1:])
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(sys.argv[1])


if __name__ == "__main__":
    main()
