import numpy as np
import pytest

from cellfluxrl.evaluation.statistics.two_sample import two_sample_test


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_halves_of_one_distribution_cannot_be_told_apart(random):
    test = two_sample_test(random.normal(size=(1000, 20)), random.normal(size=(1000, 20)))
    assert test.accuracy.low < 0.5 < test.accuracy.high
    assert test.p_value > 0.05


def test_p_values_of_one_distribution_are_uniform(random):
    p = np.array([two_sample_test(*random.normal(size=(2, 60, 6))).p_value for _ in range(400)])
    # Standard errors 1.1 % and 2.5 %.
    assert (p < 0.05).mean() < 0.09
    assert 0.4 < (p < 0.5).mean() < 0.6


def test_a_shift_is_seen(random):
    test = two_sample_test(random.normal(size=(300, 20)), 1.5 + random.normal(size=(300, 20)))
    assert test.accuracy.value > 0.97
    assert test.p_value < 1e-12
    assert test.count == 300


@pytest.mark.parametrize("spread", [0.3, 3])
def test_a_spread_of_the_same_mean_is_seen(random, spread):
    test = two_sample_test(random.normal(size=(300, 8)), spread * random.normal(size=(300, 8)))
    assert test.accuracy.value > 0.9


def test_one_shifted_feature_among_many_is_seen(random):
    a, b = random.normal(size=(2, 500, 100))
    b[:, 17] += 2
    assert two_sample_test(a, b).accuracy.value > 0.75


def test_the_larger_set_is_cut_so_that_chance_is_one_half(random):
    test = two_sample_test(random.normal(size=(100, 5)), random.normal(size=(2000, 5)))
    assert test.count == 100
    assert abs(test.accuracy.value - 0.5) < 0.15  # standard error 0.05


def test_units_do_not_matter(random):
    a, b = random.normal(size=(80, 4)), 0.5 + random.normal(size=(80, 4))
    scale = np.array([1e-6, 1, 1e3, 1e6])
    assert two_sample_test(a * scale, b * scale).accuracy == two_sample_test(a, b).accuracy


def test_rows_with_nan_are_left_out_and_counted(random):
    a, b = random.normal(size=(50, 4)), random.normal(size=(60, 4))
    a[:7, 1] = np.nan
    test = two_sample_test(a, b)
    assert test.missing == (7, 0)
    assert test.count == 43
    assert test == two_sample_test(a, b)


def test_constant_features_are_no_problem(random):
    a = np.concatenate([random.normal(size=(50, 2)), np.ones((50, 1))], axis=1)
    assert np.isfinite(two_sample_test(a[:25], a[25:]).p_value)


def test_too_few_rows_are_refused(random):
    with pytest.raises(ValueError, match="at least 10 rows without NaN, got 9 and 50"):
        two_sample_test(random.normal(size=(9, 3)), random.normal(size=(50, 3)))
    with pytest.raises(ValueError, match="of one F"):
        two_sample_test(random.normal(size=(40, 3)), random.normal(size=(50, 4)))
