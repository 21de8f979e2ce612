"""Following a velocity from source to target; every sample of the package is made by this loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Scheduler(Protocol):
    """What an integration needs of [`CellFluxFlowMatchScheduler`]."""

    timesteps: torch.Tensor

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None) -> None:
        """Lay the time grid."""
        ...

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *, return_dict: bool) -> Any:
        """The next sample and, from schedulers that know it, the target that the velocity points at."""
        ...


@dataclass
class FlowState:
    """Where an integration is.

    Args:
        sample: `(N, ...)`; x at the end of what was evaluated. Whoever changes it lets the integration continue there.
        target: `(N, ...)`; where the last velocity points at t = 1, if the scheduler says it.
    """

    sample: torch.Tensor
    target: torch.Tensor | None = None


def integration_steps(
    velocity: Velocity, scheduler: Scheduler, sample: torch.Tensor, timesteps: Iterable[torch.Tensor] | None = None
) -> Iterator[FlowState]:
    """Solve dx/dt = v(x, t), one evaluation of the velocity after the other.

    Args:
        velocity: v, from samples `(N, ...)` and a time to velocities `(N, ...)`.
        scheduler: Has laid its grid.
        sample: `(N, ...)`; the samples where the grid begins.
        timesteps: Those of the scheduler that are still to come and shall be taken; by default all.

    Yields:
        The same state after each evaluation. Stop iterating, and the integration stops.

    Example:
        >>> for state in integration_steps(velocity, scheduler, source):     # doctest: +SKIP
        ...     print(state.sample.std(), state.target.std())
    """
    state = FlowState(sample)
    for t in scheduler.timesteps if timesteps is None else timesteps:
        model_output = velocity(state.sample, t)
        state.sample, *rest = scheduler.step(model_output, t, state.sample, return_dict=False)
        state.target = rest[0] if rest else None
        yield state


def solve(
    velocity: Velocity, scheduler: Scheduler, sample: torch.Tensor, timesteps: Iterable[torch.Tensor] | None = None
) -> FlowState:
    """Take all of the [`integration_steps`], and return where they end."""
    state = FlowState(sample)
    for step in integration_steps(velocity, scheduler, sample, timesteps):
        state = step
    return state


@torch.no_grad()
def integrate(
    model: torch.nn.Module,
    scheduler: Scheduler,
    source: torch.Tensor,
    condition: torch.Tensor | None,
    num_inference_steps: int,
) -> torch.Tensor:
    """Move sources along the velocity of a model from t = 0 to t = 1, without guidance.

    Args:
        model: A velocity model, called as [`CellFluxUNet2DModel`] is.
        scheduler: Its grid is laid anew.
        source: `(N, ...)`; x_0, noise included.
        condition: `(N, D)`, or `None` for an unconditional model.
        num_inference_steps: Steps of the scheduler.

    Returns:
        `(N, ...)`; x_1.
    """

    def velocity(sample: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return model(sample, t, condition, return_dict=False)[0].float()

    scheduler.set_timesteps(num_inference_steps, device=source.device)
    return solve(velocity, scheduler, source).sample
