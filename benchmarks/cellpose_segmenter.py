"""The Cellpose segmenter against a loop of Cellpose's own `CellposeModel.eval` over the same crops, in one run.

Run as `OMP_NUM_THREADS=1 python benchmarks/cellpose_segmenter.py --weights FOLDER`. No published weights are needed:
networks of the default and of a small width are trained on simulated cells, briefly, and kept in the folder. Printed
are the rates of both, and the average precision (at an IoU of 0.5) of our masks against those of the loop and of both
against the truth. Where CELLFLUXRL_BBBC021_DIR holds real crops, the small networks are also compared with the
watershed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cellfluxrl.data.building.normalization import normalize_plate
from cellfluxrl.rewards.segmentation.cellpose.segmenter import CellposeSegmenter
from cellfluxrl.rewards.segmentation.protocol import Masks
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

sys.path.append(str(Path(__file__).parents[1] / "tests" / "rewards"))
from small_cellpose import ROUGH_FLOWS, WIDTHS, eval_loop, eval_model, precision, simulated_crops, train_cellpose

EPOCHS = {"default": 30, "small": 60}
DEFAULT_REAL_DATA = Path(__file__).parents[2] / "shared" / "bbbc021_real"


def trained_weights(width: str, folder: Path) -> dict[str, Path]:
    """Return the weights of a nucleus and a cell network, trained unless they are in the folder."""
    paths = {}
    for kind in ("nucleus", "cell"):
        paths[kind] = folder / "models" / "_".join(map(str, (kind, *WIDTHS[width])))
        if not paths[kind].exists():
            print(f"training the {width} {kind} network")
            train_cellpose(kind, folder, WIDTHS[width], epochs=EPOCHS[width])
    return paths


def timed(function: Callable[[], Masks]) -> tuple[Masks, float]:
    start = time.process_time()  # of this process only, whatever else runs
    masks = function()
    return masks, time.process_time() - start


def compare(width: str, folder: Path, image_size: int, count: int) -> None:
    """Print the rates of the loop and of the segmenter, and how much their masks agree."""
    paths = trained_weights(width, folder)
    images, nuclei, cells = simulated_crops(count, image_size=image_size, seed=1)
    models = {kind: eval_model(path, WIDTHS[width]) for kind, path in paths.items()}
    diameters = {kind: image_size / 48 * float(model.diam_labels) for kind, model in models.items()}
    segmenters = {
        name: CellposeSegmenter(
            nucleus_model=str(paths["nucleus"]),
            cell_model=str(paths["cell"]),
            nucleus_diameter=diameters["nucleus"],
            cell_diameter=diameters["cell"],
            bfloat16=bfloat16,
        )
        for name, bfloat16 in (("bfloat16", True), ("float32", False))
    }
    eval_loop(models, images[:2], diameters)
    looped, loop_seconds = timed(lambda: eval_loop(models, images, diameters))
    truth = (
        f"AP against truth: nuclei {precision(nuclei, looped.nuclei):.3f}, cells {precision(cells, looped.cells):.3f}"
    )
    print(f"{width} network, {count} simulated crops of {image_size}x{image_size}")
    print(f"  loop of eval: {loop_seconds / count * 1000:6.1f} ms a crop; {truth}")
    for name, segmenter in segmenters.items():
        segmenter(images[:2])
        masks, seconds = timed(lambda s=segmenter: s(images))
        print(
            f"  {name:>12}: {seconds / count * 1000:6.1f} ms a crop, {loop_seconds / seconds:4.1f} times as fast; "
            f"AP against the loop: nuclei {precision(looped.nuclei, masks.nuclei):.3f}, "
            f"cells {precision(looped.cells, masks.cells):.3f}; "
            f"against truth: {precision(nuclei, masks.nuclei):.3f}, {precision(cells, masks.cells):.3f}"
        )


def agreement(folder: Path, plate: Path, count: int) -> None:
    """Print how far the watershed and Cellpose, trained on simulated cells only, agree on real crops."""
    crops = normalize_plate(np.load(plate)["image"].transpose(0, 3, 1, 2), 48)[:count]
    images = (crops / 255).astype(np.float32)
    paths = trained_weights("small", folder)
    segmenter = CellposeSegmenter(
        nucleus_model=str(paths["nucleus"]), cell_model=str(paths["cell"]), flow_threshold=ROUGH_FLOWS
    )
    cellpose = segmenter(images)
    watershed = WatershedSegmenter()(images)
    print(
        f"{len(images)} real crops of 48x48: the watershed and the small Cellpose, which has seen simulated cells only"
    )
    for kind in ("nuclei", "cells"):
        one, other = getattr(watershed, kind), getattr(cellpose, kind)
        equal = (one.max(axis=(1, 2)) == other.max(axis=(1, 2))).mean()
        areas = [(labels > 0).sum(axis=(1, 2)) for labels in (one, other)]
        difference = np.median(np.abs(areas[1] - areas[0]) / np.maximum(areas[0], 1))
        print(
            f"  {kind:>6}: AP {precision(one, other):.3f} at IoU 0.5; equal counts in {equal:.1%} of the images; "
            f"median difference of the area of all {kind} {difference:.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=Path("cellpose_weights"), help="folder of trained networks")
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--widths", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    arguments = parser.parse_args()
    arguments.weights.mkdir(parents=True, exist_ok=True)
    for width in arguments.widths:
        for image_size in (96, 48):
            compare(width, arguments.weights, image_size, arguments.crops)
    plate = Path(os.environ.get("CELLFLUXRL_BBBC021_DIR", DEFAULT_REAL_DATA)) / "Week4_27801.npz"
    if plate.exists():
        agreement(arguments.weights, plate, count=500)


if __name__ == "__main__":
    main()
