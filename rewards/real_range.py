"""The range of real cells, which rejection keeps to and over which weights make rewards comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from cellfluxrl.rewards.measuring import Measured
from cellfluxrl.rewards.statistics import FEW_IMAGES

REAL_RANGE = (0.025, 0.975)  # quantiles of real cells between which something counts as real
MINIMUM_SPREAD = 0.05


def outside_real_range(
    scaled: torch.Tensor, scores: torch.Tensor, reference: torch.Tensor, floor: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """`(N,)`; how far images lie outside of the range of real cells, see [`RewardSuite.outside_real_range`].

    `scaled` are standardised statistics, `(N, S)`, and `reference` those of real cells of each MoA, `(K, R, S)`;
    `scores` the rewards without a statistic, `(N, T)`, and `floor` what they should reach, `(K, T)`.
    """
    lacking = (floor[index] - scores).clamp(min=0) / MINIMUM_SPREAD
    if scaled.shape[1] == 0:  # which has no quantiles
        return lacking.norm(dim=1)
    low, high = torch.quantile(reference, reference.new_tensor(REAL_RANGE), dim=1)
    beyond = (low[index] - scaled).clamp(min=0) + (scaled - high[index]).clamp(min=0)
    return torch.cat([beyond, lacking], dim=1).norm(dim=1)


def score_floor(measured: Measured, names: Sequence[str], index: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """`(K, T)`; the 2.5 % quantile of T scores in real cells, of all MoAs together where one has few."""
    floor = torch.zeros(len(count), len(names), device=measured.values.device)
    for column, name in enumerate(names):
        for k, images in enumerate(count.tolist()):
            real = measured.scores[name][measured.whole & (index == k) if images >= FEW_IMAGES else measured.whole]
            floor[k, column] = real.quantile(REAL_RANGE[0])
    return floor


def balanced_weights(
    deviations: Mapping[str, torch.Tensor], whole: torch.Tensor, index: torch.Tensor, count: torch.Tensor
) -> dict[str, float]:
    """Weights that sum to 1: 1 / the standard deviation over real cells of one MoA (at least 0.05), `moa` twice that.

    `deviations` are the rewards of real cells in the deviation form; `index` the MoA of each; `count` the cells of it.
    """
    weights = {}
    several = (count > 1).nonzero()[:, 0].tolist()
    for name, values in deviations.items():
        spread = torch.stack([values[whole & (index == k)].std() for k in several]).mean().clamp(min=MINIMUM_SPREAD)
        weights[name] = (2 if name == "moa" else 1) / float(spread)
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}
