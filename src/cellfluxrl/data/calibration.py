"""Controls of another plate at the intensities of the controls that a network was trained on."""

from __future__ import annotations

import numpy as np
import torch

from cellfluxrl.data.images import evenly_spread
from cellfluxrl.data.pairs import ControlTreatedPairs

LEVELS = 201
MOST_IMAGES = 1000
FEWEST_IMAGES = 20


def intensity_levels(images: np.ndarray) -> np.ndarray:
    """Quantiles `(C, 201)` of the intensities of each channel, from the darkest pixel to the brightest.

    Of more than 1,000 images, `(N, C, H, W)`, as many are taken, evenly spread; fewer than 20 are refused: a plate is
    not known by a handful of its cells.
    """
    if len(images) < FEWEST_IMAGES:
        raise ValueError(
            f"the intensities of a plate are taken from {FEWEST_IMAGES} of its controls or more, got {len(images)}"
        )
    pixels = np.moveaxis(images[evenly_spread(len(images), MOST_IMAGES)], 1, 0).reshape(images.shape[1], -1)
    return np.quantile(pixels, np.linspace(0, 1, LEVELS), axis=1).T


def match_levels(images: torch.Tensor, source: np.ndarray, reference: np.ndarray) -> torch.Tensor:
    """Give each pixel the intensity that has the same rank in the reference (histogram matching, by quantiles).

    Args:
        images: `(N, C, H, W)`; to be changed.
        source: `(C, L)`; [`intensity_levels`] of the plate that they are of. What lies beyond them is clipped.
        reference: `(C, L)`; those that they are to have.

    Returns:
        `torch.Tensor` of shape `(N, C, H, W)`, float32 on the CPU.

    Raises:
        ValueError: If a channel has one intensity only.

    Example:
        >>> images = torch.linspace(0, 1, 5).view(1, 1, 1, 5)
        >>> match_levels(images, np.array([[0.0, 1.0]]), np.array([[0.0, 0.5]])).flatten().tolist()
        [0.0, 0.125, 0.25, 0.375, 0.5]
    """
    channels = []
    for k, channel in enumerate(images.float().cpu().unbind(dim=1)):
        levels, rank, ties = np.unique(source[k], return_inverse=True, return_counts=True)
        if len(levels) == 1:
            raise ValueError(f"channel {k} of the plate has the intensity {levels[0]:g} everywhere")
        # A black background takes up many ranks: it becomes the mean of what has them in the reference.
        goals = np.bincount(rank, weights=reference[k]) / ties
        channels.append(torch.from_numpy(np.interp(channel.numpy(), levels, goals)).float())
    return torch.stack(channels, dim=1)


def control_levels(pairs: ControlTreatedPairs) -> dict[str, list[float]]:
    """The levels, by channel and in [0, 1], of the controls that a network is trained on; empty if fewer than 20."""
    rows = pairs.control_rows()
    if len(rows) < FEWEST_IMAGES:
        return {}
    levels = intensity_levels(pairs.images[rows[evenly_spread(len(rows), MOST_IMAGES)].numpy()]) / 255
    return dict(zip(pairs.channel_names, levels.round(4).tolist(), strict=True))
