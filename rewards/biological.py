"""The seven rewards of CellFluxRL."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cellfluxrl.rewards.observation import Observation
from cellfluxrl.rewards.terms import Reward, register_reward


def of_nuclei(name: str) -> Callable[[Observation], torch.Tensor]:
    """A measurement; NaN for images without a nucleus."""
    return lambda seen: seen.measurements[name].masked_fill(seen.measurements["nucleus_count"] == 0, torch.nan)


def of_cells(name: str) -> Callable[[Observation], torch.Tensor]:
    """A measurement; NaN for images without a cell."""
    return lambda seen: seen.measurements[name].masked_fill(seen.measurements["cytoplasm_count"] == 0, torch.nan)


REWARDS: tuple[Reward, ...] = (
    Reward(
        "moa",
        # A classifier has an opinion on everything, an empty image too.
        score=lambda seen: seen.probability.masked_fill(seen.measurements["nucleus_count"] == 0, 0.0),
        statistic=lambda seen: seen.logit.masked_fill(seen.measurements["nucleus_count"] == 0, torch.nan),
        title="Looks like its mechanism",
        unit="log-odds of the classifier",
        description="the classifier's probability of the true MoA; 0 without a nucleus",
    ),
    Reward(
        "containment",
        score=lambda seen: seen.measurements["containment"],
        title="Nuclei inside cells",
        description="share of the nuclei's pixels that lies inside cells, 0 to 1",
    ),
    Reward(
        "roundness",
        statistic=of_nuclei("roundness"),
        title="Roundness of nuclei",
        unit="4π area / perimeter²",
        description="mean roundness of the nuclei, compared with real cells of the MoA",
    ),
    Reward(
        "nucleus_size",
        statistic=of_nuclei("nucleus_size"),
        title="Largest nucleus",
        unit="pixels",
        description="area of the largest nucleus, compared with real cells of the MoA",
    ),
    Reward(
        "cytoplasm_size",
        statistic=of_cells("cytoplasm_size"),
        title="Largest cell",
        unit="pixels",
        description="area of the largest cell, nucleus included, compared with real cells of the MoA",
    ),
    Reward(
        "nucleus_count",
        statistic=of_nuclei("nucleus_count"),
        title="Number of nuclei",
        unit="in the crop",
        description="number of nuclei, compared with real cells of the MoA",
    ),
    Reward(
        "cytoplasm_count",
        statistic=of_cells("cytoplasm_count"),
        title="Number of cells",
        unit="in the crop",
        description="number of cells, compared with real cells of the MoA",
    ),
)

REWARD_NAMES = tuple(reward.name for reward in REWARDS)

for _reward in REWARDS:
    register_reward(_reward)
