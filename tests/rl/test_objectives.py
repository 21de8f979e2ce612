"""The objectives, against gradients and minima derived by hand."""

import pytest
import torch

from cellfluxrl.flow.paths import PathSample
from cellfluxrl.rl.advantages import compute_advantages
from cellfluxrl.rl.objectives import (
    NORMALIZER_FLOOR,
    OBJECTIVES,
    Batch,
    dpo_loss,
    matching_error,
    nft_loss,
    regression_loss,
)
from cellfluxrl.rl.settings import RLSettings

DEFAULT = RLSettings()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    rollout, source, old, reference = (torch.randn(6, 3, 4, 4, generator=generator) for _ in range(4))
    time = torch.rand(6, generator=generator) * 0.9
    return Batch(old, old, reference, PathSample(source, rollout, time), preference=torch.linspace(0, 1, 6))


def replaced(batch, **changes):
    return Batch(**(vars(batch) | changes))


def part(batch, rows):
    columns = {name: value[rows] for name, value in vars(batch).items() if name != "path"}
    path = PathSample(*(value[rows] for value in vars(batch.path).values()))
    return Batch(path=path, **columns)


def gradient(loss, batch, settings=DEFAULT, **changes):
    batch = replaced(batch, **changes)
    velocity = batch.velocity.clone().requires_grad_()
    value = loss(replaced(batch, velocity=velocity), settings)
    assert value.shape == batch.path.t.shape
    return torch.autograd.grad(value.sum(), velocity)[0]


def remaining(batch):
    return (1 - batch.path.t)[:, None, None, None]


def constant(batch, r):
    return torch.full_like(batch.path.t, r)


# ----------------------------------------------------------------------------------------------------------------
# nft
# ----------------------------------------------------------------------------------------------------------------


def test_the_nft_gradient_at_the_old_policy_is_that_of_the_derivation(batch):
    # (2 r - 1) d/dv mean((1 - t)^2 (v - u)^2) / s, with u = x_1 - x_0 and s the detached mean of |(1 - t) (v - u)|.
    error = remaining(batch) * (batch.old_velocity - batch.path.velocity)
    scale = error.abs().mean(dim=(1, 2, 3))
    factor = (2 * batch.preference - 1) / scale / error[0].numel()
    expected = factor[:, None, None, None] * 2 * remaining(batch) * error
    for mixing_weight in (0.1, 0.5, 1.0, 2.0):
        found = gradient(nft_loss, batch, RLSettings(mixing_weight=mixing_weight))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("r", [0.5, 0.2])
def test_indifference_and_dislike_pull_back_to_the_old_policy_against_the_push(batch, r):
    # Far from the old policy the trust region wins, whatever r is.
    for direction in (1.0, -1.0):
        away = batch.old_velocity + direction * 100
        pull = gradient(nft_loss, batch, velocity=away, preference=constant(batch, r))
        assert (pull * (away - batch.old_velocity)).sum() > 0


@pytest.mark.parametrize(("r", "approaches"), [(1.0, True), (0.8, True), (0.2, False), (0.0, False)])
def test_liked_rollouts_attract_and_disliked_ones_repel(batch, r, approaches):
    moved = batch.old_velocity - 0.01 * gradient(nft_loss, batch, preference=constant(batch, r))
    target = batch.path.velocity
    before, after = ((v - target).flatten(1).norm(dim=1) for v in (batch.old_velocity, moved))
    assert ((after < before) == approaches).all()


def test_a_sample_does_not_depend_on_the_rest_of_the_batch(batch):
    batch = replaced(batch, velocity=batch.old_velocity + 0.1)
    for loss, size in ((nft_loss, 1), (regression_loss, 1), (dpo_loss, 2)):
        parts = [loss(part(batch, slice(i, i + size)), DEFAULT) for i in range(0, 6, size)]
        torch.testing.assert_close(loss(batch, DEFAULT), torch.cat(parts))


# ----------------------------------------------------------------------------------------------------------------
# The error that nft and the regressions share
# ----------------------------------------------------------------------------------------------------------------


def test_the_velocity_that_leads_to_the_rollout_is_the_minimum(batch):
    perfect = batch.path.velocity
    assert (matching_error(perfect, batch.path) == 0).all()
    assert (gradient(regression_loss, batch, velocity=perfect) == 0).all()
    assert (gradient(nft_loss, batch, velocity=perfect, preference=constant(batch, 1.0)) == 0).all()


def test_the_normaliser_has_a_floor(batch):
    # An error of e everywhere costs |e| above the floor (e^2 / e), and e^2 / floor below it: it vanishes smoothly.
    def cost(error):
        return matching_error(batch.path.velocity + error / remaining(batch), batch.path)

    torch.testing.assert_close(cost(0.5), torch.full((6,), 0.5), rtol=1e-3, atol=0)
    small = NORMALIZER_FLOOR / 10
    torch.testing.assert_close(cost(small), torch.full((6,), small**2 / NORMALIZER_FLOOR), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("shape", [(4, 2), (4, 7), (4, 3, 8, 8)])
def test_any_shape_of_sample_will_do_also_one_that_is_right_already(name, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    right = Batch(x, x, x, PathSample(torch.zeros_like(x), x, torch.rand(4)), torch.rand(4))
    assert gradient(OBJECTIVES[name].loss, right).isfinite().all()


# ----------------------------------------------------------------------------------------------------------------
# dpo
# ----------------------------------------------------------------------------------------------------------------


def test_the_dpo_gradient_at_the_base_is_that_of_the_derivation(batch):
    # Both rows hold the loss of their pair, so the sum over rows has twice its gradient: 2 * 1/2 * (+-) 2 (v - u) / D.
    velocity = batch.reference_velocity
    sign = torch.tensor([1.0, -1.0] * 3)[:, None, None, None]
    expected = sign * 2 * (velocity - batch.path.velocity) / velocity[0].numel()
    for beta in (1.0, 40.0):
        found = gradient(dpo_loss, batch, RLSettings(dpo_beta=beta), velocity=velocity)
        torch.testing.assert_close(found, expected)


def test_a_pair_that_is_told_apart_well_costs_little_and_one_the_wrong_way_round_much(batch):
    target = batch.path.velocity
    first = torch.tensor([True, False] * 3)[:, None, None, None]
    reference = target + 1
    right = replaced(batch, reference_velocity=reference, velocity=torch.where(first, target, target + 2))
    wrong = replaced(batch, reference_velocity=reference, velocity=torch.where(first, target + 2, target))
    # d is -1 for the row that is met and 3 for the one that is avoided.
    settings = RLSettings(dpo_beta=1.0)
    expected = 2 * torch.nn.functional.softplus(torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(dpo_loss(right, settings), expected[0].expand(6))
    torch.testing.assert_close(dpo_loss(wrong, settings), expected[1].expand(6))


# ----------------------------------------------------------------------------------------------------------------
# Selections
# ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def advantages():
    # Groups 0 and 1 of three, one of which has no number; group 2 without variance.
    rewards = torch.tensor([1.0, 5.0, 3.0, 2.0, torch.nan, 0.0, 7.0, 7.0])
    groups = torch.tensor([0, 1, 0, 0, 1, 1, 2, 2])
    return compute_advantages({"combined": rewards}, groups), groups


def test_nft_trains_on_every_rollout_that_has_a_reward(advantages):
    found = OBJECTIVES["nft"].select(*advantages, DEFAULT)
    assert found.rows.tolist() == found.draws.tolist() == [0, 1, 2, 3, 5, 6, 7]
    torch.testing.assert_close(found.preference, advantages[0].r[found.rows])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_rwr_weights_by_the_exponential_of_the_advantage_within_the_group(advantages, temperature):
    found = OBJECTIVES["rwr"].select(*advantages, RLSettings(temperature=temperature))
    assert found.rows.tolist() == [0, 1, 2, 3, 5]
    weight = dict(zip(found.rows.tolist(), found.preference.tolist(), strict=True))
    advantage = advantages[0].advantage.tolist()
    assert weight[0] + weight[2] + weight[3] == pytest.approx(3)
    assert weight[1] + weight[5] == pytest.approx(2)
    for high, low in ((2, 0), (2, 3), (1, 5)):
        expected = torch.tensor((advantage[high] - advantage[low]) / temperature).exp()
        assert weight[high] / weight[low] == pytest.approx(float(expected), rel=1e-5)


def test_best_of_n_trains_on_the_best_of_each_group_with_signal(advantages):
    found = OBJECTIVES["best_of_n"].select(*advantages, DEFAULT)
    assert found.rows.tolist() == found.draws.tolist() == [2, 1]
    assert found.preference.tolist() == [1.0, 1.0]


def test_dpo_pairs_the_best_with_the_worst_and_gives_both_the_same_draw(advantages):
    found = OBJECTIVES["dpo"].select(*advantages, DEFAULT)
    assert found.rows.tolist() == [2, 0, 1, 5]
    assert found.draws.tolist() == [2, 2, 1, 1]
