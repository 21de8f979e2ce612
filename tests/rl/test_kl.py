"""The controller of the KL weight."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellfluxrl.rl.kl import BOUNDS, controlled_kl_weight

positive = st.floats(1e-12, 1e12)


@given(st.floats(*BOUNDS), positive, positive)
def test_level_and_weight_move_against_the_distance_by_a_bounded_factor(level, distance, target):
    new, weight = controlled_kl_weight(level, distance, target)
    assert BOUNDS[0] <= new <= BOUNDS[1]
    assert abs(math.log(new / level)) <= 0.2 + 1e-9
    assert abs(math.log(weight / new)) <= 4 + 1e-9
    if distance > target:
        assert weight >= new >= level
    if distance < target:
        assert weight <= new <= level


def test_values_by_hand():
    assert controlled_kl_weight(0.5, 1.0, 1.0) == (0.5, 0.5)
    assert controlled_kl_weight(1.0, 2.0, 1.0) == pytest.approx((2**0.1, 2**2.1))
    assert controlled_kl_weight(1.0, 1e9, 1.0) == pytest.approx((math.exp(0.2), math.exp(4.2)))
    assert controlled_kl_weight(1.0, 0.0, 1.0) == pytest.approx((math.exp(-0.2), math.exp(-4.2)))


@pytest.mark.parametrize("stiffness", [0.01, 1.0, 100.0])
def test_a_distance_that_follows_the_weight_with_a_delay_settles_at_the_target(stiffness):
    level = weight = 0.1
    distance = 0.0
    for _ in range(150):
        distance += 0.2 * (stiffness / weight - distance)
        level, weight = controlled_kl_weight(level, distance, target=0.5)
    assert distance == pytest.approx(0.5, rel=0.02)
    assert weight == pytest.approx(2 * stiffness, rel=0.05)
