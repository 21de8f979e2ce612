"""Low-rank adapters (LoRA) instead of full fine-tuning, through peft."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cellfluxrl.checkpoints import frozen_copy


def add_lora(model: nn.Module, rank: int, seed: int = 0) -> nn.Module:
    """Freeze a model, in place, and add trainable low-rank updates to its linear layers and convolutions.

    At first they change nothing. The first convolution, which is small, and attention, which applies the weights of
    its projections without calling the layers, are left as they are.

    Args:
        model: A [`CellFluxUNet2DModel`] or any other network.
        rank: Of the updates, which are scaled by 2 (alpha = 2 rank, as in DiffusionNFT).
        seed: Of their initial weights.

    Returns:
        `model`.

    Raises:
        ImportError: If peft is not installed.
        ValueError: If the rank is not positive.
    """
    if rank < 1:
        raise ValueError(f"lora_rank must be at least 1, got {rank}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("use_lora needs peft: pip install 'cellfluxrl[lora]'") from error
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name != "conv_in"
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), model)


def merged(model: nn.Module) -> nn.Module:
    """A copy of a model with its low-rank updates, if it has any, added to its weights: the plain architecture."""
    model = frozen_copy(model)
    layers: list[tuple[str, Any]] = list(model.named_modules())
    for name, layer in layers:
        if hasattr(layer, "get_base_layer"):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
    return model
