"""Models so small that a test can afford them."""

import torch

IMAGE_SIZE = 16


def with_random_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Leave no layer at zero, so that every parameter has a say in the output."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return model.eval()
