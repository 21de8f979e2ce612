"""Rewards of rollouts become advantages over their group, and preferences r in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cellfluxrl.errors import unknown_name

STDS = ("global", "group", "per_reward")


@dataclass(frozen=True)
class Advantages:
    """What each of N rollouts is worth beside those of its group.

    Args:
        advantage: `(N,)`; reward above the group's mean, in standard deviations; 0 where there is no signal.
        r: `(N,)`; in [0, 1]; above 1/2 pulls towards a rollout, below pushes away.
        finite: `(N,)`, bool; whether the rollout's reward is a finite number.
        signal: `(N,)`, bool; whether it is, and those of its group are not all the same.
        dead_groups: Share of the groups without variance, which give no signal.
    """

    advantage: torch.Tensor
    r: torch.Tensor
    finite: torch.Tensor
    signal: torch.Tensor
    dead_groups: float


def compute_advantages(
    rewards: Mapping[str, torch.Tensor],
    groups: torch.Tensor,
    weights: Mapping[str, float] | None = None,
    std: str = "global",
    clip: float = 2.0,
) -> Advantages:
    """Compare each rollout with the mean of its group.

        A = (R - group mean) / std        r = 1/2 + 1/2 clip(A / clip, -1, 1)

    A reward that is not finite leaves its rollout out: it does not count in the group's mean and gets r = 1/2. So does
    every rollout of a group whose rewards are all the same.

    Args:
        rewards: `(N,)` each; rewards of each rollout, by name.
        groups: `(N,)`; rollouts with the same integer share a baseline.
        weights: Weight of each reward; by default 1.
        std: `"global"` divides the weighted sum of the rewards by one standard deviation for all groups
            (DiffusionNFT), `"group"` by each group's own (GRPO). `"per_reward"` first divides each reward by its own,
            so that none drowns another whatever its scale, and then adds them up (the decoupled normalisation of
            GDPO).
        clip: Advantages of this many standard deviations reach r = 0 or 1.

    Raises:
        ValueError: If `std` is unknown, or `clip` is not positive.

    Example:
        >>> rewards = {"moa": torch.tensor([0.0, 1.0, 5.0, 6.0])}
        >>> compute_advantages(rewards, torch.tensor([0, 0, 1, 1])).advantage
        tensor([-1.,  1., -1.,  1.])
    """
    if std not in STDS:
        raise unknown_name("advantage_std", std, STDS)
    if clip <= 0:
        raise ValueError(f"advantage_clip must be positive, got {clip}")
    dtype = next(iter(rewards.values())).dtype
    weight = {name: (weights or {}).get(name, 1.0) for name in rewards}
    value = {name: reward.double() for name, reward in rewards.items()}
    finite = torch.stack(list(value.values())).isfinite().all(dim=0)
    _, group = groups.unique(return_inverse=True)
    everything, zero = torch.zeros_like(group), torch.zeros_like(groups, dtype=torch.double)

    if std == "per_reward":
        own = {name: _divided(_centred(v, group, finite), everything, finite) for name, v in value.items()}
        total = sum((weight[name] * own[name] for name in own), zero)
    else:
        total = _centred(sum((weight[name] * value[name] for name in value), zero), group, finite)
    advantage = _divided(total, group if std == "group" else everything, finite)

    alive = torch.zeros(int(group.max()) + 1, dtype=torch.bool, device=group.device)
    alive[group[advantage != 0]] = True
    r = 0.5 + 0.5 * (advantage / clip).clamp(-1, 1)
    return Advantages(
        advantage=advantage.to(dtype),
        r=r.to(dtype),
        finite=finite,
        signal=alive[group] & finite,
        dead_groups=float((~alive).double().mean()),
    )


def _centred(value: torch.Tensor, group: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """`value` less its group's mean over the finite rows; 0 in the other rows, and in groups without variance."""
    value = torch.where(finite, value, 0.0)
    mean = torch.bincount(group, weights=value) / _count(group, finite)
    centred = torch.where(finite, value - mean[group], 0.0)
    # The mean of many equal float32 rewards is none of them: a spread of their rounding error is none.
    tolerance = 1e-6 * value.abs().max().clamp(min=1e-6)
    varies = torch.zeros(len(mean), dtype=torch.bool, device=value.device)
    varies[group[centred.abs() > tolerance]] = True
    return torch.where(varies[group], centred, 0.0)


def _divided(value: torch.Tensor, pool: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """`value`, which is 0 where it is not finite, divided by its root mean square over the finite rows of its pool."""
    rms = (torch.bincount(pool, weights=value.square()) / _count(pool, finite)).sqrt()
    return value / torch.where(rms > 0, rms, 1.0)[pool]


def _count(pool: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    return torch.bincount(pool, weights=finite.double()).clamp(min=1)
