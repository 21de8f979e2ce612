"""The parts of the velocity network: the condition, blocks, and how they stack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

CONDITION_NORMS = ("log1p", "unit_rms", "log1p_unit_rms")


def zero_init(module: nn.Module) -> nn.Module:
    """Zero a layer's parameters, so that its residual branch (or the whole network) starts as the identity (or 0)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def silu(hidden: torch.Tensor) -> torch.Tensor:
    """SiLU, written over `hidden` where no gradient needs it any more."""
    return F.silu(hidden, inplace=not torch.is_grad_enabled())


def scale_and_shift(hidden: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`hidden * scale + shift`, written over `hidden` where no gradient needs it any more."""
    return hidden * scale + shift if torch.is_grad_enabled() else hidden.mul_(scale).add_(shift)


def unrounded(module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Apply a module in the precision of its weights, also under autocast.

    For the few cheap layers that the sum of all residual branches passes through: rounded there to bfloat16, errors
    add up from block to block; within a branch they do not.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return module(hidden.to(next(module.parameters()).dtype))


def normalized_condition(condition: torch.Tensor, norm: str, dose_dim: int = 0) -> torch.Tensor:
    """Bring the counts of a fingerprint to a common scale.

    Args:
        condition: `(N, D)`; counts, followed by `dose_dim` columns that are returned as they are.
        norm: `"log1p"`, sign(c) log(1 + |c|) of each count; `"unit_rms"`, which scales each row to a root mean square
            of 1 (a row of zeros stays so); or `"log1p_unit_rms"`, one after the other.
        dose_dim: number of columns that are not counts.

    Example:
        >>> normalized_condition(torch.tensor([[0.0, 0.0, 3.0, 4.0, -1.0]]), "unit_rms", dose_dim=1)
        tensor([[ 0.0000,  0.0000,  1.2000,  1.6000, -1.0000]])
    """
    counts, dose = condition.tensor_split([condition.shape[1] - dose_dim], dim=1)
    if "log1p" in norm:
        counts = counts.sign() * counts.abs().log1p()
    if "unit_rms" in norm:
        counts = F.normalize(counts, dim=1) * counts.shape[1] ** 0.5
    return torch.cat([counts, dose], dim=1)


class Downsample(nn.Module):
    """Halve height and width: by a strided convolution with `use_conv`, else by averaging 2x2 pixels."""

    def __init__(self, channels: int, *, use_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else None

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        """`embedding` is for a `ResnetBlock`, which a stage may resample with instead."""
        return F.avg_pool2d(hidden, 2) if self.conv is None else self.conv(hidden)


class Upsample(nn.Module):
    """Double height and width by repeating pixels, followed by a convolution with `use_conv`."""

    def __init__(self, channels: int, *, use_conv: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        """`embedding` is for a `ResnetBlock`, which a stage may resample with instead."""
        hidden = F.interpolate(hidden, scale_factor=2.0, mode="nearest")
        return hidden if self.conv is None else self.conv(hidden)


class ResnetBlock(nn.Module):
    """Two convolutions with a shortcut; the embedding of time and condition enters between them.

    With `use_scale_shift_norm` it scales and shifts the second normalization (FiLM) instead of being added before it.
    A `resampler` is applied to both the branch and the shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_dim: int,
        dropout: float,
        use_scale_shift_norm: bool,
        norm_num_groups: int,
        resampler: nn.Module | None = None,
    ):
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.resampler = resampler
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embedding_proj = nn.Linear(embedding_dim, 2 * out_channels if use_scale_shift_norm else out_channels)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Map `hidden` (N, in_channels, H, W) and `embedding` (N, E) to (N, out_channels, H', W')."""
        shortcut = hidden
        hidden = silu(self.norm1(hidden))
        if self.resampler is not None:
            hidden, shortcut = self.resampler(hidden), self.resampler(shortcut)
        hidden = self.conv1(hidden)

        modulation = self.embedding_proj(F.silu(embedding))[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            hidden = scale_and_shift(self.norm2(hidden), 1 + scale, shift)
        else:
            hidden = self.norm2(hidden + modulation)
        hidden = self.conv2(self.dropout(silu(hidden)))

        if self.conv_shortcut is not None:
            shortcut = unrounded(self.conv_shortcut, shortcut)
        return shortcut + hidden


class SelfAttention(nn.Module):
    """Every pixel of a feature map attends to every other one; residual. `num_heads` divides `channels`."""

    def __init__(self, channels: int, num_heads: int, norm_num_groups: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(norm_num_groups, channels)
        self.to_qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.to_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `hidden` (N, C, H, W) to the same shape."""
        # Rows are pixels from here on: the fused kernels, which never hold all attention weights, need the channels of
        # a pixel side by side in memory. Without that torch quietly falls back to computing the weights in full.
        pixels = self.norm(hidden).flatten(2).transpose(1, 2)
        qkv = F.linear(pixels, self.to_qkv.weight.squeeze(-1), self.to_qkv.bias)
        # Rows of `to_qkv` are ordered (query, key, value) x head x channel: ADM's "new attention order".
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).flatten(2)
        attended = F.linear(attended, self.to_out.weight.squeeze(-1), self.to_out.bias)
        return hidden + attended.transpose(1, 2).unflatten(2, hidden.shape[2:])


class UNetLayer(nn.Module):
    """A residual block, followed by self-attention at the resolutions that have it."""

    def __init__(self, resnet: ResnetBlock, attention: SelfAttention | None):
        super().__init__()
        self.resnet = resnet
        self.attention = attention

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """Map `hidden` (N, C, H, W) and `embedding` (N, E) to (N, C', H, W)."""
        hidden = self.resnet(hidden, embedding)
        return hidden if self.attention is None else self.attention(hidden)


class UNetStage(nn.Module):
    """The layers of one resolution, and what leads to the next one.

    It only holds them: the skip connections run from stage to stage, so `CellFluxUNet2DModel.predict` runs the layers.
    """

    def __init__(self, layers: list[UNetLayer], resampler: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.resampler = resampler
