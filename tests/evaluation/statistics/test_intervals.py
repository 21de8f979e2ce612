import math

import numpy as np
import pytest

from cellfluxrl.evaluation.statistics.intervals import bootstrap_interval, half_sampling_interval


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.mark.parametrize("make_interval", [bootstrap_interval, half_sampling_interval])
def test_the_error_of_a_mean_is_its_standard_error(make_interval, random):
    values = random.normal(scale=3, size=400)
    interval = make_interval(lambda rows: values[rows].mean(), [400], resamples=1000)
    expected = values.std(ddof=1) / 20
    assert interval.value == values.mean()
    # A standard deviation from 1,000 values is known to 2 %, an end of the interval to about 5 %.
    assert interval.error == pytest.approx(expected, rel=0.1)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * expected, rel=0.15)


@pytest.mark.parametrize("make_interval", [bootstrap_interval, half_sampling_interval])
def test_nineteen_of_twenty_intervals_hold_the_truth(make_interval, random):
    hits = 0
    for seed in range(200):
        values = random.exponential(size=60)
        interval = make_interval(lambda rows, v=values: v[rows].mean(), [60], resamples=200, seed=seed)
        hits += interval.low < 1 < interval.high
    # Standard error of 95 % of 200: 1.5 %; the bootstrap of a skewed mean misses one or two per cent more.
    assert 0.88 <= hits / 200 <= 0.99


def test_sets_are_resampled_independently(random):
    a, b = random.normal(size=300), random.normal(size=100)
    interval = bootstrap_interval(lambda i, j: a[i].mean() - b[j].mean(), [300, 100])
    assert interval.error == pytest.approx(math.sqrt(1 / 300 + 1 / 100), rel=0.15)


@pytest.mark.parametrize(("make_interval", "few"), [(bootstrap_interval, 1), (half_sampling_interval, 3)])
def test_few_members_have_a_value_and_no_interval(make_interval, few):
    interval = make_interval(lambda i, j: float(len(i) + len(j)), [few, 50])
    assert interval.value == few + 50
    assert np.isnan([interval.low, interval.high, interval.error]).all()


@pytest.mark.parametrize("make_interval", [bootstrap_interval, half_sampling_interval])
def test_the_seed_decides(make_interval, random):
    values = random.normal(size=50)
    first, again, other = (make_interval(lambda rows: values[rows].mean(), [50], seed=seed) for seed in (0, 0, 1))
    assert first == again != other
