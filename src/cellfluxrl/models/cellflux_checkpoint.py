"""Reading the weights of the original CellFlux code into a `CellFluxUNet2DModel`.

Three questions, in this order: which tensors does the file hold (`read_weights`), what network do they belong to
(`complete_config`), and what is each of them called here (`convert_weights`). The original numbers its blocks through
and holds them in sequential containers; `original_names` walks our network in the same order instead of listing names.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from cellfluxrl.errors import unknown_name
from cellfluxrl.models.presets import preset_config
from cellfluxrl.models.unet_blocks import Downsample, ResnetBlock, SelfAttention, Upsample

logger = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]

# What the original calls the parts of each of our modules.
ORIGINAL_PARTS: dict[type[nn.Module], dict[str, str]] = {
    ResnetBlock: {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "embedding_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    SelfAttention: {"norm": "norm", "to_qkv": "qkv", "to_out": "proj_out"},
    Downsample: {"conv": "op"},
    Upsample: {"conv": "conv"},
}

# Constructor arguments of the original that have no counterpart here, with the only values this network can express.
UNSUPPORTED_UNLESS = {"dims": 2, "num_classes": None, "with_fourier_features": False}
# ... and those that do not change the network's output, or are dealt with apart.
NOT_CONFIGURATION = ("use_checkpoint", "use_new_attention_order")

# The order in which CellFlux's BBBC021 crops store the channels.
BBBC021_CHANNEL_NAMES = ("actin", "tubulin", "dna")


def read_weights(source: str | os.PathLike | Mapping[str, Any], *, use_ema: bool = True) -> tuple[Weights, str]:
    """Read the network's tensors, under the original's names without prefixes, and say which of the file's they are.

    Args:
        source: a `.safetensors` file, a file written by `torch.save`, or what such a file holds: a state dict, or a
            checkpoint with a state dict under `"model"`.
        use_ema: take the moving average where there is one: `shadow_params.N` within the state dict, or under
            `"model_ema"` or `"ema"` (a list in the order of the state dict, or by name).
    """
    content = source if isinstance(source, Mapping) else _load_file(Path(source))
    checkpoint = content if isinstance(content.get("model"), Mapping) else {"model": content}
    weights = _without_prefixes(checkpoint["model"])
    ema = _shadow_params(checkpoint["model"]) or checkpoint.get("model_ema") or checkpoint.get("ema")
    if not use_ema:
        taken = "the raw weights, as asked"
    elif not ema:
        taken = "the raw weights, it holds no moving average (EMA)"
    elif not isinstance(source, Mapping) and Path(source).suffix == ".safetensors":
        raise ValueError(
            f"{str(source)!r} holds its moving average as numbered shadow_params, and a safetensors file does not "
            "keep the order that they refer to; take the original file, or pass use_ema=False for the raw weights"
        )
    else:
        taken = "the moving average (EMA) of the weights"
        weights = _ema_weights(ema, weights)
    logger.info("CellFlux checkpoint: took %s", taken)
    return weights, taken


def _load_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no CellFlux checkpoint at {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        # The published checkpoints hold their command line. A Namespace is plain data; any other class is refused.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on arbitrary bytes an unpickler may raise anything
        raise ValueError(_refusal(path, error)) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}; expected a state dict or a checkpoint")
    return content


def _refusal(path: Path, error: Exception) -> str:
    # Only the cause: torch's message also advises loading the file unsafely.
    message = str(error) or type(error).__name__
    if foreign := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"refused to read {str(path)!r}: it asks for {foreign[1]!r}, and a checkpoint may only hold tensors, "
            "plain values and argparse.Namespace; nothing in it was executed"
        )
    cause = re.search(r"WeightsUnpickler error: (.*)", message)
    cause = cause[1] if cause else f"{type(error).__name__}: {message.splitlines()[0]}"
    return f"refused to read {str(path)!r}, not a complete checkpoint of plain tensors: {cause[:200]}"


def _shadow_params(entries: Mapping[str, Any]) -> list[torch.Tensor]:
    numbered = {
        int(match[1]): tensor
        for name, tensor in entries.items()
        if (match := re.search(r"(?:^|\.)shadow_params\.(\d+)$", name))
    }
    return [numbered[number] for number in sorted(numbered)]


def _without_prefixes(entries: Mapping[str, Any]) -> Weights:
    """Undo the wrappers (`module.` of DataParallel, `model.` of the EMA); what lies beside a wrapped network goes."""
    weights = {
        name: value
        for name, value in entries.items()
        if isinstance(value, torch.Tensor) and ".shadow_params." not in f".{name}"
    }
    beside: list[str] = []
    while prefix := next((p for p in ("module.", "model.") if any(name.startswith(p) for name in weights)), None):
        beside += [name for name in weights if not name.startswith(prefix)]
        weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if beside:
        logger.info("CellFlux checkpoint: left out what is not the network's: %s", _first_few(beside))
    return weights


def _ema_weights(ema: Any, weights: Weights) -> Weights:
    if isinstance(ema, Mapping):
        ema = ema.get("shadow_params") or _shadow_params(ema) or _without_prefixes(ema)
    if isinstance(ema, Mapping):
        return dict(ema)
    if len(ema) != len(weights):
        raise ValueError(
            f"the checkpoint's EMA has {len(ema)} tensors and its network {len(weights)}; "
            "pass use_ema=False for the raw weights"
        )
    # The moving average is stored without names, in the order of the network's parameters.
    for number, (shadow, (name, raw)) in enumerate(zip(ema, weights.items(), strict=True)):
        if shadow.shape != raw.shape:
            raise ValueError(
                f"shadow_params.{number} has shape {tuple(shadow.shape)}, but {name} in its place has "
                f"{tuple(raw.shape)}: the file does not keep the network's order; "
                "pass use_ema=False for the raw weights"
            )
    return dict(zip(weights, ema, strict=True))


def complete_config(config: Mapping[str, Any], weights: Weights, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the original's constructor arguments, or this model's, and infer from the weights what is not given.

    `defaults` are the arguments of `CellFluxUNet2DModel`, with their defaults.
    """
    only_original = (*UNSUPPORTED_UNLESS, *NOT_CONFIGURATION)
    given = {name: value for name, value in config.items() if name not in only_original}
    for name in given:
        if name not in defaults:
            raise unknown_name("CellFlux configuration entry", name, [*defaults, *only_original])
    for name, supported in UNSUPPORTED_UNLESS.items():
        if config.get(name, supported) != supported:
            raise ValueError(f"{name}={config[name]!r} is not supported; only {supported!r} is")

    inferred = infer_config(weights)
    complete = {**inferred, **given}
    # The original passes over factors that its network never reaches; ours refuses them.
    factors = [2**level for level in range(len(complete["channel_mult"]))]
    complete["attention_resolutions"] = tuple(f for f in complete["attention_resolutions"] if f in factors)
    if "channel_names" not in complete:
        complete["channel_names"] = _channel_names(complete["in_channels"], recognized_preset(inferred, defaults))
    return complete


def recognized_preset(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> str | None:
    """Name the published network that has every entry of an inferred configuration, or `None`.

    `defaults` are the arguments of `CellFluxUNet2DModel`, which presets leave out.
    """
    for name in ("bbbc021", "rxrx1", "cpg0000"):
        published = {**defaults, **preset_config(name)}
        if all(published.get(entry) == value for entry, value in config.items()):
            return name
    return None


def _channel_names(channels: int, preset: str | None) -> tuple[str, ...]:
    if channels == len(BBBC021_CHANNEL_NAMES):
        return BBBC021_CHANNEL_NAMES
    return preset_config(preset)["channel_names"] if preset else tuple(f"channel_{i}" for i in range(channels))


def infer_config(weights: Weights) -> dict[str, Any]:
    """Read from the names and shapes of the weights what they say about the network's configuration."""

    def shape(name: str) -> torch.Size:
        if name not in weights:
            raise ValueError(f"not a CellFlux network: {name!r} is missing among {_first_few(weights)}")
        return weights[name].shape

    def blocks_with(pattern: str) -> set[int]:
        return {int(match[1]) for name in weights if (match := re.match(pattern, name))}

    model_channels = shape("time_embed.0.weight")[1]
    # A block that resamples has no parameters (pooling), one convolution, or a residual block, which
    # on the way up shares the block of the layer before it.
    num_blocks = max(blocks_with(r"output_blocks\.(\d+)\."), default=-1) + 1
    poolings = set(range(num_blocks)) - blocks_with(r"input_blocks\.(\d+)\.")
    convolutions = blocks_with(r"input_blocks\.(\d+)\.0\.op\.")
    resblocks = blocks_with(r"output_blocks\.(\d+)\.[12]\.in_layers\.")
    num_levels = len(poolings | convolutions | resblocks) + 1
    per_level, remainder = divmod(num_blocks, num_levels)
    if remainder or per_level < 2:
        raise ValueError(
            f"not a CellFlux network: {num_blocks} output blocks do not make {num_levels} levels; "
            f"found {_first_few(weights)}"
        )

    first_blocks = [f"input_blocks.{level * per_level + 1}" for level in range(num_levels)]
    widths = [shape(f"{block}.0.in_layers.2.weight")[0] for block in first_blocks]
    condition = weights.get("mol_embed_transform.weight")
    return {
        "in_channels": shape("input_blocks.0.0.weight")[1],
        "out_channels": shape("out.2.weight")[0],
        "model_channels": model_channels,
        "num_res_blocks": per_level - 1,
        "attention_resolutions": tuple(
            2**level for level, block in enumerate(first_blocks) if f"{block}.1.qkv.weight" in weights
        ),
        "channel_mult": tuple(_multiple(width, model_channels) for width in widths),
        "use_scale_shift_norm": shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0],
        "conv_resample": bool(convolutions),
        "resblock_updown": bool(resblocks),
        "condition_dim": None if condition is None else condition.shape[1],
    }


def _multiple(width: int, model_channels: int) -> float:
    multiple = width / model_channels
    # The network truncates multiple * model_channels, so the quotient must not be rounded down.
    return multiple if int(multiple * model_channels) == width else math.nextafter(multiple, math.inf)


def convert_weights(weights: Weights, unet: nn.Module, *, use_new_attention_order: bool = True) -> Weights:
    """Return all weights, under the original's names, as a state dict of `unet`.

    With `use_new_attention_order` the original computed queries, keys and values first and split them into heads next;
    without, it did the reverse, and the rows are reordered.
    """
    names = original_names(unet)
    if missing := [name for name in names if name not in weights]:
        raise ValueError(f"the checkpoint lacks {len(missing)} weights of this network: {_first_few(missing)}")
    if unexpected := [name for name in weights if name not in names]:
        raise ValueError(f"the checkpoint has {len(unexpected)} weights too many: {_first_few(unexpected)}")
    expected = {name: parameter.shape for name, parameter in unet.named_parameters()}
    for original, name in names.items():
        if weights[original].shape != expected[name]:
            raise ValueError(
                f"{original} has shape {tuple(weights[original].shape)} in the checkpoint; this network needs "
                f"{tuple(expected[name])} (its {name})"
            )

    state_dict = {name: weights[original] for original, name in names.items()}
    if not use_new_attention_order:
        for module_name, module in unet.named_modules():
            if isinstance(module, SelfAttention):
                for name in (f"{module_name}.to_qkv.weight", f"{module_name}.to_qkv.bias"):
                    by_head = state_dict[name].unflatten(0, (module.num_heads, 3, -1))
                    state_dict[name] = by_head.transpose(0, 1).flatten(0, 2)
    return state_dict


def original_names(unet: nn.Module) -> dict[str, str]:
    """Map the original's name of every parameter of `unet` to its name here, derived from the network's structure.

    `"input_blocks.1.0.in_layers.2.weight"`, for instance, is `"down_blocks.0.layers.0.resnet.conv1.weight"` here.
    """
    module_names = {module: name for name, module in unet.named_modules()}
    names = {}
    for original, module in _original_modules(unet):
        parts = ORIGINAL_PARTS.get(type(module))
        for parameter_name, _ in module.named_parameters():
            part, _, leaf = parameter_name.rpartition(".")
            original_part = "" if parts is None else parts[part] + "."
            names[f"{original}.{original_part}{leaf}"] = f"{module_names[module]}.{parameter_name}"
    return names


def _original_modules(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the original's name of each of our modules, in the order of the forward pass."""

    def sequence(name: str, *modules: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
        present = [module for module in modules if module is not None]
        return ((f"{name}.{position}", module) for position, module in enumerate(present))

    yield "time_embed.0", unet.time_embedding.linear_1
    yield "time_embed.2", unet.time_embedding.linear_2
    if unet.condition_embedding is not None:
        yield "mol_embed_transform", unet.condition_embedding

    # On the way down, the first convolution, every layer and every resampler is one numbered block ...
    number = count()
    yield from sequence(f"input_blocks.{next(number)}", unet.conv_in)
    for stage in unet.down_blocks:
        for layer in stage.layers:
            yield from sequence(f"input_blocks.{next(number)}", layer.resnet, layer.attention)
        if stage.resampler is not None:
            yield from sequence(f"input_blocks.{next(number)}", stage.resampler)

    first, second = unet.mid_block.layers
    yield from sequence("middle_block", first.resnet, first.attention, second.resnet)

    # ... while on the way up a resampler belongs to the block of the stage's last layer.
    number = count()
    for stage in unet.up_blocks:
        for layer in stage.layers:
            resampler = stage.resampler if layer is stage.layers[-1] else None
            yield from sequence(f"output_blocks.{next(number)}", layer.resnet, layer.attention, resampler)

    yield "out.0", unet.conv_norm_out
    yield "out.2", unet.conv_out


def _first_few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
