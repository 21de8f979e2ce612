"""The energy form rewards following the real distribution, not looking like the average cell."""

import pytest
import torch

from cellfluxrl.rewards.energy import energy_rewards, pairwise

COUNT = 1500


def normal(count, dim, seed, mean=0.0, std=1.0):
    return mean + std * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def score(generated, real):
    """J(p) = -E|s - S| + 1/2 E|s - s'|, without the pairs of a sample with itself."""
    count = len(generated)
    pairs = torch.cdist(generated, generated).sum() / (count * (count - 1))
    return float(-torch.cdist(generated, real).mean() + pairs / 2)


def rewards_of(generated, real):
    return energy_rewards(generated, real[None], torch.zeros(len(generated), dtype=torch.long))


def test_an_example_done_by_hand():
    values = torch.tensor([[0.0], [1.0], [5.0]])
    reference = torch.tensor([[0.0], [2.0]])
    # |s - S|: 1, 1, 4 on average; |s - s'|: (1 + 5) / 2, (1 + 4) / 2, (5 + 4) / 2.
    expected = torch.tensor([3.0 - 1.0, 2.5 - 1.0, 4.5 - 4.0])
    torch.testing.assert_close(rewards_of(values, reference), expected)


def test_close_rows_far_from_the_origin_keep_their_distance():
    rows = torch.full((30, 6), 100.0)
    rows[:, 0] += torch.arange(30) / 100
    torch.testing.assert_close(pairwise(rows, rows)[0], rows[:, 0] - 100)


@pytest.mark.parametrize("dim", [1, 6])
def test_the_score_is_highest_where_rollouts_follow_the_real_cells(dim):
    real = normal(COUNT, dim, seed=0)
    alternatives = {
        "shifted": normal(COUNT, dim, seed=1, mean=0.7),
        "too narrow": normal(COUNT, dim, seed=1, std=0.5),
        "too wide": normal(COUNT, dim, seed=1, std=2.0),
        "collapsed to the mean": torch.zeros(COUNT, dim, dtype=torch.float64),
        "collapsed to one cell": real[:1].expand(COUNT, -1),
    }
    best = score(normal(COUNT, dim, seed=1), real)
    for name, generated in alternatives.items():
        assert score(generated, real) < best - 0.02, name


def test_a_mixture_is_not_replaced_by_its_larger_part():
    real = torch.cat([normal(1000, 1, seed=0, mean=-2.0), normal(500, 1, seed=1, mean=2.0)])
    right = torch.cat([normal(1000, 1, seed=2, mean=-2.0), normal(500, 1, seed=3, mean=2.0)])
    assert score(normal(1500, 1, seed=2, mean=-2.0), real) < score(right, real) - 0.1


@pytest.mark.parametrize("dim", [1, 6])
def test_no_rollout_is_preferred_where_all_follow_the_real_cells(dim):
    real = normal(COUNT, dim, seed=0)
    at_optimum = rewards_of(normal(COUNT, dim, seed=1), real)
    shifted = rewards_of(normal(COUNT, dim, seed=1, mean=1.0), real)
    assert abs(float(at_optimum.mean())) < 0.05
    assert float(at_optimum.std()) < 0.1 * float(shifted.std())


@pytest.mark.parametrize("dim", [1, 6])
def test_the_rewards_push_shifted_rollouts_back(dim):
    generated = normal(COUNT, dim, seed=1, mean=1.0)
    rewards = rewards_of(generated, normal(COUNT, dim, seed=0))
    distance = generated.norm(dim=1)
    assert float(rewards[distance < distance.median()].mean()) > float(rewards[distance > distance.median()].mean())


def test_the_rewards_spread_collapsed_rollouts_out():
    generated = normal(COUNT, 1, seed=1, std=0.2)
    rewards = rewards_of(generated, normal(COUNT, 1, seed=0))
    outer = generated[:, 0].abs() > 0.3
    assert float(rewards[outer].mean()) > float(rewards[~outer].mean())


def test_collapse_to_the_mean_costs_every_rollout():
    real = normal(COUNT, 6, seed=0)
    collapsed = rewards_of(torch.zeros(100, 6, dtype=torch.float64), real)
    assert float(collapsed.max()) < float(rewards_of(normal(100, 6, seed=1), real).mean()) - 1


def test_the_mean_reward_is_the_derivative_of_the_score():
    real, generated = normal(300, 2, seed=0), normal(300, 2, seed=1, mean=0.5)
    pairs = torch.cdist(generated, generated).sum() / (300 * 299)
    assert float(rewards_of(generated, real).mean()) == pytest.approx(score(generated, real) + float(pairs) / 2)


def test_groups_are_compared_with_themselves_and_their_own_reference():
    values, reference = normal(6, 2, seed=0), normal(2 * 40, 2, seed=1).view(2, 40, 2)
    groups = torch.tensor([1, 0, 1, 0, 1, 0])
    rewards = energy_rewards(values, reference, groups)
    for group in (0, 1):
        torch.testing.assert_close(rewards[groups == group], rewards_of(values[groups == group], reference[group]))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="give at least two of each"):
        energy_rewards(torch.zeros(3, 1), torch.zeros(2, 5, 1), torch.tensor([0, 0, 1]))
