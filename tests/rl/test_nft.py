"""The objective: rewards become preferences, preferences become gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.rl.nft import NORMALIZER_FLOOR, nft_loss, preferences

# Multiples of 1/64 and sums of them are exact in float32: what a property holds up to rounding is tested exactly.
exact_rewards = st.integers(-640, 640).map(lambda i: i / 64)


@st.composite
def scored_groups(draw):
    """Rewards and group numbers of up to five groups, in any order, with any (also negative) group numbers."""
    names = draw(st.lists(st.integers(-3, 100), min_size=1, max_size=5, unique=True))
    rows = [(name, draw(exact_rewards)) for name in names for _ in range(draw(st.integers(1, 8)))]
    rows = draw(st.permutations(rows))
    return torch.tensor([r for _, r in rows]), torch.tensor([g for g, _ in rows])


# ----------------------------------------------------------------------------------------------------------------
# preferences
# ----------------------------------------------------------------------------------------------------------------


@given(scored_groups(), st.floats(0.1, 10))
@settings(max_examples=100, deadline=None)
def test_r_lies_in_the_unit_interval_and_orders_a_group_as_its_rewards_do(scored, clip):
    rewards, groups = scored
    result = preferences(rewards, groups, clip)
    assert result.r.dtype == rewards.dtype
    assert ((result.r >= 0) & (result.r <= 1)).all()
    assert 0 <= result.dead_groups <= 1
    for name in groups.unique():
        r, score = result.r[groups == name], rewards[groups == name]
        assert (r[score.argsort()].diff() >= 0).all()


@given(scored_groups())
@settings(max_examples=100, deadline=None)
def test_groups_without_variance_give_no_signal(scored):
    rewards, groups = scored
    result = preferences(rewards, groups)
    dead = [len(rewards[groups == name].unique()) == 1 for name in groups.unique()]
    for name, is_dead in zip(groups.unique(), dead, strict=True):
        assert bool((result.r[groups == name] == 0.5).all()) == is_dead
    assert result.dead_groups == pytest.approx(sum(dead) / len(dead))


@given(scored_groups(), st.lists(exact_rewards, min_size=5, max_size=5))
@settings(max_examples=100, deadline=None)
def test_a_shift_of_a_groups_rewards_changes_nothing(scored, shifts):
    rewards, groups = scored
    _, position = groups.unique(return_inverse=True)
    shifted = preferences(rewards + torch.tensor(shifts)[position], groups)
    torch.testing.assert_close(shifted.r, preferences(rewards, groups).r, atol=1e-6, rtol=0)


@given(scored_groups(), st.integers(-8, 8))
@settings(max_examples=50, deadline=None)
def test_the_unit_of_the_reward_does_not_matter(scored, exponent):
    rewards, groups = scored
    torch.testing.assert_close(
        preferences(rewards * 2.0**exponent, groups).r, preferences(rewards, groups).r, atol=1e-6, rtol=0
    )


def test_values_by_hand():
    # Advantages -1, 1, -3, 3 around the groups' means 1 and 10; their standard deviation is sqrt(5).
    rewards, groups = torch.tensor([0.0, 2.0, 7.0, 13.0]), torch.tensor([4, 4, 9, 9])
    std = 5**0.5
    expected = torch.tensor([-1 / (2 * std), 1 / (2 * std), -3 / (2 * std), 3 / (2 * std)]) / 2 + 0.5
    torch.testing.assert_close(preferences(rewards, groups, clip=2.0).r, expected)
    clipped = torch.tensor([0.5 - 0.5 / std, 0.5 + 0.5 / std, 0.0, 1.0])
    torch.testing.assert_close(preferences(rewards, groups, clip=1.0).r, clipped)


def test_all_groups_dead():
    result = preferences(torch.tensor([1.0, 1.0, -2.0, -2.0, 7.0]), torch.tensor([0, 0, 1, 1, 2]))
    assert result.dead_groups == 1
    assert (result.r == 0.5).all()


@pytest.mark.parametrize("size", [8, 257, 1000])
@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e4 / 7])
def test_a_large_group_of_equal_rewards_stays_dead_beside_a_living_one(size, value):
    rewards = torch.cat([torch.full((size,), value), torch.tensor([value, value + 0.01])])
    result = preferences(rewards, torch.tensor([0] * size + [1, 1]))
    assert (result.r[:size] == 0.5).all()
    assert result.r[size] < 0.5 < result.r[size + 1]
    assert result.dead_groups == 0.5


def test_rounding_error_is_no_variance():
    rewards = torch.full((16,), 0.7)
    rewards[::2] += 1e-7
    assert preferences(rewards, torch.zeros(16, dtype=torch.long)).dead_groups == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_is_refused(value):
    with pytest.raises(FloatingPointError, match="1 of 4 rewards are not finite"):
        preferences(torch.tensor([0.0, 1.0, value, 2.0]), torch.tensor([0, 0, 1, 1]))


# ----------------------------------------------------------------------------------------------------------------
# nft_loss
# ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rollouts():
    generator = torch.Generator().manual_seed(0)
    shape = (6, 3, 4, 4)
    rollout, source, old = (torch.randn(shape, generator=generator) for _ in range(3))
    time = torch.rand(len(rollout), generator=generator) * 0.9
    t = time[:, None, None, None]
    return {"old_velocity": old, "noised": (1 - t) * source + t * rollout, "time": time, "rollout": rollout}


def gradient(rollouts, r, mixing_weight=1.0, velocity=None):
    velocity = (rollouts["old_velocity"] if velocity is None else velocity).clone().requires_grad_()
    loss = nft_loss(velocity, r=r, mixing_weight=mixing_weight, **rollouts)
    assert loss.shape == r.shape
    return torch.autograd.grad(loss.sum(), velocity)[0]


def predicted(rollouts, velocity):
    """Where `velocity` points at t = 1."""
    return rollouts["noised"] + (1 - rollouts["time"])[:, None, None, None] * velocity


@pytest.mark.parametrize("mixing_weight", [0.1, 0.5, 2.0])
def test_the_gradient_at_the_old_policy_does_not_depend_on_the_mixing_weight(rollouts, mixing_weight):
    r = torch.linspace(0, 1, 6)
    torch.testing.assert_close(gradient(rollouts, r, mixing_weight), gradient(rollouts, r, 1.0))


def test_indifference_gives_no_gradient_at_the_old_policy(rollouts):
    assert gradient(rollouts, torch.full((6,), 0.5), 0.7).abs().max() < 1e-6


@pytest.mark.parametrize("r", [0.5, 0.2])
def test_indifference_and_dislike_pull_back_to_the_old_policy_against_the_push(rollouts, r):
    # Far from the old policy the trust region wins, whatever r is.
    old = rollouts["old_velocity"]
    for direction in (1.0, -1.0):
        away = old + direction * 100
        assert (gradient(rollouts, torch.full((6,), r), 1.0, away) * (away - old)).sum() > 0


@pytest.mark.parametrize(("r", "approaches"), [(1.0, True), (0.8, True), (0.2, False), (0.0, False)])
def test_liked_rollouts_attract_and_disliked_ones_repel(rollouts, r, approaches):
    old = rollouts["old_velocity"]
    moved = old - 0.01 * gradient(rollouts, torch.full((6,), r))
    distance = [(predicted(rollouts, v) - rollouts["rollout"]).flatten(1).norm(dim=1) for v in (old, moved)]
    assert ((distance[1] < distance[0]) == approaches).all()


def test_at_r_1_the_minimum_is_the_velocity_that_leads_to_the_rollout(rollouts):
    remaining = (1 - rollouts["time"])[:, None, None, None]
    perfect = (rollouts["rollout"] - rollouts["noised"]) / remaining
    assert nft_loss(perfect, r=torch.ones(6), **rollouts).abs().max() < 1e-9
    assert gradient(rollouts, torch.ones(6), 1.0, perfect).abs().max() < 1e-4


def test_a_sample_does_not_depend_on_the_rest_of_the_batch(rollouts):
    r = torch.linspace(0, 1, 6)
    velocity = rollouts["old_velocity"] + 0.1
    together = nft_loss(velocity, r=r, **rollouts)
    alone = [nft_loss(velocity[i : i + 1], r=r[i : i + 1], **{k: v[i : i + 1] for k, v in rollouts.items()})
             for i in range(6)]  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_normaliser_has_a_floor(rollouts):
    # An error of e everywhere costs |e| above the floor (e^2 / e), and e^2 / floor below it: it vanishes smoothly.
    remaining = (1 - rollouts["time"])[:, None, None, None]

    def cost(error):
        velocity = (rollouts["rollout"] + error - rollouts["noised"]) / remaining
        return nft_loss(velocity, r=torch.ones(6), **rollouts)

    torch.testing.assert_close(cost(0.5), torch.full((6,), 0.5), rtol=1e-3, atol=0)
    small = NORMALIZER_FLOOR / 10
    torch.testing.assert_close(cost(small), torch.full((6,), small**2 / NORMALIZER_FLOOR), rtol=1e-2, atol=0)


def test_a_prediction_that_is_already_right_has_finite_gradients(rollouts):
    right = {**rollouts, "noised": rollouts["rollout"], "old_velocity": torch.zeros_like(rollouts["rollout"])}
    for r in (0.0, 0.5, 1.0):
        assert (gradient(right, torch.full((6,), r)) == 0).all()


@pytest.mark.parametrize("shape", [(5, 2), (5, 7), (5, 3, 8, 8)])
def test_any_shape_of_sample_will_do(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert nft_loss(x, x, x, torch.rand(5), x, torch.rand(5)).shape == (5,)
