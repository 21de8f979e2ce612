"""What post-training minimises: four objectives that differ in nothing but the functions of this module.

An objective selects the rollouts that are trained on, and prices the velocities at points between a fresh source and
each of them. Nothing here knows of images: a sample is a tensor whose first axis counts the rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cellfluxrl.flow.paths import PathSample, flow_matching_loss, per_sample
from cellfluxrl.rl.advantages import Advantages
from cellfluxrl.rl.settings import RLSettings

NORMALIZER_FLOOR = 0.02


@dataclass(frozen=True)
class Selection:
    """The rollouts that are trained on.

    Args:
        rows: `(M,)`; which they are.
        draws: `(M,)`; the rollout whose fresh source and time each is noised with: itself, or the other one of its
            pair.
        preference: `(M,)`; r, or the weight, of each.
    """

    rows: torch.Tensor
    draws: torch.Tensor
    preference: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """What an objective is computed from.

    Args:
        velocity, old_velocity, reference_velocity: `(N, ...)`; of the trained policy, of the sampling one and of the
            base, at x_t.
        path: From fresh sources x_0 to the rollouts x_1 that were scored.
        preference: `(N,)`; see [`Selection`].
    """

    velocity: torch.Tensor
    old_velocity: torch.Tensor
    reference_velocity: torch.Tensor
    path: PathSample
    preference: torch.Tensor


def matching_error(velocity: torch.Tensor, path: PathSample) -> torch.Tensor:
    """How far from the rollout a velocity leads: the mean square of x_t + (1 - t) v - x_1, in units of its own size.

    It is divided by its detached mean absolute value, as in DiffusionNFT, so that every rollout and time pulls about
    equally; that has a floor, because a black background would make it vanish. Shape `(N,)`.
    """
    # x_t - x_1 = -(1 - t) u
    error = (per_sample(1 - path.t, velocity) * (velocity - path.velocity)).flatten(1)
    scale = error.detach().abs().mean(dim=1).clamp(min=NORMALIZER_FLOOR)
    return error.square().mean(dim=1) / scale


def nft_loss(batch: Batch, settings: RLSettings) -> torch.Tensor:
    """Pull the implicit positive policy towards rollouts with r > 1/2, and the negative one towards the others.

    DiffusionNFT (Zheng et al., 2025, https://arxiv.org/abs/2509.16117): with v+ = (1 - b) v_old + b v and
    v- = (1 + b) v_old - b v, (r E(v+) + (1 - r) E(v-)) / b, where E is the [`matching_error`]. At v = v_old its
    gradient is (2 r - 1) dE/dv, which does not depend on b.
    """
    b = settings.mixing_weight
    positive = matching_error((1 - b) * batch.old_velocity + b * batch.velocity, batch.path)
    negative = matching_error((1 + b) * batch.old_velocity - b * batch.velocity, batch.path)
    return (batch.preference * positive + (1 - batch.preference) * negative) / b


def regression_loss(batch: Batch, settings: RLSettings) -> torch.Tensor:
    """Flow matching of the rollouts as if they were data, each with its weight: w E(v), E the [`matching_error`]."""
    return batch.preference * matching_error(batch.velocity, batch.path)


def dpo_loss(batch: Batch, settings: RLSettings) -> torch.Tensor:
    """Prefer the first rollout of each pair to the second, more than the base does.

    Diffusion-DPO (Wallace et al., 2023, https://arxiv.org/abs/2311.12908) for flow matching: with
    d = |v - u|^2 - |v_ref - u|^2, the mean over the values of a sample, and u = x_1 - x_0,
    -2 / beta log sigmoid(-beta / 2 (d_first - d_second)). Rows 2 k and 2 k + 1 are a pair, with one source and time.
    The published loss lacks the factor 2 / beta; with it the gradient at v = v_ref, 1/2 d(d_first - d_second)/dv, does
    not depend on beta, and a KL weight means about the same to this objective as to the others.

    Returns:
        `(N,)`; that of its pair, for both rows.
    """
    error = flow_matching_loss(batch.velocity, batch.path)
    reference = flow_matching_loss(batch.reference_velocity, batch.path)
    first, second = (error - reference).view(-1, 2).unbind(dim=1)
    half = settings.dpo_beta / 2
    return (-F.logsigmoid(-half * (first - second)) / half).repeat_interleave(2)


def select_all(advantages: Advantages, groups: torch.Tensor, settings: RLSettings) -> Selection:
    """Every rollout that was scored, with its r."""
    rows = advantages.finite.nonzero()[:, 0]
    return Selection(rows, rows, advantages.r[rows])


def select_weighted(advantages: Advantages, groups: torch.Tensor, settings: RLSettings) -> Selection:
    """Every rollout of a group with signal, by exp(advantage / temperature), with a mean of 1 in each group.

    Reward-weighted regression (Peters and Schaal, 2007); for flow matching Fan et al., 2025,
    https://arxiv.org/abs/2502.06061.
    """
    rows = advantages.signal.nonzero()[:, 0]
    weight = torch.empty_like(advantages.advantage)
    for group in groups[rows].unique():
        own = rows[groups[rows] == group]
        weight[own] = len(own) * torch.softmax(advantages.advantage[own] / settings.temperature, dim=0)
    return Selection(rows, rows, weight[rows])


def select_best(advantages: Advantages, groups: torch.Tensor, settings: RLSettings) -> Selection:
    """The best rollout of each group with signal: best-of-N distillation.

    As the iterated fine-tuning of RAFT (Dong et al., 2023, https://arxiv.org/abs/2304.06767).
    """
    rows = _best_and_worst(advantages, groups)[:, 0]
    return Selection(rows, rows, torch.ones_like(advantages.advantage[rows]))


def select_pairs(advantages: Advantages, groups: torch.Tensor, settings: RLSettings) -> Selection:
    """The best and the worst rollout of each group with signal, one after the other, with one source and time."""
    pairs = _best_and_worst(advantages, groups)
    rows, draws = pairs.flatten(), pairs[:, :1].expand(-1, 2).flatten()
    return Selection(rows, draws, torch.ones_like(advantages.advantage[rows]))


def _best_and_worst(advantages: Advantages, groups: torch.Tensor) -> torch.Tensor:
    """Rows of the best and the worst rollout of each group with signal, `(G, 2)`."""
    rows = advantages.signal.nonzero()[:, 0]
    pairs = []
    for group in groups[rows].unique():
        own = rows[groups[rows] == group]
        advantage = advantages.advantage[own]
        pairs.append(torch.stack([own[advantage.argmax()], own[advantage.argmin()]]))
    return torch.stack(pairs) if pairs else rows.new_empty(0, 2)


@dataclass(frozen=True)
class Objective:
    """What is learnt from: which rollouts, and what each costs.

    Args:
        select: From advantages, groups and settings to the [`Selection`] that is trained on.
        loss: From a [`Batch`] and settings to the price of each row, `(N,)`.
    """

    select: Callable[[Advantages, torch.Tensor, RLSettings], Selection]
    loss: Callable[[Batch, RLSettings], torch.Tensor]


OBJECTIVES = {
    "nft": Objective(select_all, nft_loss),
    "rwr": Objective(select_weighted, regression_loss),
    "best_of_n": Objective(select_best, regression_loss),
    "dpo": Objective(select_pairs, dpo_loss),
}
