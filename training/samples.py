"""Pictures of what a policy samples from fixed controls, conditions and noise: its progress, and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from cellfluxrl.figures import image_grid, outlined
from cellfluxrl.flow.integration import integrate
from cellfluxrl.schedulers.flow_match import CellFluxFlowMatchScheduler


def save_sample_grid(
    model: torch.nn.Module,
    scheduler: CellFluxFlowMatchScheduler,
    controls: torch.Tensor,
    conditions: torch.Tensor,
    noise: torch.Tensor,
    path: str | Path,
    num_inference_steps: int = 4,
) -> Image.Image:
    """Sample from given starts, and write controls and samples below each other as a PNG.

    Same model and inputs, same picture: the model is put into evaluation mode for the while, nothing is drawn at
    random, and the random state of the process is left alone.

    Args:
        model: The velocity model; averaged weights show progress best.
        scheduler: The solver.
        controls: `(N, C, H, W)`; control cells in [-1, 1], one a column.
        conditions: `(N, D)`; encoded compound of each.
        noise: `(N, C, H, W)`, or `(K, N, C, H, W)`; source noise; K rows of samples.
        path: Of the PNG file; its folder is made.
        num_inference_steps: Steps of the solver.

    Raises:
        ValueError: If the noise does not belong to the controls.

    Example:
        >>> noise = torch.stack([scheduler.sample_source_noise(tuple(controls.shape), generator) for _ in range(3)])
        ... # doctest: +SKIP
        >>> save_sample_grid(model, scheduler, controls, conditions, noise, "samples/000050.png")  # doctest: +SKIP
    """
    noise = noise[None] if noise.ndim == controls.ndim else noise
    if noise.shape[1:] != controls.shape:
        raise ValueError(f"noise must be of shape {tuple(controls.shape)} a row, got {tuple(noise.shape[1:])}")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        sources, conditions = (controls + noise).to(device), conditions.to(device)
        samples = [integrate(model, scheduler, source, conditions, num_inference_steps).cpu() for source in sources]
    finally:
        model.train(was_training)
    rows = {"control": outlined(controls.cpu())}
    for k, sample in enumerate(samples):
        rows["sample" if len(samples) == 1 else f"sample {k + 1}"] = outlined(sample.float().clamp(-1, 1))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return image_grid(rows, path)
