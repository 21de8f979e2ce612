"""Turn a checkpoint of the original CellFlux code into a pipeline folder of safetensors.

Only tensors and plain values are read: what else a pickle asks for is refused, and not executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cellfluxrl.models.cellflux_checkpoint import (
    complete_config,
    convert_weights,
    infer_config,
    read_weights,
    recognized_preset,
)
from cellfluxrl.models.compound_encoder import CompoundEncoder
from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.pipelines.cellflux import CellFluxPipeline
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler


def convert_checkpoint(
    checkpoint: str | Path, output_dir: str | Path, *, use_ema: bool = True, config: dict[str, Any] | None = None
) -> dict[str, str]:
    """Write a published CellFlux checkpoint as a pipeline folder.

    Args:
        checkpoint: File written by `torch.save`, or `.safetensors`.
        output_dir: New or empty folder.
        use_ema: Take the moving average of the weights where the checkpoint has one.
        config: What the weights do not show, as for [`CellFluxUNet2DModel.from_cellflux_checkpoint`]:
            `channel_names`, `num_heads`, ...

    Returns:
        What was found and written, in words.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        FileExistsError: If the folder holds anything.
        ValueError: If the file is not a checkpoint of plain tensors, or not of a CellFlux network.

    Example:
        >>> convert_checkpoint("checkpoint.pth", "runs/cellflux")["weights"]                       # doctest: +SKIP
        'the moving average (EMA) of the weights'
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(f"{str(output_dir)!r} exists and is not an empty folder; name a new one")

    # 1. The weights, and the network that they are of
    config, defaults = config or {}, CellFluxUNet2DModel.default_config()
    weights, taken = read_weights(checkpoint, use_ema=use_ema)
    preset = recognized_preset(infer_config(weights), defaults)
    if broken := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"{len(broken)} weights of the checkpoint hold NaN or infinity, {broken[0]} for one")
    unet = CellFluxUNet2DModel(**complete_config(config, weights, defaults)).eval()
    new_order = config.get("use_new_attention_order", True)
    unet.load_state_dict(convert_weights(weights, unet, use_new_attention_order=new_order))

    # 2. The rest of the pipeline, set as CellFlux samples
    scheduler = CellFluxFlowMatchScheduler(solver="heun", time_grid="edm", source_noise="white", source_noise_scale=1)
    encoder = CompoundEncoder()
    width = unet.config.condition_dim
    if width == encoder.fingerprints.shape[1]:
        written = f"CellFluxPipeline with {len(encoder.names)} compounds"
        CellFluxPipeline(unet=unet, scheduler=scheduler, encoder=encoder).save_pretrained(output_dir)
    else:
        written = f"network and scheduler only: its conditions, {width} wide, are not fingerprints of compounds"
        unet.save_pretrained(output_dir / "unet")
        scheduler.save_pretrained(output_dir / "scheduler")

    return {
        "weights": taken,
        "network": _describe(unet, preset),
        "channels": ", ".join(unet.config.channel_names),
        "sampler": "Heun on the EDM grid with white source noise, as CellFlux",
        "written": f"{written}, to {output_dir}",
    }


def _describe(unet: CellFluxUNet2DModel, preset: str | None) -> str:
    size = f"{sum(parameter.numel() for parameter in unet.parameters()):,} parameters"
    if preset:
        return f"preset {preset!r}, {size}"
    config = unet.config
    visible = ("model_channels", "channel_mult", "num_res_blocks", "attention_resolutions", "condition_dim")
    shape = ", ".join(f"{name} {config[name]}" for name in visible)
    return f"none of the presets, {size}: {shape}; num_heads {config.num_heads} is not visible in the weights"
