"""Rewards that are largest where generated cells follow the distribution of real ones."""

from __future__ import annotations

import torch

ROWS_AT_ONCE = 1024  # distances of all to all would need N^2 numbers


def pairwise(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`(N, M)`; Euclidean distances of all rows of `a`, `(N, D)`, to all rows of `b`, `(M, D)`."""
    # Not by way of |a|^2 + |b|^2 - 2ab, which torch.cdist prefers for 26 rows and more: between close rows it loses
    # half of the digits, and an image's reward would depend on how many others are in its batch.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def energy_rewards(values: torch.Tensor, reference: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    r"""Functional derivative of the energy score at each rollout.

    The score of a generated distribution p against real cells, J(p) = -E|s - S| + 1/2 E|s - s'| with s, s' generated
    and S real, is strictly proper (Gneiting & Raftery, 2007): it has one maximum, at p = real. Its derivative with
    respect to the probability of a rollout s_i is

        r_i = -mean_S |s_i - S| + mean_{j != i} |s_i - s_j|,

    which at p = real is the same for every s_i: no rollout is preferred, so nothing drifts. The average cell, which
    maximises -|s - mean| / std, gains nothing when all rollouts look like it. `docs/rewards.md` has the derivation.

    Args:
        values: `(N, D)`; scaled statistics of each rollout; |.| is the Euclidean norm.
        reference: `(N_groups, R, D)`; real cells, for the group of each index.
        groups: `(N,)`; index into `reference` of each rollout; rollouts of one group share the condition and are each
            other's s'.

    Returns:
        `(N,)`.

    Raises:
        ValueError: If a group has one rollout only: the second term needs another one.
    """
    rewards = -distances_to_real(values, reference, groups)
    for group in groups.unique().tolist():
        rows = (groups == group).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError("the energy form compares rollouts of one condition: give at least two of each")
        group_values = values[rows]
        sums = [pairwise(part, group_values).sum(dim=1) for part in group_values.split(ROWS_AT_ONCE)]
        rewards[rows] += torch.cat(sums) / (len(rows) - 1)
    return rewards


def distances_to_real(values: torch.Tensor, reference: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean distance, `(N,)`, to the real cells of the group; arguments are those of [`energy_rewards`]."""
    distances = torch.empty(len(values), dtype=values.dtype, device=values.device)
    for group in groups.unique().tolist():
        rows = (groups == group).nonzero()[:, 0]
        parts = values[rows].split(ROWS_AT_ONCE)
        distances[rows] = torch.cat([pairwise(part, reference[group]).mean(dim=1) for part in parts])
    return distances
