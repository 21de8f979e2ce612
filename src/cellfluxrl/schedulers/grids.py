"""Time grids from t = 0, the control, to t = 1, the treated image."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch

from cellfluxrl.errors import unknown_name

TIME_GRIDS = ("uniform", "edm")


def edm_times(num_steps: int) -> torch.Tensor:
    """Times of the EDM noise levels (Karras et al., 2022, eq. 5) under t = 1 / (1 + sigma), ending at t = 1.

    Returns:
        `torch.Tensor` of shape `(num_steps + 1,)`, float64, increasing from 1 / (1 + 80) = 0.0123.
    """
    rho, sigma_min, sigma_max = 7.0, 0.002, 80.0
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64) if num_steps > 1 else torch.zeros(1).double()
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([1 / (1 + sigmas), torch.ones(1, dtype=torch.float64)])


def make_grid(name: str, num_steps: int) -> torch.Tensor:
    """Lay one of `TIME_GRIDS`.

    Returns:
        `torch.Tensor` of shape `(num_steps + 1,)`, float64, increasing to 1.

    Raises:
        ValueError: If `num_steps` is not an integer of at least 1, or the name is unknown.

    Example:
        >>> make_grid("uniform", 4).tolist()
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral):
        raise ValueError(f"num_inference_steps must be an integer, got {num_steps!r}")
    if num_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_steps}")
    if name == "uniform":
        return torch.linspace(0, 1, int(num_steps) + 1, dtype=torch.float64)
    if name == "edm":
        return edm_times(int(num_steps))
    raise unknown_name("time_grid", name, TIME_GRIDS)


def as_grid(times: torch.Tensor | Sequence[float]) -> torch.Tensor:
    """Check a custom grid, which may run in either direction.

    Returns:
        `torch.Tensor` of shape `(len(times),)`, float64, on the CPU.

    Raises:
        ValueError: Unless it is two or more times in [0, 1] that only increase or only decrease.
    """
    grid = torch.as_tensor(times, dtype=torch.float64).cpu()
    steps = grid.diff() if grid.ndim == 1 else grid
    inside = bool(((grid >= 0) & (grid <= 1)).all())  # False for NaN
    if grid.ndim != 1 or len(grid) < 2 or not inside or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(
            f"a custom grid needs two or more times in [0, 1] that only increase or only decrease, got {grid.tolist()}"
        )
    return grid
