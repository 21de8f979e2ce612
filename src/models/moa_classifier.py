"""A small convolutional network that tells the mechanism of action of a cell from its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from cellfluxrl.errors import unknown_name


@dataclass
class MoAClassifierOutput(BaseOutput):
    """
    Output of [`MoAClassifier`].

    Args:
        logits (`torch.Tensor` of shape `(N, num_moas)`): Calibrated logits, in the order of `config.moas`.
        features (`torch.Tensor` of shape `(N, 4 * width)`): The activations before the last layer.
    """

    logits: torch.Tensor
    features: torch.Tensor


class MoAClassifier(ModelMixin, ConfigMixin):
    """
    Three convolutional stages, pooled by mean and maximum, with a temperature that calibrates the probabilities.

    Args:
        moas (`Sequence[str]`): The classes; `"DMSO"` stands for untreated cells.
        channel_names (`Sequence[str]`, defaults to `("dna", "tubulin", "actin")`): Channels of the images, in order.
        width (`int`, defaults to 24): Channels of the first stage; the others have two and four times as many.
        dropout (`float`, defaults to 0.2): Dropout before the last layer.

    Example:
        >>> classifier = MoAClassifier(moas=["DMSO", "Protein synthesis"]).eval()
        >>> classifier(torch.zeros(2, 3, 48, 48)).logits.shape
        torch.Size([2, 2])
    """

    @register_to_config
    def __init__(
        self,
        moas: Sequence[str],
        channel_names: Sequence[str] = ("dna", "tubulin", "actin"),
        width: int = 24,
        dropout: float = 0.2,
    ):
        super().__init__()
        stages: list[nn.Module] = []
        channels = len(channel_names)
        for out_channels in (width, 2 * width, 4 * width):
            stages += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, stride=2, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.project = nn.Linear(2 * channels, channels)
        self.feature_dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, len(moas))
        self.register_buffer("temperature", torch.ones(()))

    def forward(
        self, images: torch.Tensor, return_dict: bool = True
    ) -> MoAClassifierOutput | tuple[torch.Tensor, ...]:
        """
        Args:
            images (`torch.Tensor` of shape `(N, C, H, W)`): Images in [-1, 1].
            return_dict (`bool`, defaults to `True`): Return a [`MoAClassifierOutput`], else `(logits, features)`.
        """
        if images.ndim != 4 or images.shape[1] != len(self.config.channel_names):
            raise ValueError(
                f"images must have shape (N, {len(self.config.channel_names)}, H, W) for the channels "
                f"{tuple(self.config.channel_names)}, got {tuple(images.shape)}"
            )
        maps = self.stages(images.to(self.head.weight))
        features = F.relu(self.project(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)))
        logits = self.head(self.feature_dropout(features)) / self.temperature
        if not return_dict:
            return logits, features
        return MoAClassifierOutput(logits=logits, features=features)

    def class_indices(self, moas: Sequence[str]) -> torch.Tensor:
        """
        Positions of MoA names among the classes.

        Raises:
            ValueError: For a name that is not a class, with the nearest one.
        """
        classes = list(self.config.moas)
        for name in set(moas) - set(classes):
            raise unknown_name("MoA", name, classes)
        return torch.tensor([classes.index(name) for name in moas])


def expected_calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, num_bins: int = 10) -> float:
    """
    Expected calibration error of the predicted class (Guo et al., 2017): mean |accuracy - confidence| over bins.

    Args:
        probabilities (`torch.Tensor` of shape `(N, K)`), labels (`torch.Tensor` of shape `(N,)`): What was predicted
            and what is true.
    """
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).float()
    bins = (confidence * num_bins).long().clamp(max=num_bins - 1)
    error = 0.0
    for b in bins.unique():
        inside = bins == b
        error += float(inside.float().mean() * (correct[inside].mean() - confidence[inside].mean()).abs())
    return error
