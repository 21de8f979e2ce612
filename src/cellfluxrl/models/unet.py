"""The velocity network: a U-Net that moves a cell image along the flow from control to treated.

The architecture is the ADM U-Net (Dhariwal and Nichol, 2021) as CellFlux (Zhang et al., 2025) conditions it: the
compound's fingerprint is one linear layer, added to the embedding of time. Its parts are in `unet_blocks`.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils.outputs import BaseOutput
from torch import nn

from cellfluxrl.configuration import ConfigMixin, ModelMixin, register_to_config
from cellfluxrl.errors import unknown_name
from cellfluxrl.flow.paths import PREDICTION_TYPES
from cellfluxrl.models.cellflux_checkpoint import complete_config, convert_weights, read_weights
from cellfluxrl.models.presets import preset_config
from cellfluxrl.models.unet_blocks import (
    CONDITION_NORMS,
    Downsample,
    ResnetBlock,
    SelfAttention,
    UNetLayer,
    UNetStage,
    Upsample,
    normalized_condition,
    silu,
    unrounded,
    zero_init,
)

SEAM_CHANNELS = 8  # feature maps at full resolution of a network that works in patches

# On a CPU, inference runs on so many images at a time that their widest feature map takes about this many bytes: a
# large batch is no faster there, and the feature maps of all its images together are what fills the memory.
SLICE_BYTES = 40 * 2**20


@dataclass
class CellFluxUNet2DOutput(BaseOutput):
    """The output of [`CellFluxUNet2DModel`].

    Args:
        sample: `(N, C, H, W)`; the velocity dx/dt, in the units of the images.
    """

    sample: torch.Tensor


class CellFluxUNet2DModel(ModelMixin, ConfigMixin):
    r"""A U-Net that predicts the velocity of a cell image on its way from control (t = 0) to treated (t = 1).

    A [`~diffusers.ModelMixin`], which saves, loads and pushes to the Hub like every diffusers model. With the default
    configuration it is the network that CellFlux published for BBBC021.

    Args:
        sample_size: height and width of the training images in pixels; the network itself is fully convolutional and
            takes any size divisible by `patch_size * 2 ** (len(channel_mult) - 1)`.
        in_channels: image channels.
        out_channels: channels of the velocity; equal to `in_channels`.
        model_channels: base width; also the width of the sinusoid of time.
        num_res_blocks: residual blocks per resolution on the way down (one more on the way up).
        attention_resolutions: downsampling factors, counted after `patch_size`, at which every residual block is
            followed by attention. The middle block always has it.
        channel_mult: widths of the resolutions as multiples of `model_channels`; its length is the number of
            resolutions.
        num_heads: attention heads, unless `num_head_channels` is given.
        num_head_channels: channels per attention head; -1 follows `num_heads`.
        num_heads_upsample: attention heads on the way up; -1 follows `num_heads`.
        dropout: dropout probability inside the residual blocks, in [0, 1].
        use_scale_shift_norm: time and condition scale and shift the normalizations instead of being added to the
            feature maps.
        conv_resample: resample with learned convolutions.
        resblock_updown: resample inside residual blocks; overrides `conv_resample`.
        condition_dim: width of the condition, for instance of the compound's fingerprint; `None` for an unconditional
            network.
        channel_names: what the channels show, in order.
        patch_size: the network runs on `patch_size` x `patch_size` patches folded into channels, hence at 1 /
            `patch_size` of the resolution.
        prediction_type: what the last layer predicts, `"velocity"` or `"target"` (the treated image x1). `forward`
            returns a velocity in both cases.
        min_time_remaining: with `"target"`, 1 - t is taken to be at least this much when the target is turned into a
            velocity; in (0, 1].
        norm_num_groups: groups of the group normalizations; divides every width.
        condition_norm: what is done to the condition before its linear layer: nothing, as in CellFlux, or a
            normalization of [`normalized_condition`]: `"log1p"`, `"unit_rms"` or `"log1p_unit_rms"`.
            `benchmarks/condition_use.py` measures what they do.
        dose_dim: how many of the condition's last columns are doses (log10 of the concentration in uM, 1 with
            `CompoundEncoder(log_dose=True)`), which `condition_norm` leaves as they are: a dose is not a count, may
            be negative, and must not change the scale of its compound.
        trained_unconditionally: whether training left the condition out at times, which guidance needs; for the record
            only.

    Example:
        >>> unet = CellFluxUNet2DModel.from_preset("tiny", condition_dim=8)
        >>> velocity = unet(torch.randn(2, 3, 16, 16), 0.5, torch.randn(2, 8)).sample
        >>> velocity.shape
        torch.Size([2, 3, 16, 16])
    """

    _supports_gradient_checkpointing = True
    _gradient_checkpointing_func: Callable[..., torch.Tensor]  # diffusers sets it with the switch

    @register_to_config
    def __init__(
        self,
        sample_size: int = 96,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        num_res_blocks: int = 4,
        attention_resolutions: tuple[int, ...] = (2,),
        channel_mult: tuple[float, ...] = (2, 2, 2),
        num_heads: int = 1,
        num_head_channels: int = -1,
        dropout: float = 0.3,
        use_scale_shift_norm: bool = True,
        conv_resample: bool = False,
        resblock_updown: bool = False,
        condition_dim: int | None = 1024,
        channel_names: tuple[str, ...] = ("dna", "tubulin", "actin"),
        patch_size: int = 1,
        prediction_type: str = "velocity",
        min_time_remaining: float = 0.1,
        norm_num_groups: int = 32,
        num_heads_upsample: int = -1,
        condition_norm: str | None = None,
        dose_dim: int = 0,
        trained_unconditionally: bool = True,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        widths = [int(mult * model_channels) for mult in channel_mult]
        self._check_config(widths)
        embedding_dim = 4 * model_channels
        patch_area = patch_size**2

        # 1. Time and condition become one embedding.
        self.time_proj = Timesteps(model_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(model_channels, embedding_dim)
        self.condition_embedding = None if condition_dim is None else nn.Linear(condition_dim, embedding_dim)

        # 2. Down, middle, and up, where every layer takes the skip connection of one feature map of the way down.
        self.conv_in = nn.Conv2d(in_channels * patch_area, widths[0], 3, padding=1)
        self.down_blocks, skip_widths = self._down_blocks(widths)
        width = skip_widths[-1]
        self.mid_block = UNetStage(
            [self._layer(width, width, True, num_heads), self._layer(width, width, False, num_heads)]
        )
        self.up_blocks = self._up_blocks(widths, skip_widths)

        # 3. Out.
        width = widths[0]
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width)
        if patch_size == 1:
            self.conv_out, self.conv_seams = zero_init(nn.Conv2d(width, out_channels, 3, padding=1)), None
        else:
            # Patches are predicted side by side; a convolution across their seams keeps the image free of a grid.
            self.conv_out = nn.Conv2d(width, SEAM_CHANNELS * patch_area, 3, padding=1)
            self.conv_seams = zero_init(nn.Conv2d(SEAM_CHANNELS + in_channels, out_channels, 3, padding=1))

    def _check_config(self, widths: list[int]) -> None:
        config = self.config
        if config.out_channels != config.in_channels:
            raise ValueError(
                f"out_channels is {config.out_channels} and in_channels is {config.in_channels}: "
                "a velocity has the channels of the image, so they must be equal"
            )
        if len(config.channel_names) != config.in_channels:
            raise ValueError(
                f"channel_names {tuple(config.channel_names)} names {len(config.channel_names)} channels, "
                f"but in_channels is {config.in_channels}"
            )
        if config.prediction_type not in PREDICTION_TYPES:
            raise unknown_name("prediction_type", config.prediction_type, PREDICTION_TYPES)
        if config.condition_norm is not None and config.condition_norm not in CONDITION_NORMS:
            raise unknown_name("condition_norm", config.condition_norm, CONDITION_NORMS)
        if config.dose_dim < 0 or config.dose_dim > (config.condition_dim or 0):
            raise ValueError(
                f"dose_dim {config.dose_dim} must be in [0, condition_dim], which is {config.condition_dim}"
            )
        if not 0 < config.min_time_remaining <= 1:
            raise ValueError(f"min_time_remaining must be in (0, 1], got {config.min_time_remaining}")
        for width in widths:
            if width < 1 or width % config.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups {config.norm_num_groups} does not divide a width of {width} channels; "
                    f"the widths are {widths} (channel_mult x model_channels)"
                )
        factors = [2**level for level in range(len(widths))]
        if absent := [factor for factor in config.attention_resolutions if factor not in factors]:
            raise ValueError(
                f"attention_resolutions {absent} never occur: with {len(widths)} resolutions in channel_mult, "
                f"the downsampling factors are {factors}"
            )

    def _down_blocks(self, widths: list[int]) -> tuple[nn.ModuleList, list[int]]:
        """The stages on the way down, and the width of every feature map that is kept for the way up."""
        config, width, skip_widths = self.config, widths[0], [widths[0]]
        stages = nn.ModuleList()
        for level, level_width in enumerate(widths):
            layers = []
            for _ in range(config.num_res_blocks):
                has_attention = 2**level in config.attention_resolutions
                layers.append(self._layer(width, level_width, has_attention, config.num_heads))
                width = level_width
                skip_widths.append(width)
            resampler = None
            if level < len(widths) - 1:
                resampler = self._resampler(Downsample, width)
                skip_widths.append(width)
            stages.append(UNetStage(layers, resampler))
        return stages, skip_widths

    def _up_blocks(self, widths: list[int], skip_widths: list[int]) -> nn.ModuleList:
        """The mirror image."""
        config, width, skip_widths = self.config, skip_widths[-1], list(skip_widths)
        num_heads = config.num_heads if config.num_heads_upsample == -1 else config.num_heads_upsample
        stages = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            layers = []
            for _ in range(config.num_res_blocks + 1):
                has_attention = 2**level in config.attention_resolutions
                layers.append(self._layer(width + skip_widths.pop(), level_width, has_attention, num_heads))
                width = level_width
            stages.append(UNetStage(layers, self._resampler(Upsample, width) if level > 0 else None))
        return stages

    def _layer(self, in_width: int, out_width: int, has_attention: bool, num_heads: int) -> UNetLayer:
        attention = None
        if has_attention:
            heads = self._num_heads(out_width, num_heads)
            attention = SelfAttention(out_width, heads, self.config.norm_num_groups)
        return UNetLayer(self._resnet(in_width, out_width), attention)

    def _resnet(self, in_width: int, out_width: int, resampler: nn.Module | None = None) -> ResnetBlock:
        config = self.config
        return ResnetBlock(
            in_width,
            out_width,
            embedding_dim=4 * config.model_channels,
            dropout=config.dropout,
            use_scale_shift_norm=config.use_scale_shift_norm,
            norm_num_groups=config.norm_num_groups,
            resampler=resampler,
        )

    def _resampler(self, kind: type[Downsample] | type[Upsample], width: int) -> nn.Module:
        if self.config.resblock_updown:
            return self._resnet(width, width, resampler=kind(width, use_conv=False))
        return kind(width, use_conv=self.config.conv_resample)

    def _num_heads(self, width: int, num_heads: int) -> int:
        """Heads of an attention over `width` channels: `num_heads`, unless `num_head_channels` decides."""
        per_head = self.config.num_head_channels
        name, value = ("num_heads", num_heads) if per_head == -1 else ("num_head_channels", per_head)
        if value < 1 or width % value:
            raise ValueError(f"{name} {value} does not divide a width of {width} channels that has attention")
        return num_heads if per_head == -1 else width // per_head

    @classmethod
    def default_config(cls) -> dict[str, Any]:
        """The arguments of the constructor, with their defaults."""
        return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> CellFluxUNet2DModel:
        """Build a network with random weights from one of `PRESETS`.

        Args:
            name: as published with CellFlux, 56 M parameters each: `"bbbc021"`, `"rxrx1"` (6 channels, a 200-d
                gene2vec embedding as condition) and `"cpg0000"` (5 channels of Cell Painting, condition_dim 1224: 1024
                of a fingerprint and 200 of gene2vec, in an order that the publication leaves open). Of the latter two,
                the order of the channels is that of the data sets' documentation; where yours differs, or your
                conditions do, override `channel_names` or `condition_dim`. Also `"small"` (2.3 M, trains on a CPU) and
                `"tiny"` (0.1 M, for tests).
            **overrides: configuration values that differ from the preset's.

        Example:
            >>> unet = CellFluxUNet2DModel.from_preset("small", dropout=0.1)
            >>> CellFluxUNet2DModel.from_preset("tiny", condition_dim=200).config.condition_dim
            200
        """
        return cls(**{**preset_config(name), **overrides})

    @classmethod
    def from_cellflux_checkpoint(
        cls,
        path_or_state_dict: str | os.PathLike | Mapping[str, Any],
        config: Mapping[str, Any] | str | None = None,
        use_ema: bool = True,
    ) -> CellFluxUNet2DModel:
        """Load the weights of the original CellFlux code. Nothing is unpickled beyond tensors and plain values.

        Args:
            path_or_state_dict: a `.safetensors` file, a checkpoint written by `torch.save` (`.pth`), or a dictionary
                of tensors under the original's names, with or without `module.` and `model.` in front.
            config: the original's constructor arguments, this model's, or the name of a preset; what it leaves out
                is inferred from the shapes of the weights. Not visible in the shapes, so taken from this model's
                defaults: `num_heads` (1), `dropout` and `sample_size`. `channel_names` defaults to the order of the
                original's images: actin, tubulin, dna for 3 channels, else `channel_0`, `channel_1`, ...
            use_ema: take the exponential moving average of the weights where the checkpoint has one.

        Returns:
            the network, in evaluation mode.

        Example:
            >>> unet = CellFluxUNet2DModel.from_cellflux_checkpoint("checkpoint.pth")  # doctest: +SKIP
        """
        weights, _ = read_weights(path_or_state_dict, use_ema=use_ema)
        given = preset_config(config) if isinstance(config, str) else dict(config or {})
        unet = cls(**complete_config(given, weights, cls.default_config()))
        new_order = given.get("use_new_attention_order", True)
        unet.load_state_dict(convert_weights(weights, unet, use_new_attention_order=new_order))
        return unet.eval()

    def forward(
        self,
        sample: torch.Tensor,
        timestep: float | torch.Tensor,
        condition: torch.Tensor | None = None,
        condition_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> CellFluxUNet2DOutput | tuple[torch.Tensor]:
        """Predict the velocity dx/dt at `sample`.

        Args:
            sample: `(N, C, H, W)`; images x_t, in [-1, 1] at both ends of the flow.
            timestep: `()` or `(N,)`; t in [0, 1]; 0 = control, 1 = treated.
            condition: `(N, condition_dim)`; for instance Morgan counts; `None` for the unconditional velocity.
            condition_mask: `(N,)`, bool; rows with `False` are unconditional, so that condition dropout and guidance
                run in one forward pass.
            return_dict: return a [`CellFluxUNet2DOutput`] instead of a tuple.

        Returns:
            the velocity `(N, C, H, W)`, in the dtype of `sample`.
        """
        velocity = self.predict(sample, timestep, condition, condition_mask)
        if self.config.prediction_type == "target":
            time_remaining = 1 - self._expand_time(timestep, sample)[:, None, None, None]
            velocity = (velocity - sample) / time_remaining.clamp(min=self.config.min_time_remaining)
            velocity = velocity.to(sample.dtype)
        return CellFluxUNet2DOutput(sample=velocity) if return_dict else (velocity,)

    def predict(
        self,
        sample: torch.Tensor,
        timestep: float | torch.Tensor,
        condition: torch.Tensor | None = None,
        condition_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the network's raw output `(N, C, H, W)`: the velocity or, with `"target"`, the treated image.

        The arguments are those of `forward`. Pretraining takes its loss on this output.
        """
        self._check_inputs(sample, condition, condition_mask)
        time = self._expand_time(timestep, sample)
        size = self._slice_size(sample)
        if size >= len(sample):
            return self._predict(sample, time, condition, condition_mask)
        slices = [slice(start, start + size) for start in range(0, len(sample), size)]
        optional = [[x if x is None else x[rows] for x in (condition, condition_mask)] for rows in slices]
        return torch.cat(
            [self._predict(sample[rows], time[rows], *own) for rows, own in zip(slices, optional, strict=True)]
        )

    def _slice_size(self, sample: torch.Tensor) -> int:
        """How many images go through the network at a time: see `SLICE_BYTES`."""
        if sample.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return len(sample)
        pixels = sample.shape[2] * sample.shape[3] // self.config.patch_size**2
        image_bytes = self.conv_in.out_channels * pixels * self.conv_in.weight.element_size()
        # A power of two, so that batches of usual sizes fall into equal slices: rounding depends on a slice's size.
        return 2 ** max(int(math.log2(SLICE_BYTES / image_bytes)), 0)

    def _predict(
        self,
        sample: torch.Tensor,
        time: torch.Tensor,
        condition: torch.Tensor | None,
        condition_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        # 1. One embedding of time and condition.
        embedding = unrounded(self.time_embedding, self.time_proj(time))
        if condition is not None and self.condition_embedding is not None:
            if self.config.condition_norm is not None:
                condition = normalized_condition(condition, self.config.condition_norm, self.config.dose_dim)
            condition = unrounded(self.condition_embedding, condition)
            if condition_mask is not None:
                condition = torch.where(condition_mask[:, None], condition, 0)
            embedding = embedding + condition

        # 2. Down, keeping every feature map for the way up.
        hidden = unrounded(self.conv_in, F.pixel_unshuffle(sample, self.config.patch_size))
        skips = [hidden]
        for stage in cast("Iterable[UNetStage]", self.down_blocks):
            for layer in stage.layers:
                hidden = self._run(layer, hidden, embedding)
                skips.append(hidden)
            if stage.resampler is not None:
                hidden = stage.resampler(hidden, embedding)
                skips.append(hidden)

        # 3. Middle.
        for layer in self.mid_block.layers:
            hidden = self._run(layer, hidden, embedding)

        # 4. Up. No name keeps hold of a feature map that has been used.
        for stage in cast("Iterable[UNetStage]", self.up_blocks):
            for layer in stage.layers:
                hidden = torch.cat([hidden, skips.pop()], dim=1)
                hidden = self._run(layer, hidden, embedding)
            if stage.resampler is not None:
                hidden = stage.resampler(hidden, embedding)

        # 5. Out.
        hidden = unrounded(self.conv_out, silu(self.conv_norm_out(hidden)))
        if self.conv_seams is not None:
            hidden = silu(F.pixel_shuffle(hidden, self.config.patch_size))
            hidden = unrounded(self.conv_seams, torch.cat([hidden, sample.to(hidden.dtype)], dim=1))
        return hidden.to(sample.dtype)

    def _run(self, layer: nn.Module, hidden: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(layer, hidden, embedding)
        return layer(hidden, embedding)

    @staticmethod
    def _expand_time(timestep: float | torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        # float32 whatever the network's dtype: bfloat16 has fewer than 256 values of t between 0.5 and 1.
        time = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device)
        if time.ndim > 1 or (time.ndim == 1 and len(time) != len(sample)):
            raise ValueError(
                f"timestep has shape {tuple(time.shape)}; expected a number or shape ({len(sample)},), one t per image"
            )
        return time.expand(len(sample))

    def _check_inputs(
        self, sample: torch.Tensor, condition: torch.Tensor | None, condition_mask: torch.Tensor | None
    ) -> None:
        channels, condition_dim = self.config.in_channels, self.config.condition_dim
        if not sample.is_floating_point():
            raise ValueError(f"sample has dtype {sample.dtype}; expected floating point images in [-1, 1]")
        if sample.ndim != 4 or sample.shape[1] != channels:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}; expected (N, {channels}, H, W) "
                f"with the channels {tuple(self.config.channel_names)}"
            )
        divisor = self.config.patch_size * 2 ** (len(self.config.channel_mult) - 1)
        if sample.shape[2] % divisor or sample.shape[3] % divisor:
            height, width = sample.shape[2:]
            raise ValueError(f"sample is {height}x{width} pixels; both must be multiples of {divisor}")
        if condition is None:
            if condition_mask is not None:
                raise ValueError("condition_mask was given without a condition")
            return
        if condition_dim is None:
            raise ValueError(
                f"a condition of shape {tuple(condition.shape)} was given, but this network is unconditional "
                "(condition_dim is None)"
            )
        if condition.shape != (len(sample), condition_dim):
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}; expected ({len(sample)}, {condition_dim}): "
                "one row per image, condition_dim wide"
            )
        if condition_mask is not None and (
            condition_mask.dtype != torch.bool or condition_mask.shape != (len(sample),)
        ):
            raise ValueError(
                f"condition_mask has shape {tuple(condition_mask.shape)} and dtype {condition_mask.dtype}; "
                f"expected ({len(sample)},) and torch.bool"
            )
