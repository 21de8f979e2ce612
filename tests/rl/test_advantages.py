"""Rewards become advantages over their group, and preferences r."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.rl.advantages import STDS, compute_advantages
from cellfluxrl.rl.summary import summarize_advantages, summarize_rewards

# Multiples of 1/64 and sums of them are exact in float32: what a property holds up to rounding is tested exactly.
exact_rewards = st.integers(-640, 640).map(lambda i: i / 64)


@st.composite
def scored_groups(draw):
    """Rewards and group numbers of up to five groups, in any order, with any (also negative) group numbers."""
    names = draw(st.lists(st.integers(-3, 100), min_size=1, max_size=5, unique=True))
    rows = [(name, draw(exact_rewards)) for name in names for _ in range(draw(st.integers(1, 8)))]
    rows = draw(st.permutations(rows))
    return torch.tensor([r for _, r in rows]), torch.tensor([g for g, _ in rows])


def of(rewards, groups, **kwargs):
    return compute_advantages({"combined": rewards}, groups, **kwargs)


@given(scored_groups(), st.floats(0.1, 10), st.sampled_from(STDS))
@settings(max_examples=100, deadline=None)
def test_r_lies_in_the_unit_interval_and_orders_a_group_as_its_rewards_do(scored, clip, std):
    rewards, groups = scored
    result = of(rewards, groups, clip=clip, std=std)
    assert result.r.dtype == rewards.dtype
    assert ((result.r >= 0) & (result.r <= 1)).all()
    assert 0 <= result.dead_groups <= 1
    for name in groups.unique():
        r, score = result.r[groups == name], rewards[groups == name]
        assert (r[score.argsort()].diff() >= 0).all()


@given(scored_groups(), st.sampled_from(STDS))
@settings(max_examples=100, deadline=None)
def test_groups_without_variance_give_no_signal(scored, std):
    rewards, groups = scored
    result = of(rewards, groups, std=std)
    dead = [len(rewards[groups == name].unique()) == 1 for name in groups.unique()]
    for name, is_dead in zip(groups.unique(), dead, strict=True):
        assert bool((result.r[groups == name] == 0.5).all()) == is_dead
        assert bool(result.signal[groups == name].any()) == (not is_dead)
    assert result.dead_groups == pytest.approx(sum(dead) / len(dead))


@given(scored_groups(), st.lists(exact_rewards, min_size=5, max_size=5), st.sampled_from(STDS))
@settings(max_examples=100, deadline=None)
def test_a_shift_of_a_groups_rewards_changes_nothing(scored, shifts, std):
    rewards, groups = scored
    _, position = groups.unique(return_inverse=True)
    shifted = of(rewards + torch.tensor(shifts)[position], groups, std=std)
    torch.testing.assert_close(shifted.r, of(rewards, groups, std=std).r, atol=1e-6, rtol=0)


@given(scored_groups(), st.integers(-8, 8), st.sampled_from(STDS))
@settings(max_examples=50, deadline=None)
def test_the_unit_of_the_reward_does_not_matter(scored, exponent, std):
    rewards, groups = scored
    scaled = of(rewards * 2.0**exponent, groups, std=std)
    torch.testing.assert_close(scaled.r, of(rewards, groups, std=std).r, atol=1e-6, rtol=0)


def test_values_by_hand():
    # Around the groups' means 1 and 10: -1, 1, -3, 3; their standard deviation is sqrt(5), of the groups 1 and 3.
    rewards, groups = torch.tensor([0.0, 2.0, 7.0, 13.0]), torch.tensor([4, 4, 9, 9])
    std = 5**0.5
    result = of(rewards, groups)
    torch.testing.assert_close(result.advantage, torch.tensor([-1.0, 1.0, -3.0, 3.0]) / std)
    torch.testing.assert_close(result.r, 0.5 + torch.tensor([-1.0, 1.0, -3.0, 3.0]) / (4 * std))
    clipped = torch.tensor([0.5 - 0.5 / std, 0.5 + 0.5 / std, 0.0, 1.0])
    torch.testing.assert_close(of(rewards, groups, clip=1.0).r, clipped)
    torch.testing.assert_close(of(rewards, groups, std="group").advantage, torch.tensor([-1.0, 1.0, -1.0, 1.0]))


def test_one_loud_reward_drowns_the_rest_unless_each_is_divided_by_itself():
    rewards = {"loud": torch.tensor([0.0, 0.0, 100.0, 100.0]), "quiet": torch.tensor([0.0, 0.1, 0.0, 0.1])}
    together = torch.zeros(4, dtype=torch.long)
    drowned = compute_advantages(rewards, together).advantage
    assert drowned[1] - drowned[0] < 0.01
    decoupled = compute_advantages(rewards, together, std="per_reward").advantage
    torch.testing.assert_close(decoupled, torch.tensor([-2.0, 0.0, 0.0, 2.0]) / 2**0.5)
    # Weights apply after the division: (-3 - 1, -3 + 1, 3 - 1, 3 + 1) / sqrt(10).
    weighted = compute_advantages(rewards, together, {"loud": 3.0, "quiet": 1.0}, std="per_reward").advantage
    torch.testing.assert_close(weighted, torch.tensor([-4.0, -2.0, 2.0, 4.0]) / 10**0.5)


def test_all_groups_dead():
    result = of(torch.tensor([1.0, 1.0, -2.0, -2.0, 7.0]), torch.tensor([0, 0, 1, 1, 2]))
    assert result.dead_groups == 1
    assert (result.r == 0.5).all()
    assert not result.signal.any()


@pytest.mark.parametrize("size", [8, 257, 1000])
@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e4 / 7])
@pytest.mark.parametrize("std", STDS)
def test_a_large_group_of_equal_rewards_stays_dead_beside_a_living_one(size, value, std):
    rewards = torch.cat([torch.full((size,), value), torch.tensor([value, value + 0.01])])
    result = of(rewards, torch.tensor([0] * size + [1, 1]), std=std)
    assert (result.r[:size] == 0.5).all()
    assert result.r[size] < 0.5 < result.r[size + 1]
    assert result.dead_groups == 0.5


def test_rounding_error_is_no_variance():
    rewards = torch.full((16,), 0.7)
    rewards[::2] += 1e-7
    assert of(rewards, torch.zeros(16, dtype=torch.long)).dead_groups == 1


@given(scored_groups(), st.sampled_from([torch.nan, torch.inf, -torch.inf]), st.sampled_from(STDS))
@settings(max_examples=50, deadline=None)
def test_a_reward_that_is_not_finite_changes_nothing_for_the_others(scored, value, std):
    rewards, groups = scored
    broken = torch.cat([rewards, torch.tensor([value])])
    result = of(broken, torch.cat([groups, groups[:1]]), std=std)
    without = of(rewards, groups, std=std)
    torch.testing.assert_close(result.r[:-1], without.r)
    assert result.r[-1] == 0.5
    assert not result.finite[-1]
    assert not result.signal[-1]
    assert result.finite[:-1].all()


def test_one_reward_that_is_not_finite_leaves_the_rollout_out_of_all_of_them():
    rewards = {"a": torch.tensor([0.0, 1.0, 5.0]), "b": torch.tensor([1.0, 2.0, torch.nan])}
    result = compute_advantages(rewards, torch.zeros(3, dtype=torch.long), std="per_reward")
    torch.testing.assert_close(result.advantage, torch.tensor([-1.0, 1.0, 0.0]))


def test_a_word_or_a_number_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="unknown advantage_std 'globl'; did you mean 'global'"):
        of(torch.ones(2), torch.zeros(2), std="globl")
    with pytest.raises(ValueError, match="advantage_clip must be positive, got 0"):
        of(torch.ones(2), torch.zeros(2), clip=0)


def test_the_log_says_how_the_rewards_and_the_preferences_are_spread():
    rewards = torch.tensor([0.0, 2.0, 7.0, 13.0, torch.nan])
    groups = torch.tensor([0, 0, 0, 0, 0])
    values = summarize_rewards({"moa": rewards})
    assert values["reward/moa"] == pytest.approx(5.5)
    assert values["reward_std/moa"] == pytest.approx(rewards[:4].std(correction=0).item())
    assert values["reward_top/moa"] == 13.0
    values = summarize_advantages(of(rewards, groups, clip=1.0))
    # r is 0, 0.15, 0.65, 1 and, where there is no reward, 1/2.
    assert values["r/histogram"] == pytest.approx([0.2, 0.2, 0, 0, 0, 0.2, 0.2, 0, 0, 0.2])
    assert values["non_finite_rewards"] == 1
    assert values["dead_groups"] == 0
    assert summarize_rewards({"moa": torch.tensor([torch.nan])}) == {}
