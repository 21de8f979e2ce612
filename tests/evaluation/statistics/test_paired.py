"""Paired tests find what is there, at the rate that they promise."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.evaluation.statistics.distances import kernel_distance
from cellfluxrl.evaluation.statistics.intervals import Interval, mean_interval
from cellfluxrl.evaluation.statistics.metrics import mean_wasserstein
from cellfluxrl.evaluation.statistics.paired import (
    PairedTest,
    adjust,
    paired_kernel_distances,
    paired_means,
    paired_statistics,
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_pairing_shows_a_difference_that_the_spread_of_the_cells_hides(random):
    control = random.normal(size=40)
    found = paired_means(control + 0.2 + random.normal(0, 0.1, 40), control)
    assert 0.1 < found.difference.low < 0.2 < found.difference.high < 0.3
    assert found.p_value == 1e-4
    assert mean_interval(control + 0.2).low < 0.0


def test_sign_flips_reject_equal_means_as_often_as_they_say(random):
    p_values = [paired_means(*random.normal(size=(2, 25)), seed=k).p_value for k in range(60)]
    assert np.mean(np.array(p_values) < 0.1) < 0.25
    assert np.mean(np.array(p_values) < 0.5) > 0.25


def test_equal_rows_are_no_difference(random):
    same = random.normal(size=30)
    found = paired_means(same, same)
    assert found.difference == Interval(0, 0, 0, 0)
    assert found.p_value == 1


def test_pairs_without_a_value_are_left_out():
    found = paired_means(np.array([1.0, np.nan, 3.0]), np.array([0.0, 1.0, np.nan]))
    assert (found.difference.value, found.count) == (1, 1)
    assert np.isnan(paired_means(np.array([np.nan]), np.array([1.0])).p_value)


def test_kernel_difference_is_that_of_the_two_kernel_distances(random):
    ours, theirs, real = random.normal(size=(3, 60, 4)) + np.array([0.5, 0.0, 0.0])[:, None, None]
    found = paired_kernel_distances(ours, theirs, real)
    expected = kernel_distance(ours, real, 0).value - kernel_distance(theirs, real, 0).value
    assert found.difference.value == pytest.approx(expected)
    assert found.difference.low > 0
    assert found.p_value < 0.01


def test_kernel_test_finds_nothing_between_samples_of_one_distribution(random):
    p_values = [paired_kernel_distances(*random.normal(size=(3, 40, 3)), seed=k).p_value for k in range(20)]
    assert np.median(p_values) > 0.2


def test_statistics_of_sets_are_compared_by_swaps(random):
    real = random.normal(size=(80, 2))
    found = paired_statistics(
        random.normal(size=(80, 2)) + 1, random.normal(size=(80, 2)), lambda x: mean_wasserstein(x, real)
    )
    assert found.difference.low > 0.5
    assert found.p_value == pytest.approx(1 / 500)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_the_p_value_and_bonferroni(p_values):
    tests = {str(k): PairedTest(Interval(0.0), p, 9) for k, p in enumerate(p_values)}
    adjusted = adjust(tests)
    assert list(adjusted) == list(tests)
    for name, test in adjusted.items():
        assert tests[name].p_value <= test.adjusted <= min(1, len(tests) * tests[name].p_value) + 1e-12
    ranked = sorted(adjusted.values(), key=lambda test: test.p_value)
    assert all(a.adjusted <= b.adjusted for a, b in pairwise(ranked))


def test_holm_passes_over_what_could_not_be_tested():
    tests = {"a": PairedTest(Interval(0.0), 0.02, 9), "b": PairedTest(Interval(np.nan), np.nan, 0)}
    assert adjust(tests)["a"].adjusted == 0.02
    assert np.isnan(adjust(tests)["b"].adjusted)
