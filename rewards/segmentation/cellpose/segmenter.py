"""Cellpose as a segmenter: its networks on whole batches of crops."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from cellfluxrl.rewards.segmentation.cellpose.flows import masks_from_flows
from cellfluxrl.rewards.segmentation.cellpose.models import CellposeNetwork, load_network
from cellfluxrl.rewards.segmentation.protocol import NUCLEUS_CHANNEL, Masks, check_images, register_segmenter

_STEPS = 200  # of a pixel along the flows, where objects have the size that the network wants
_SMALLEST_CONTRAST = 1e-3


@register_segmenter
@dataclass(frozen=True)
class CellposeSegmenter:
    """Segment with Cellpose [1]_: one network for the nuclei, one for the cells.

    The masks are those of `CellposeModel.eval` for each image, several times faster, because the networks see
    `batch_size` images at a time and the masks of all of them are made together. Cellpose 3 is installed with
    `pip install "cellfluxrl[cellpose]"`; with Cellpose 4, which needs torchvision, both models are "cpsam".

    Nuclei come from the DNA channel, cells from the mean of all other channels. A cell network may see the DNA as
    Cellpose's second channel (`cells_see_dna`), which helps to tell neighbours apart. It is off by default: such a
    network knows that there is a cell wherever there is a nucleus, and the reward for nuclei that lie inside cells
    could hardly fail.

    Published weights are looked for in Cellpose's folder (`CELLPOSE_LOCAL_MODELS_PATH`, or `.cellpose/models` in the
    home folder) and downloaded if they are missing; Cellpose's authors trained them on images that may not be used
    commercially. Files are read with `torch.load(weights_only=True)`, which runs no code that is in them.

    Args:
        channel_names: The channels in the order of the images' second axis. One is "dna"; all others are cytoplasm.
        nucleus_model: Name of a published model, or path of a file of weights, for the nuclei.
        cell_model: The same for the cells.
        cells_see_dna: Whether the cell network gets the DNA channel too.
        nucleus_diameter: Diameter of the nuclei in pixels; `None` for that of the nuclei the model was trained on.
        cell_diameter: The same for the cells.
        flow_threshold: Masks whose flows differ more than this from the network's are removed; 0 keeps all.
        cellprob_threshold: Pixels with a higher logit belong to objects; lower values give larger masks.
        min_size: Smaller masks are removed, in square pixels.
        max_size_fraction: Masks of a larger part of the image are removed. Cellpose's value is 0.4, which would
            remove the cell that fills a single-cell crop.
        batch_size: Number of images that are worked on at a time; memory grows with it, the masks stay the same.
        device: Device of the networks, such as "cpu" or "cuda:1"; `None` for CUDA where it is available.
        bfloat16: Whether the networks compute with 16-bit floats: about twice as fast on processors that have
            instructions for them, slower on others, for nearly the same masks.

    Raises:
        ValueError: If "dna" or the cytoplasm is missing from `channel_names`, or a setting is out of range.

    References:
        .. [1] Stringer, Wang, Michaelos, Pachitariu, "Cellpose: a generalist algorithm for cellular segmentation",
           Nature Methods 18, 100 (2021); "Cellpose3", Nature Methods 22, 592 (2025).

    Example:
        >>> segment = CellposeSegmenter(cell_model="cyto3", cell_diameter=35)
        >>> masks = segment(np.zeros((1, 3, 48, 48), dtype=np.float32))                # doctest: +SKIP
        >>> masks.cells.shape                                                          # doctest: +SKIP
        (1, 48, 48)
    """

    name: ClassVar[str] = "cellpose"

    channel_names: tuple[str, ...] = ("dna", "tubulin", "actin")
    nucleus_model: str = "nuclei"
    cell_model: str = "cyto3"
    cells_see_dna: bool = False
    nucleus_diameter: float | None = None
    cell_diameter: float | None = None
    flow_threshold: float = 0.4
    cellprob_threshold: float = 0.0
    min_size: int = 15
    max_size_fraction: float = 1.0
    batch_size: int = 32
    device: str | None = None
    bfloat16: bool = True

    def __post_init__(self) -> None:
        # A list is what JSON returns.
        object.__setattr__(self, "channel_names", tuple(self.channel_names))
        if self.channel_names.count(NUCLEUS_CHANNEL) != 1 or len(self.channel_names) < 2:
            raise ValueError(
                f"channel_names must hold one {NUCLEUS_CHANNEL!r} and at least one other channel, "
                f"got {self.channel_names!r}"
            )
        for setting in ("nucleus_model", "cell_model"):
            if not isinstance(getattr(self, setting), str) or not getattr(self, setting):
                raise ValueError(f"{setting} must be a model's name or a path, got {getattr(self, setting)!r}")
        for setting in ("nucleus_diameter", "cell_diameter"):
            value = getattr(self, setting)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{setting} must be positive and finite, or None, got {value!r}")
        for setting in ("flow_threshold", "min_size"):
            if not 0 <= getattr(self, setting) < float("inf"):
                raise ValueError(f"{setting} must be at least 0 and finite, got {getattr(self, setting)!r}")
        if not abs(self.cellprob_threshold) < float("inf"):
            raise ValueError(f"cellprob_threshold must be finite, got {self.cellprob_threshold!r}")
        if not 0 < self.max_size_fraction <= 1:
            raise ValueError(f"max_size_fraction must be above 0 and at most 1, got {self.max_size_fraction!r}")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {self.batch_size!r}")

    def __call__(self, images: np.ndarray) -> Masks:
        """Label the nuclei and the cells of (N, C, H, W) floats in [0, 1], whatever else is in the batch.

        Raises:
            ImportError: If Cellpose, or what it needs, is not installed.
            FileNotFoundError: If weights are missing; the message says which file goes where.
            ValueError: If `images` are not as above, or a file does not hold the weights of a Cellpose network.
        """
        check_images(images, self.channel_names)
        dna = self.channel_names.index(NUCLEUS_CHANNEL)
        count, _, height, width = images.shape
        nuclei = np.zeros((count, height, width), dtype=np.int32)
        cells = np.zeros_like(nuclei)
        for start in range(0, count, self.batch_size):
            part = slice(start, start + self.batch_size)
            channels = images[part].astype(np.float32)
            stain = channels[:, dna]
            cytoplasm = np.delete(channels, dna, axis=1).mean(axis=1)
            nuclei[part] = self._masks("nucleus", [stain])
            cells[part] = self._masks("cell", [cytoplasm, stain] if self.cells_see_dna else [cytoplasm])
        return Masks(nuclei, cells)

    def _masks(self, kind: str, channels: list[np.ndarray]) -> np.ndarray:
        network = self._networks[kind]
        device = next(network.module.parameters()).device
        if len(channels) > network.channels:
            raise ValueError(f"{self.cell_model!r} takes {network.channels} channel, so cells_see_dna must be False")
        planes = np.zeros((len(channels[0]), network.channels, *channels[0].shape[1:]), dtype=np.float32)
        for k, channel in enumerate(channels):
            planes[:, k] = normalize_images(channel)
        diameter = getattr(self, f"{kind}_diameter") or network.trained_diameter
        scale = network.object_diameter / diameter
        output = network(torch.from_numpy(planes).to(device), scale)
        return masks_from_flows(
            output[:, :2] / 5,  # networks are trained on flows of length 5
            output[:, 2] > self.cellprob_threshold,
            steps=int(_STEPS / scale),
            flow_threshold=self.flow_threshold,
            min_size=self.min_size,
            max_size_fraction=self.max_size_fraction,
        )

    @functools.cached_property
    def _networks(self) -> dict[str, CellposeNetwork]:
        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        models = {"nucleus": self.nucleus_model, "cell": self.cell_model}
        return {kind: load_network(model, device, bfloat16=self.bfloat16) for kind, model in models.items()}


def normalize_images(images: np.ndarray) -> np.ndarray:
    """Scale each of (N, H, W) images so that its 1st and 99th percentiles are 0 and 1; 0 where they are the same."""
    low, high = np.percentile(images, [1, 99], axis=(1, 2), keepdims=True).astype(np.float32)
    flat = high - low <= _SMALLEST_CONTRAST
    return np.where(flat, 0, (images - low) / np.where(flat, 1, high - low)).astype(np.float32)
