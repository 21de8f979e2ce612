"""The seven rewards, each a name and a function of what was observed in the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cellfluxrl.rewards.measurements import STATISTICS


@dataclass(frozen=True)
class Observation:
    """
    What the rewards of N images are computed from.

    Args:
        measurements (`dict[str, torch.Tensor]`): The six measurements of [`measure`], each of shape `(N,)`.
        probability (`torch.Tensor` of shape `(N,)`): The classifier's probability of the true MoA.
        logit (`torch.Tensor` of shape `(N,)`): log(p / (1 - p)) of that probability, without overflow.
        mean, std (`dict[str, torch.Tensor]`): Of each statistic over real cells of the true MoA, each `(N,)`.
    """

    measurements: dict[str, torch.Tensor]
    probability: torch.Tensor
    logit: torch.Tensor
    mean: dict[str, torch.Tensor]
    std: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Reward:
    """
    A reward: a name and a function from an [`Observation`] of N images to scores of shape `(N,)`, higher is better.

    Example:
        >>> dim = Reward("few_nuclei", lambda seen: -seen.measurements["nucleus_count"])
    """

    name: str
    score: Callable[[Observation], torch.Tensor]


def _deviation(statistic: str) -> Reward:
    def score(seen: Observation) -> torch.Tensor:
        return -(seen.measurements[statistic] - seen.mean[statistic]).abs() / seen.std[statistic]

    return Reward(statistic, score)


REWARDS: tuple[Reward, ...] = (
    Reward("moa", lambda seen: seen.probability),
    Reward("containment", lambda seen: seen.measurements["containment"]),
    *(_deviation(statistic) for statistic in STATISTICS),
)
REWARD_NAMES = tuple(reward.name for reward in REWARDS)
