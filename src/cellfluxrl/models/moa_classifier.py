"""A compact residual network that predicts the mechanism of action from the image of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.utils.outputs import BaseOutput
from torch import nn

from cellfluxrl.configuration import ConfigMixin, ModelMixin, register_to_config
from cellfluxrl.errors import unknown_name
from cellfluxrl.hub.mixin import HubModelMixin
from cellfluxrl.models.card import classifier_card

RANGE_TOLERANCE = 1e-4


@dataclass
class MoAClassifierOutput(BaseOutput):
    """Output of [`MoAClassifier`].

    Args:
        logits: `(N, num_moas)`; calibrated logits, in the order of `config.moas`.
        features: `(N, 4 * width)`; the activations before the last layer.
    """

    logits: torch.Tensor
    features: torch.Tensor


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al., 2016): normalise, rectify, convolve; twice, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.project = nn.Conv2d(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None
        self.stride = stride

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Map `(N, in_channels, H, W)` to `(N, out_channels, H / stride, W / stride)`."""
        active = F.relu(self.norm1(maps))
        shortcut = maps if self.project is None else self.project(F.avg_pool2d(active, self.stride))
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(active))))


class MoAClassifier(HubModelMixin, ModelMixin, ConfigMixin):
    """Three residual blocks, pooled by mean and maximum, with a temperature that calibrates the probabilities.

    Images come normalised by plate, as every data set of this package is ([`plate_stretch`]); the network then
    standardises each channel by the mean and standard deviation of its training set. It works at one size: crops of
    another are resampled to it, large ones with antialiasing, and must show the same field of view.

    Args:
        moas: The classes; `"DMSO"` stands for untreated cells.
        channel_names: Channels of the images, in order.
        width: Channels at half the image size; there are twice as many at a quarter of it and four times as many at an
            eighth.
        dropout: Dropout before the last layer.
        image_size: Height and width at which the network works, a multiple of 8.

    Example:
        >>> classifier = MoAClassifier(moas=["DMSO", "Protein synthesis"]).eval()
        >>> classifier(torch.zeros(2, 3, 96, 96)).logits.shape
        torch.Size([2, 2])
    """

    hub_kind = "classifier"
    hub_message = "Classifier of the mechanism of action, trained with CellFluxRL"
    card_of = staticmethod(classifier_card)

    @register_to_config
    def __init__(
        self,
        moas: Sequence[str],
        channel_names: Sequence[str] = ("dna", "tubulin", "actin"),
        width: int = 16,
        dropout: float = 0.1,
        image_size: int = 48,
    ):
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise ValueError(f"image_size of the classifier must be a positive multiple of 8, got {image_size}")
        self.register_buffer("channel_mean", torch.zeros(len(channel_names)))
        self.register_buffer("channel_std", torch.ones(len(channel_names)))
        self.stem = nn.Conv2d(4 * len(channel_names), width, 3, padding=1)
        self.blocks = nn.Sequential(
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 2 * width, stride=1),
            ResidualBlock(2 * width, 4 * width, stride=2),
        )
        self.norm = nn.BatchNorm2d(4 * width)
        self.project = nn.Linear(8 * width, 4 * width)
        self.feature_dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, len(moas))
        self.register_buffer("temperature", torch.ones(()))

    def forward(
        self, images: torch.Tensor, *, return_dict: bool = True
    ) -> MoAClassifierOutput | tuple[torch.Tensor, ...]:
        """Classify images.

        Args:
            images: `(N, C, H, W)`; images in [-1, 1].
            return_dict: Return a [`MoAClassifierOutput`], else `(logits, features)`.

        Raises:
            ValueError: For other channels, integers, an empty batch, NaN, infinity, or values outside [-1, 1].
        """
        self._check(images)
        size = (self.config.image_size, self.config.image_size)
        images = images.to(self.head.weight)
        if images.shape[2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        images = (images - self.channel_mean[:, None, None]) / self.channel_std[:, None, None]
        maps = self.stem(F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last))
        maps = F.relu(self.norm(self.blocks(maps)))
        features = F.relu(self.project(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)))
        logits = self.head(self.feature_dropout(features)) / self.temperature
        if not return_dict:
            return logits, features
        return MoAClassifierOutput(logits=logits, features=features)

    def _check(self, images: torch.Tensor) -> None:
        channels = tuple(self.config.channel_names)
        if images.ndim != 4 or images.shape[1] != len(channels) or not images.numel():
            raise ValueError(
                f"images must have shape (N, {len(channels)}, H, W) for the channels {channels} and not be empty, "
                f"got {tuple(images.shape)}"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be floating point in [-1, 1], got {images.dtype}")
        low, high = (float(value) for value in images.aminmax())
        if not (low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # NaN fails both
            raise ValueError(f"images must be finite and lie in [-1, 1], got values from {low:g} to {high:g}")

    def class_indices(self, moas: Sequence[str]) -> torch.Tensor:
        """Positions of MoA names among the classes.

        Raises:
            ValueError: For a MoA that the classifier was not trained on, with the nearest one.
        """
        classes = list(self.config.moas)
        for name in set(moas) - set(classes):
            raise unknown_name("MoA", name, classes)
        return torch.tensor([classes.index(name) for name in moas])


def expected_calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, num_bins: int = 10) -> float:
    """Mean |accuracy - confidence| over bins of the confidence (Guo et al., 2017).

    `probabilities` are `(N, K)`, the true `labels` `(N,)`.
    """
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).float()
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    excess = torch.zeros(num_bins).index_add_(0, bins, correct - confidence)
    return float(excess.abs().sum() / len(labels))
