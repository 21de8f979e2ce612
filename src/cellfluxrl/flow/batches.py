"""What a network is pretrained on: noise, times and dropped conditions, drawn for pairs of control and treated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cellfluxrl.data.pairs import PairBatch, vary_brightness
from cellfluxrl.flow.paths import PathSample, draw_times, per_sample

DrawNoise = Callable[[tuple[int, ...], list[torch.Generator]], torch.Tensor]


@dataclass(frozen=True)
class FlowBatch:
    """Points on the paths from control to treated.

    Args:
        path: The points.
        condition: `(N, D)`; what each treated sample was treated with.
        condition_mask: `(N,)`, bool; whether the network is shown it.
    """

    path: PathSample
    condition: torch.Tensor
    condition_mask: torch.Tensor

    def to(self, device: torch.device) -> FlowBatch:
        """The same batch on another device."""
        return FlowBatch(self.path.to(device), self.condition.to(device), self.condition_mask.to(device))


def draw_flow_batch(
    pairs: PairBatch,
    condition: torch.Tensor,
    draw_noise: DrawNoise,
    generators: list[torch.Generator],
    *,
    source_noise_probability: float = 1.0,
    condition_dropout: float = 0.0,
    time_logit_mean: float = 1.2,
    time_logit_std: float = 1.2,
    control_gain: float = 0.0,
) -> FlowBatch:
    """Draw noise, time, condition dropout and the control's brightness for each pair, from its own generator.

    Args:
        pairs: N controls and treated samples, `(N, ...)`.
        condition: `(N, D)`; that of each pair.
        draw_noise: From the shape of the controls and the generators to source noise, as
            [`CellFluxFlowMatchScheduler.sample_source_noise`].
        generators: One for each pair.
        source_noise_probability: Of each pair, that its control gets noise.
        condition_dropout: Probability, of each pair, that the network is not shown its condition.
        time_logit_mean, time_logit_std: See [`draw_times`].
        control_gain: See [`vary_brightness`]; for images only.
    """
    noise = draw_noise(tuple(pairs.control.shape), generators)
    noise_draw, dropout_draw = torch.stack([torch.rand(2, generator=g) for g in generators], dim=1)
    time = torch.cat([draw_times(1, g, time_logit_mean, time_logit_std) for g in generators])
    control = vary_brightness(pairs.control, control_gain, generators)
    source = control + noise * per_sample(noise_draw < source_noise_probability, noise)
    return FlowBatch(PathSample(source, pairs.treated, time), condition, dropout_draw >= condition_dropout)
