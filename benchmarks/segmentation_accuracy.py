"""How right the watershed segmenter and the measurements are, against the simulator's ground truth.

Run as `OMP_NUM_THREADS=1 python benchmarks/segmentation_accuracy.py [IMAGE_SIZE]`. Two sets of crops, neither used to
choose a setting or a weight: 4,000 whose nuclei and cells can be counted (see `simulated_truth.py`), and 1,000 as the
simulator draws them, in which cells whose nuclei lie outside show as well; there every nucleus of at least 30 square
pixels counts, with its cell.
"""

import sys

import numpy as np
from scipy.special import ellipe
from simulated_truth import PLATES, known_crops

from cellfluxrl.data.simulated import CONTROL, MOAS, SimulatedCrops, simulate_cells
from cellfluxrl.rewards.segmentation.measurements import measure, object_areas
from cellfluxrl.rewards.segmentation.protocol import Masks
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

KNOWN, COUNT, SEED = 4000, 1000, 90210
DIAMETERS = (6, 8, 10, 12, 16, 20, 26, 32, 40)
ELONGATIONS = (1.0, 1.25, 1.5, 2.0)


def all_crops(image_size: int) -> tuple[SimulatedCrops, np.ndarray]:
    """Crops of every mechanism of action in turn, on several plates, as they come."""
    names = np.array((CONTROL, *MOAS))
    moas = names[np.arange(COUNT) % len(names)]
    plate = np.arange(COUNT) // len(names) % PLATES
    return simulate_cells(moas, plate=plate, image_size=image_size, seed=SEED + 1), moas


def print_errors(crops: SimulatedCrops, moas: np.ndarray, smallest: float) -> None:
    """Compare with the drawn nuclei of at least `smallest` pixels, their cells, and the largest of both."""
    values = measure(WatershedSegmenter()((crops.image / 255).astype(np.float32)))
    nuclei, cells = object_areas(crops.nucleus_labels), object_areas(crops.cell_labels)
    count = (nuclei >= smallest).sum(axis=1)
    right = {"nuclei": values["nucleus_count"] == count, "cells": values["cytoplasm_count"] == count}
    for name, exact in right.items():
        error = (exact.mean() * (1 - exact.mean()) / len(exact)) ** 0.5
        print(f"  {name:>12} counted exactly in {exact.mean():.1%} ± {error:.1%}")
    inside = ((crops.nucleus_labels > 0) & (crops.cell_labels > 0)).sum(axis=(1, 2)) / nuclei.sum(axis=1)
    error = np.abs(values["containment"] - inside)
    print(f"   containment: mean error {error.mean():.4f}, within 0.03 in {np.mean(error <= 0.03):.1%}")
    for name, found, truth in (
        ("nucleus area", values["nucleus_size"], nuclei.max(axis=1)),
        ("cell area", values["cytoplasm_size"], cells.max(axis=1)),
    ):
        error = found / truth - 1
        print(f"  {name:>12}: median error {np.median(np.abs(error)):.1%}, bias {np.median(error):+.1%}")
    print("  exact by mechanism (crops, nuclei, cells):")
    for moa in (CONTROL, *MOAS):
        own = moas == moa
        if own.any():
            shares = (right[name][own].mean() for name in ("nuclei", "cells"))
            print(f"    {moa:<26} {own.sum():4d} " + " ".join(f"{share:5.0%}" for share in shares))


def ellipse_roundness(elongation: float) -> float:
    """Return 4 pi area / perimeter^2 of an ellipse of that long over short axis, with the exact perimeter."""
    return np.pi**2 * elongation / (2 * elongation * ellipe(1 - elongation**-2)) ** 2


def ellipses(diameter: float, elongation: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (count, S, S) ellipses of the area of a disc of `diameter`, anywhere in a pixel and at any angle."""
    size = int(1.6 * diameter) + 10
    rows, columns = np.mgrid[:size, :size]
    images = []
    for _ in range(count):
        (row, column), angle = size / 2 + rng.uniform(-0.5, 0.5, 2), rng.uniform(0, np.pi)
        along = (columns - column) * np.cos(angle) + (rows - row) * np.sin(angle)
        across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
        level = np.sqrt(along**2 / elongation + across**2 * elongation)
        images.append(diameter / 2 - level)
    return np.array(images, dtype=np.float32)


def roundness_of_ellipses() -> None:
    print("roundness of digitised ellipses: mean error (mean of absolute errors); then rendered and segmented")
    rng = np.random.default_rng(0)
    for diameter in DIAMETERS:
        drawn, rendered = [], []
        for elongation in ELONGATIONS:
            depth, truth = ellipses(diameter, elongation, 100, rng), ellipse_roundness(elongation)
            masks = (depth >= 0).astype(np.int32)
            drawn.append(measure(Masks(masks, masks))["roundness"] - truth)
            dna = 0.6 * np.sqrt(np.clip(depth + 0.5, 0, 1))  # an edge one pixel wide, on the square-root scale
            images = np.stack([dna, np.full_like(dna, 0.5)], axis=1)
            segment = WatershedSegmenter(("dna", "er"), image_size=dna.shape[-1], nucleus_area=15.0)
            rendered.append(measure(segment(images))["roundness"] - truth)
        parts = [
            f"{np.mean(e):+.3f} ({np.mean(np.abs(e)):.3f})" for e in (np.concatenate(drawn), np.concatenate(rendered))
        ]
        print(f"  {diameter:>2} px: {parts[0]}   {parts[1]}")


def main() -> None:
    image_size = int(sys.argv[1]) if len(sys.argv) > 1 else 48
    unit = (image_size / 48) ** 2
    crops, moas = known_crops(KNOWN, SEED, image_size)
    print(f"{len(moas)} crops of {image_size}x{image_size} whose nuclei and cells can be counted")
    print_errors(crops, moas, smallest=45 * unit)
    crops, moas = all_crops(image_size)
    print(f"{len(moas)} crops of {image_size}x{image_size} as they come")
    print_errors(crops, moas, smallest=30 * unit)
    roundness_of_ellipses()


if __name__ == "__main__":
    main()
