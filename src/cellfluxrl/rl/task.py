"""What the trainer asks of a task: starts, fresh couplings, times, probes, rewards. It sees tensors and no images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from cellfluxrl.rows import Rows


@dataclass(frozen=True)
class Starts(Rows):
    """What N rollouts start from.

    Args:
        source: `(N, ...)`; x_0 of each, noise included.
        condition: `(N, D)`; what the velocity model is conditioned on.
        group: `(N,)`; rollouts with the same integer share a baseline.
        label: `(N,)`; what the task needs to know to pair and score each rollout.
        context: What else the task wants to know when it measures the rollouts, each `(N, ...)`.
    """

    source: torch.Tensor
    condition: torch.Tensor
    group: torch.Tensor
    label: torch.Tensor
    context: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Probes:
    """N fixed points of base training, x_t at time t, where the distance to the base is measured."""

    noised: torch.Tensor
    time: torch.Tensor
    condition: torch.Tensor


class Task(Protocol):
    """What is to be post-trained for."""

    def draw(self, generator: torch.Generator) -> Starts:
        """Draw the starts of one iteration, for all processes together."""
        ...

    def couple(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw a fresh source for each rollout, as base training pairs sources with targets; `(N, ...)`."""
        ...

    def draw_times(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw training times; `(N,)`."""
        ...

    def draw_probes(self, count: int, generator: torch.Generator) -> Probes:
        """Draw points of base training."""
        ...

    def measure(self, samples: torch.Tensor, starts: Starts) -> Callable[[], dict[str, torch.Tensor]]:
        """Begin to measure samples, beside what comes next; the function that is returned waits for the result.

        `starts` is what the samples started from. The tensors of the result, whose first axis counts the samples, are
        all that [`score`] will know of the samples. Each process of a run measures the samples it drew.
        """
        ...

    def score(
        self, measured: dict[str, torch.Tensor], labels: torch.Tensor, weights: Mapping[str, float] | None = None
    ) -> dict[str, torch.Tensor]:
        """Score all rollouts of an iteration by what was measured, each reward of shape `(N,)`; NaN where it failed.

        `"combined"`, their sum with `weights` or else the task's own, is what is optimised.
        """
        ...
