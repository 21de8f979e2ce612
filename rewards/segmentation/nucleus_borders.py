"""Whether two touching regions of DNA are two nuclei or parts of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cellfluxrl.rewards.segmentation.labelling import Borders

FEATURES = ("size", "likeness", "neck", "brightness between", "membrane between", "cytoplasm", "cytoplasm between")
# A logistic regression on simulated nuclei whose answer is known: `benchmarks/nucleus_borders.py` prints these.
WEIGHTS = np.array([-2.174, 18.836, 2.098, 8.416, -3.073, -19.152, -11.425])
INTERCEPT = -9.958


@dataclass(frozen=True)
class Planes:
    """What is seen of N images."""

    dna: np.ndarray  # (N, H, W) brightness of the nucleus channel
    distance: np.ndarray  # (N, H, W) distance to the background of the nuclei, in pixels of a 48-pixel image
    cytoplasm: np.ndarray  # (C, N, H, W) smoothed brightness of the other channels; C may be 0
    membranes: np.ndarray  # (N, H, W) high where two cells meet


def border_features(labels: np.ndarray, borders: Borders, planes: Planes, scale: float) -> np.ndarray:
    """Describe the borders between (N, H, W) regions: (B, 7), columns as in `FEATURES`.

    Parts of one nucleus are small together, alike in brightness, joined by a wide neck that is not dimmer than they
    are, without a membrane between them, and in one cytoplasm that does not dip there. The columns are: log of the
    joint area; brightness of the dimmer over the brighter region; log of the width of the neck over that of the
    narrower region; brightness along the border over that of the dimmer region; log of the membrane along the border;
    mean over the channels of the difference in the logs of the cytoplasm's brightness, and of that along the border
    over the dimmer side's. `scale` is how many pixels a pixel of a 48-pixel image is.
    """
    inside, count = np.flatnonzero(labels), labels.max(initial=0) + 1
    region = labels.ravel()[inside]
    areas = np.maximum(np.bincount(region, minlength=count), 1)

    def means(plane: np.ndarray) -> np.ndarray:
        return np.maximum(np.bincount(region, weights=plane.ravel()[inside], minlength=count) / areas, 1e-6)

    first, second = borders.first, borders.second
    one, other = borders.pixels
    dna, distance, membranes = planes.dna.ravel(), planes.distance.ravel(), planes.membranes.ravel()
    radii = np.zeros(count, dtype=distance.dtype)
    np.maximum.at(radii, region, distance[inside])
    neck = borders.highest(np.maximum(distance[one], distance[other]))
    brightness = means(planes.dna)
    dimmer = np.minimum(brightness[first], brightness[second])
    difference, dip = np.zeros(len(first)), np.zeros(len(first))
    for channel in planes.cytoplasm:
        level, flat = means(channel), channel.ravel()
        difference += np.abs(np.log((level[first] + 0.05) / (level[second] + 0.05)))
        lower = np.maximum(np.minimum(level[first], level[second]), 0.02)
        dip += borders.mean(np.minimum(flat[one], flat[other])) / lower
    channels = max(len(planes.cytoplasm), 1)
    return np.stack(
        [
            np.log((areas[first] + areas[second]) / scale**2),
            dimmer / np.maximum(brightness[first], brightness[second]),
            np.log(np.minimum(neck / np.minimum(radii[first], radii[second]), 1) + 0.05),
            borders.mean(np.minimum(dna[one], dna[other])) / dimmer,
            np.log(borders.mean(np.maximum(membranes[one], membranes[other])) + 0.01),
            difference / channels,
            dip / channels,
        ],
        axis=1,
    )


def log_odds_of_one_nucleus(labels: np.ndarray, borders: Borders, planes: Planes, scale: float) -> np.ndarray:
    """Weigh the evidence of [`border_features`]: (B,) values, above 0 where the two regions are one nucleus."""
    return border_features(labels, borders, planes, scale) @ WEIGHTS + INTERCEPT
