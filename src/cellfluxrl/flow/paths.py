"""The straight path from a source to a target, the velocity along it, and the loss that a network learns it by."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PREDICTION_TYPES = ("velocity", "target")
# A network that predicts targets need not divide by less than this share of the path (see `flow_matching_loss`).
LEAST_REMAINING = 0.1


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give `(N,)` values, or a single one, the rank of `(N, ...)` samples, so that each goes with its sample.

    Example:
        >>> per_sample(torch.zeros(8), like=torch.zeros(8, 3, 16, 16)).shape
        torch.Size([8, 1, 1, 1])
    """
    return values if values.ndim == 0 else values.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class PathSample:
    """Points on the straight paths from sources x_0 to targets x_1 (Lipman et al., 2023; Liu et al., 2023).

        x_t = (1 - t) x_0 + t x_1        u = dx_t/dt = x_1 - x_0

    Args:
        x_0: `(N, ...)`; the sources: controls with their noise.
        x_1: `(N, ...)`; the targets: treated samples.
        t: `(N,)`, or a single time for all; in [0, 1].

    Example:
        >>> path = PathSample(torch.zeros(1, 2), torch.tensor([[4.0, 8.0]]), torch.tensor([0.25]))
        >>> path.x_t.tolist(), path.velocity.tolist()
        ([[1.0, 2.0]], [[4.0, 8.0]])
    """

    x_0: torch.Tensor
    x_1: torch.Tensor
    t: torch.Tensor

    @property
    def x_t(self) -> torch.Tensor:
        """x_t = (1 - t) x_0 + t x_1."""
        t = per_sample(self.t, self.x_0)
        return (1 - t) * self.x_0 + t * self.x_1

    @property
    def velocity(self) -> torch.Tensor:
        """The velocity u = x_1 - x_0."""
        return self.x_1 - self.x_0

    def to(self, device: torch.device) -> PathSample:
        """The same points on another device."""
        return PathSample(self.x_0.to(device), self.x_1.to(device), self.t.to(device))


def draw_times(count: int, generator: torch.Generator, mean: float = 1.2, std: float = 1.2) -> torch.Tensor:
    """Training times t = sigmoid(N(mean, std)), `(count,)`; the defaults, with a mean t of 0.72, are CellFlux's."""
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator))


def flow_matching_loss(velocity: torch.Tensor, path: PathSample, prediction_type: str = "velocity") -> torch.Tensor:
    """How far a network is from the velocity of the path: |v - u|^2, the mean over the values of each sample.

    For a network that predicts the target, `prediction_type="target"`, it is |x_t + (1 - t) v - x_1|^2, the error of
    that prediction; 1 - t is taken to be 0.1 at least, as in the network's own velocity.

    Args:
        velocity: `(N, ...)`; v, what the network says at `path.x_t` and `path.t`.
        path: The points.
        prediction_type: One of `PREDICTION_TYPES`.

    Returns:
        `(N,)`.
    """
    if prediction_type == "target":
        remaining = per_sample((1 - path.t).clamp(min=LEAST_REMAINING), velocity)
        error = path.x_t + remaining * velocity - path.x_1
    else:
        error = velocity - path.velocity
    return error.square().flatten(1).mean(1)
