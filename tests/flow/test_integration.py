"""The one integrator: vectors of any rank, states that may be looked at, replaced or left."""

import math

import pytest
import torch
from torch import nn

from cellfluxrl import CellFluxFlowMatchScheduler
from cellfluxrl.flow.integration import integrate, integration_steps, solve


class Growth(nn.Module):
    """dx/dt = condition x, whose solution is exp(condition) x."""

    def forward(self, sample, timestep, condition, return_dict=False):
        return (sample * condition.view(-1, *[1] * (sample.ndim - 1)),)


@pytest.mark.parametrize("shape", [(3,), (3, 50), (3, 2, 4, 4)])
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4", "exponential_ab2"])
def test_samples_of_any_rank_follow_the_velocity_of_their_condition(shape, solver):
    rate = torch.tensor([0.0, 0.5, -1.0])
    source = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    found = integrate(Growth(), CellFluxFlowMatchScheduler(solver=solver), source, rate, 64)
    assert found.shape == source.shape
    expected = source * rate.exp().view(-1, *[1] * (source.ndim - 1))
    torch.testing.assert_close(found, expected, rtol=2e-2 if solver == "euler" else 1e-3, atol=0)


def test_no_gradient_is_kept():
    source = torch.ones(2, 3, requires_grad=True)
    assert not integrate(Growth(), CellFluxFlowMatchScheduler(), source, torch.ones(2), 2).requires_grad


def scheduler_of(steps, solver="midpoint"):
    scheduler = CellFluxFlowMatchScheduler(solver=solver)
    scheduler.set_timesteps(steps)
    return scheduler


def test_there_is_a_state_after_each_evaluation_with_where_it_points():
    scheduler, seen = scheduler_of(3, solver="euler"), []
    for state in integration_steps(lambda x, t: torch.full_like(x, 2.0), scheduler, torch.zeros(1, 1)):
        seen.append((float(state.sample), float(state.target)))
    assert seen == [pytest.approx((2 / 3, 2.0)), pytest.approx((4 / 3, 2.0)), pytest.approx((2.0, 2.0))]


def test_who_stops_looking_stops_the_integration():
    scheduler, calls = scheduler_of(4), []

    def velocity(sample, t):
        calls.append(float(t))
        return torch.ones_like(sample)

    for _ in integration_steps(velocity, scheduler, torch.zeros(1, 1)):
        if len(calls) == 3:
            break
    assert calls == [0.0, 0.125, 0.25]


def test_a_state_that_is_replaced_is_where_it_continues():
    for state in integration_steps(lambda x, t: torch.zeros_like(x), scheduler_of(4, "euler"), torch.ones(1, 1)):
        state.sample = state.sample / 2
    assert float(state.sample) == 1 / 16


def test_the_rest_of_a_grid_can_be_taken_later():
    def velocity(sample, t):
        return math.e * t * sample

    whole = solve(velocity, scheduler_of(4), torch.ones(2, 3)).sample
    scheduler = scheduler_of(4)
    half = solve(velocity, scheduler, torch.ones(2, 3), scheduler.timesteps[:4]).sample
    assert torch.equal(solve(velocity, scheduler, half, scheduler.timesteps[4:]).sample, whole)
    assert torch.equal(solve(velocity, scheduler, half, []).sample, half)
