r"""Solvers of dx/dt = v(x, t): each gives the state at any time of a step from what was evaluated so far.

All are explicit, deterministic and valid for any distribution at t = 0. A *Runge-Kutta* solver evaluates the velocity
several times a step and forgets it afterwards; a *multistep* solver evaluates once and remembers the step before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cellfluxrl.flow.paths import per_sample


@dataclass(frozen=True)
class Evaluation:
    """What the model said: the `velocity` (N, ...) of `sample` (N, ...) at `time`."""

    time: float
    sample: torch.Tensor
    velocity: torch.Tensor

    @property
    def target(self) -> torch.Tensor:
        """Where the velocity points at t = 1: x_1 = x_t + (1 - t) v."""
        return torch.add(self.sample, self.velocity, alpha=1 - self.time)


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta solver with a continuous extension (Hairer, Norsett and Wanner, 1993, section II.6).

    Args:
        order: The error at the end of the grid falls with this power of the step.
        nodes: Where in the step each stage is evaluated, in units of the step; the first is 0.
        matrix: Row i holds the weights of the velocities so far that lead to stage i.
        weights: Row i holds the coefficients of theta, theta^2, ... of the weight of velocity i in the state at the
            share theta of the step; their sums are the weights at the end of the step. The error inside a step is of
            the same order as that at its end.
    """

    order: int
    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]

    def stage(self, evaluations: Sequence[Evaluation], step: float) -> torch.Tensor:
        """The sample to evaluate next, within a step of the length `step` that began with `evaluations[0]`."""
        return _combine(evaluations, [step * a for a in self.matrix[len(evaluations)]])

    def state(self, evaluations: Sequence[Evaluation], step: float, theta: float = 1.0) -> torch.Tensor:
        """The state at the share `theta` of a step whose stages have all been evaluated."""
        shares = [sum(w * theta**power for power, w in enumerate(row, start=1)) for row in self.weights]
        return _combine(evaluations, [step * share for share in shares])


def _combine(evaluations: Sequence[Evaluation], factors: Sequence[float]) -> torch.Tensor:
    """The sample of the first evaluation plus a weighted sum of the velocities."""
    terms = [(e.velocity, f) for e, f in zip(evaluations, factors, strict=True) if f != 0]
    if not terms:
        return evaluations[0].sample
    state = torch.add(evaluations[0].sample, terms[0][0], alpha=terms[0][1])
    for velocity, factor in terms[1:]:
        state.add_(velocity, alpha=factor)
    return state


RUNGE_KUTTA: dict[str, RungeKutta] = {
    "euler": RungeKutta(order=1, nodes=(0,), matrix=((),), weights=((1,),)),
    "midpoint": RungeKutta(order=2, nodes=(0, 1 / 2), matrix=((), (1 / 2,)), weights=((1, -1), (0, 1))),
    "heun": RungeKutta(order=2, nodes=(0, 1), matrix=((), (1,)), weights=((1, -1 / 2), (0, 1 / 2))),
    "rk4": RungeKutta(
        order=4,
        nodes=(0, 1 / 2, 1 / 2, 1),
        matrix=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        weights=((1, -3 / 2, 2 / 3), (0, 1, -2 / 3), (0, 1, -2 / 3), (0, -1 / 2, 2 / 3)),
    ),
}


def adams_bashforth_2(now: Evaluation, before: Evaluation | None, time: float) -> torch.Tensor:
    r"""Continue the velocity as the straight line through its last two values, and integrate that to `time`.

    `x(t) = x_n + h v_n + h^2 / 2 (v_n - v_{n-1}) / (t_n - t_{n-1})` with h = t - t_n. The first step is Euler's: one
    step of error h^2 leaves the whole at second order, whatever the grid.
    """
    step = time - now.time
    state = torch.add(now.sample, now.velocity, alpha=step)
    if before is not None:
        weight = step**2 / 2 / (now.time - before.time)
        state.add_(now.velocity - before.velocity, alpha=weight)
    return state


def exponential_adams_bashforth_2(now: Evaluation, before: Evaluation | None, time: float) -> torch.Tensor:
    r"""Do the same to the predicted target D = x + (1 - t) v, and solve dx/dt = (D - x) / (1 - t) exactly.

    With D continued as a straight line in t, `x(t) = x_n + h v_n + w (D_n - D_{n-1}) / (t_n - t_{n-1})`, where
    h = t - t_n and `w = (1 - t) int_{t_n}^t (s - t_n) / (1 - s)^2 ds = h - (1 - t) log((1 - t_n) / (1 - t))`.
    This is DPM-Solver++(2M) (Lu et al., 2022) for paths x_t = (1 - t) x_0 + t x_1 from any source, except that D is
    continued in t and not in log(1 - t), which is infinite at t = 1. The first step is Euler's, as above.
    """
    step = time - now.time
    state = torch.add(now.sample, now.velocity, alpha=step)
    if before is not None:
        remaining = 1 - time
        weight = step - (remaining * math.log((1 - now.time) / remaining) if remaining > 0 else 0)
        state.add_(now.target - before.target, alpha=weight / (now.time - before.time))
    return state


def straight_before(now: Evaluation, before: Evaluation, renewed: torch.Tensor) -> Evaluation:
    """`before`, with what the samples that are `renewed` (N,) would have been had they moved in a straight line since.

    Velocity and predicted target are then those of `now`, which makes the next step of any multistep solver Euler's.
    """
    renewed = per_sample(renewed, now.sample)
    sample = torch.add(now.sample, now.velocity, alpha=before.time - now.time)
    return Evaluation(
        before.time,
        torch.where(renewed, sample, before.sample),
        torch.where(renewed, now.velocity, before.velocity),
    )


MULTISTEP: dict[str, Callable[[Evaluation, Evaluation | None, float], torch.Tensor]] = {
    "ab2": adams_bashforth_2,
    "exponential_ab2": exponential_adams_bashforth_2,
}

SOLVERS = (*RUNGE_KUTTA, *MULTISTEP)
