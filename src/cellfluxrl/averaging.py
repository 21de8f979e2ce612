"""Copies of a network whose weights follow its own."""

import copy

import torch


def frozen_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in evaluation mode that shares no memory and gets no gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move the weights of `average` towards those of `model`: a <- decay a + (1 - decay) m."""
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(m, 1 - decay)
