"""The objective of DiffusionNFT (Zheng et al., 2025) for flow matching from any source.

Nothing here knows of images: a sample is a tensor whose first axis counts the rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NORMALIZER_FLOOR = 0.02


@dataclass(frozen=True)
class Preferences:
    """
    Args:
        r (`torch.Tensor` of shape `(N,)`): In [0, 1]; above 1/2 pulls towards a rollout, below pushes away.
        dead_groups (`float`): Share of the groups without variance, which give r = 1/2: no signal.
    """

    r: torch.Tensor
    dead_groups: float


def preferences(rewards: torch.Tensor, groups: torch.Tensor, clip: float = 2.0) -> Preferences:
    """
    Turn rewards into r = 1/2 + 1/2 clip((R - group mean) / (clip * std), -1, 1), with one std for all groups.

    Args:
        rewards (`torch.Tensor` of shape `(N,)`): Of each rollout.
        groups (`torch.Tensor` of shape `(N,)`): Rollouts with the same integer share a baseline.
        clip (`float`, defaults to 2.0): Advantages of this many standard deviations reach 0 or 1.

    Raises:
        FloatingPointError: If a reward is not finite: it would switch off its group, or all of them, without a word.
    """
    finite = rewards.isfinite()
    if not finite.all():
        raise FloatingPointError(f"{int((~finite).sum())} of {len(rewards)} rewards are not finite")
    dtype = rewards.dtype
    rewards = rewards.double()  # the mean of many equal float32 numbers is none of them
    names, group = groups.unique(return_inverse=True)
    count = torch.bincount(group)
    mean = torch.zeros(len(names), dtype=rewards.dtype, device=rewards.device).index_add(0, group, rewards) / count
    advantage = rewards - mean[group]
    std = advantage.square().mean().sqrt()
    # A spread that is rounding error of the rewards themselves is none.
    tolerance = 1e-6 * rewards.abs().max().clamp(min=1e-6)
    alive = torch.zeros(len(names), dtype=torch.bool, device=rewards.device)
    alive[group[advantage.abs() > tolerance]] = True
    scaled = (advantage / (clip * std.clamp(min=tolerance))).clamp(-1, 1)
    r = torch.where(alive[group], 0.5 + 0.5 * scaled, torch.full_like(scaled, 0.5))
    return Preferences(r=r.to(dtype), dead_groups=float((~alive).float().mean()))


def nft_loss(
    velocity: torch.Tensor,
    old_velocity: torch.Tensor,
    noised: torch.Tensor,
    time: torch.Tensor,
    rollout: torch.Tensor,
    r: torch.Tensor,
    mixing_weight: float = 1.0,
) -> torch.Tensor:
    """
    Pull the implicit positive policy towards rollouts with r > 1/2, and the negative one towards the others.

    With v+ = (1 - b) v_old + b v and v- = (1 + b) v_old - b v, each branch is the squared error of the predicted
    target x_t + (1 - t) v+-, divided by its own detached mean absolute error per sample (floored, because a black
    background would make it vanish): (r * branch+ + (1 - r) * branch-) / b. At v = v_old its gradient does not
    depend on b.

    Args:
        velocity, old_velocity (`torch.Tensor` of shape `(N, ...)`): Of the trained and of the sampling policy at x_t.
        noised (`torch.Tensor` of shape `(N, ...)`): x_t, between a fresh source and the rollout.
        time (`torch.Tensor` of shape `(N,)`): t of each.
        rollout (`torch.Tensor` of shape `(N, ...)`): The sample that was scored.
        r (`torch.Tensor` of shape `(N,)`): See [`preferences`].
        mixing_weight (`float`, defaults to 1.0): b; how strongly the update is pulled back to the sampling policy.

    Returns:
        `torch.Tensor` of shape `(N,)`.
    """
    remaining = (1 - time).view(-1, *[1] * (noised.ndim - 1))

    def branch(mixed: torch.Tensor) -> torch.Tensor:
        error = (noised + remaining * mixed - rollout).flatten(1)
        scale = error.detach().abs().mean(dim=1).clamp(min=NORMALIZER_FLOOR)
        return error.square().mean(dim=1) / scale

    positive = branch((1 - mixing_weight) * old_velocity + mixing_weight * velocity)
    negative = branch((1 + mixing_weight) * old_velocity - mixing_weight * velocity)
    return (r * positive + (1 - r) * negative) / mixing_weight
