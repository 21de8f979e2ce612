"""Small networks with random weights, which the tests of the network and of its checkpoints share."""

import runpy
from pathlib import Path

import torch

from cellfluxrl.models.cellflux_checkpoint import original_names
from cellfluxrl.models.unet import CellFluxUNet2DModel

PlainUNet = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "plain_unet.py"))["PlainUNet"]

TINY_ORIGINAL = {"patch_size": 1, "prediction_type": "velocity"}  # of the shapes that the original can have


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Leave no layer at zero, so that every parameter has a say in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model.eval()


def tiny(**overrides) -> CellFluxUNet2DModel:
    return randomized(CellFluxUNet2DModel.from_preset("tiny", **{"condition_dim": 8, **overrides}))


def original_state_dict(unet: CellFluxUNet2DModel) -> dict[str, torch.Tensor]:
    own = unet.state_dict()
    return {original: own[name].clone() for original, name in original_names(unet).items()}


def draw_inputs(channels: int = 3, condition_dim: int | None = 8, size: int = 16) -> tuple:
    """Four images, times and conditions."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(4, channels, size, size, generator=generator)
    condition = None if condition_dim is None else torch.randn(4, condition_dim, generator=generator)
    return sample, torch.tensor([0.0, 0.3, 0.7, 1.0]), condition
