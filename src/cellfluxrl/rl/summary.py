"""What is logged of the rewards and the preferences of one iteration."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cellfluxrl.rl.advantages import Advantages


def summarize_rewards(rewards: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Mean, standard deviation and mean of the top quarter of each reward, over the rollouts where it is finite.

    Example:
        >>> summarize_rewards({"moa": torch.tensor([0.0, 1.0, 1.0, 2.0])})
        {'reward/moa': 1.0, 'reward_std/moa': 0.7071067811865476, 'reward_top/moa': 2.0}
    """
    values = {}
    for name, reward in rewards.items():
        finite = reward[reward.isfinite()].double()
        if len(finite):
            values[f"reward/{name}"] = float(finite.mean())
            values[f"reward_std/{name}"] = float(finite.std(correction=0))
            values[f"reward_top/{name}"] = float(finite.topk(-(-len(finite) // 4)).values.mean())
    return values


def summarize_advantages(advantages: Advantages) -> dict[str, float | list[float]]:
    """Share of the groups without signal, rollouts without a finite reward, and the shares of r in ten equal bins."""
    r = advantages.r.double()
    histogram = torch.histc(r, bins=10, min=0, max=1) / len(r)
    return {
        "dead_groups": advantages.dead_groups,
        "non_finite_rewards": int((~advantages.finite).sum()),
        "r/min": float(r.min()),
        "r/std": float(r.std(correction=0)),
        "r/histogram": histogram.tolist(),
    }
