"""A plain ADM U-Net with CellFlux's condition: what the velocity network is compared with, in numbers and in speed.

Written from the public description (Dhariwal and Nichol, 2021, appendix; CellFlux, 2025), under the parameter names
of the original, with nothing optimised: attention weights in full, one module after the other. The tests check it
against outputs of the original, and the package's network against it in the shapes of which no outputs are at hand.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Resample(nn.Module):
    """Halve (`"down"`) or double (`"up"`) the resolution; the convolution is called `op` and `conv` respectively."""

    def __init__(self, channels: int, direction: str, use_conv: bool):
        super().__init__()
        self.direction, self.use_conv = direction, use_conv
        if use_conv and direction == "down":
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        elif use_conv:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        if self.direction == "down":
            return self.op(hidden) if self.use_conv else F.avg_pool2d(hidden, 2)
        hidden = F.interpolate(hidden, scale_factor=2, mode="nearest")
        return self.conv(hidden) if self.use_conv else hidden


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with the embedding in between; `resample` is applied to branch and shortcut."""

    def __init__(self, c_in, c_out, embedding_dim, dropout, film, groups, resample: str | None = None):
        super().__init__()
        self.film = film
        self.resample = None if resample is None else Resample(c_in, resample, use_conv=False)
        self.in_layers = nn.Sequential(nn.GroupNorm(groups, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_dim, 2 * c_out if film else c_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, c_out), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(c_out, c_out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.in_layers[:-1](x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.in_layers[-1](h)
        e = self.emb_layers(embedding)[:, :, None, None]
        if self.film:
            scale, shift = torch.chunk(e, 2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """Self-attention with its weights in full; `new_order` splits into q, k, v first and into heads next."""

    def __init__(self, channels: int, heads: int, groups: int, new_order: bool):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        n, c, height, width = x.shape
        pixels = x.reshape(n, c, height * width)
        qkv = self.qkv(self.norm(pixels))
        per_head = c // self.heads
        if self.new_order:
            q, k, v = (part.reshape(n * self.heads, per_head, -1) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(n * self.heads, 3 * per_head, -1).split(per_head, dim=1)
        scale = per_head**-0.25  # on both, which is steadier in half precision than on the product
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight, dim=-1)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(n, c, -1)
        return (pixels + self.proj_out(h)).reshape(n, c, height, width)


class Block(nn.Sequential):
    """A sequence of which some modules take the embedding."""

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for module in self:
            hidden = module(hidden) if isinstance(module, nn.Conv2d) else module(hidden, embedding)
        return hidden


class PlainUNet(nn.Module):
    """The network; the arguments are the original's, and `norm_num_groups`, which is 32 there."""

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        num_res_blocks: int = 4,
        attention_resolutions: tuple[int, ...] = (2,),
        dropout: float = 0.3,
        channel_mult: tuple[float, ...] = (2, 2, 2),
        conv_resample: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = False,
        use_new_attention_order: bool = True,
        condition_dim: int | None = 1024,
        norm_num_groups: int = 32,
    ):
        super().__init__()
        self.model_channels = model_channels
        emb = 4 * model_channels
        heads_up = num_heads if num_heads_upsample == -1 else num_heads_upsample

        def res(c_in, c_out, resample=None):
            return ResBlock(c_in, c_out, emb, dropout, use_scale_shift_norm, norm_num_groups, resample)

        def attention(c, heads):
            heads = heads if num_head_channels == -1 else c // num_head_channels
            return Attention(c, heads, norm_num_groups, use_new_attention_order)

        def resample(c, direction):
            return res(c, c, direction) if resblock_updown else Resample(c, direction, conv_resample)

        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if condition_dim is not None:
            self.mol_embed_transform = nn.Linear(condition_dim, emb)

        widths = [int(mult * model_channels) for mult in channel_mult]
        c = widths[0]
        skips = [c]
        self.input_blocks = nn.ModuleList([Block(nn.Conv2d(in_channels, c, 3, padding=1))])
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                layers = [res(c, width)]
                c = width
                if 2**level in attention_resolutions:
                    layers.append(attention(c, num_heads))
                self.input_blocks.append(Block(*layers))
                skips.append(c)
            if level != len(widths) - 1:
                self.input_blocks.append(Block(resample(c, "down")))
                skips.append(c)

        self.middle_block = Block(res(c, c), attention(c, num_heads), res(c, c))

        self.output_blocks = nn.ModuleList()
        for level, width in list(enumerate(widths))[::-1]:
            for i in range(num_res_blocks + 1):
                layers = [res(c + skips.pop(), width)]
                c = width
                if 2**level in attention_resolutions:
                    layers.append(attention(c, heads_up))
                if level and i == num_res_blocks:
                    layers.append(resample(c, "up"))
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(nn.GroupNorm(norm_num_groups, c), nn.SiLU(), nn.Conv2d(c, out_channels, 3, padding=1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Velocity (N, C, H, W) at images `x` (N, C, H, W), times `t` (N,) and conditions (N, D) or `None`."""
        half = self.model_channels // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=x.device) / half)
        angles = t[:, None].float() * frequencies
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1).type(x.dtype))
        if condition is not None:
            embedding = embedding + self.mol_embed_transform(condition)

        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h)
