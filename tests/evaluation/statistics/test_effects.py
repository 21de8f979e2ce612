import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.evaluation.statistics.effects import effect_agreement, effects_by_group


@pytest.fixture
def random():
    return np.random.default_rng(0)


def effect_sizes(treated, control):
    """Of cells that all have one compound."""
    return effects_by_group(treated, ["taxol"] * len(treated), control, ["taxol"])[0]


def test_a_shift_of_normal_features_is_measured_in_standard_deviations(random):
    control, treated = random.normal(3, 2, size=(20_000, 3)), random.normal(3, 2, size=(20_000, 3))
    treated += [0, 4, -2]
    np.testing.assert_allclose(effect_sizes(treated, control), [0, 2, -1], atol=0.05)


def test_outliers_hardly_matter(random):
    control, treated = random.normal(size=(500, 1)), 1 + random.normal(size=(500, 1))
    clean = effect_sizes(treated, control)
    control[:10], treated[:10] = 1e6, -1e6
    np.testing.assert_allclose(effect_sizes(treated, control), clean, atol=0.15)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 2**16))
def test_effects_have_no_unit(scale, offset, seed):
    random = np.random.default_rng(seed)
    control, treated = random.normal(size=(30, 4)), 1 + random.normal(size=(20, 4))
    scaled = effect_sizes(treated * scale + offset, control * scale + offset)
    np.testing.assert_allclose(scaled, effect_sizes(treated, control), atol=1e-6)


def test_missing_values_are_left_out(random):
    control, treated = random.normal(size=(50, 3)), 1 + random.normal(size=(40, 3))
    expected = effect_sizes(treated[5:, :1], control[10:, :1])
    treated[:5, 0] = control[:10, 0] = np.nan
    treated[4:, 1] = np.nan  # four are left
    control[:, 2] = np.nan
    effects = effect_sizes(treated, control)
    assert effects[0] == expected[0]
    assert np.isnan(effects[1:]).all()


def test_counts_that_seldom_vary_have_a_scale_and_constants_have_none():
    control = np.stack([np.r_[np.ones(80), np.full(20, 2)], np.ones(100)], axis=1)
    effects = effect_sizes(np.full((30, 2), 3.0), control)
    assert effects[0] == pytest.approx(2 / (1.2533 * 0.2))
    assert math.isnan(effects[1])


def test_effects_of_each_compound_in_order(random):
    control, features = random.normal(size=(50, 2)), random.normal(size=(30, 2))
    compounds = ["taxol", "ALLN", "taxol"] * 10
    effects = effects_by_group(features, compounds, control, ["ALLN", "taxol"])
    np.testing.assert_array_equal(effects[0], effect_sizes(features[1::3], control))
    with pytest.raises(ValueError, match="unknown group 'taxoll'; did you mean 'taxol'"):
        effects_by_group(features, compounds, control, ["taxoll"])
    with pytest.raises(ValueError, match="one group for each of 30 cells, got 3"):
        effects_by_group(features, compounds[:3], control, ["ALLN"])
    with pytest.raises(ValueError, match="must be"):
        effect_sizes(features[:, :1], control)


# --- agreement ---


def test_identical_effects_agree_exactly(random):
    effects = random.normal(size=(6, 40))
    agreement = effect_agreement(effects, effects)
    for measure in (agreement.pearson, agreement.spearman, agreement.same_sign, agreement.slope):
        assert (measure.value, measure.low, measure.high) == pytest.approx((1, 1, 1))
    assert agreement.pairs == 240
    assert agreement.clear_pairs == (np.abs(effects) >= 0.5).sum()


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 3), st.booleans(), st.integers(0, 2**16))
def test_weaker_and_reversed_effects(size, reverse, seed):
    real = np.random.default_rng(seed).normal(size=(5, 30))
    sign = -1 if reverse else 1
    agreement = effect_agreement(real, sign * size * real, resamples=2)
    assert agreement.slope.value == pytest.approx(sign * size)
    assert agreement.pearson.value == pytest.approx(sign)
    assert agreement.spearman.value == pytest.approx(sign)
    assert agreement.same_sign.value == (0 if reverse else 1)


def test_unrelated_effects_are_at_chance(random):
    agreement = effect_agreement(random.normal(size=(20, 200)), random.normal(size=(20, 200)))
    assert abs(agreement.pearson.value) < 0.06
    assert abs(agreement.same_sign.value - 0.5) < 0.04
    assert abs(agreement.slope.value) < 0.1


def test_small_real_effects_have_no_say_in_the_sign(random):
    real = np.where(np.arange(100) % 2, 2.0, 0.01) * np.ones((4, 1))
    agreement = effect_agreement(real, np.where(real > 1, real, -real))
    assert agreement.same_sign.value == 1
    assert agreement.clear_pairs == 200


def test_the_interval_holds_the_correlation_of_more_compounds(random):
    real = random.normal(size=(400, 10))
    generated = 0.6 * real + 0.8 * random.normal(size=real.shape)
    hits = 0
    for start in range(0, 400, 20):
        rows = slice(start, start + 20)
        pearson = effect_agreement(real[rows], generated[rows], resamples=100).pearson
        hits += pearson.low < 0.6 < pearson.high
    assert hits >= 16  # of 20; 19 are expected


def test_pairs_with_nan_are_left_out(random):
    real = random.normal(size=(4, 10))
    generated = real.copy()
    real[0], generated[1, :5] = np.nan, np.nan
    agreement = effect_agreement(real, generated)
    assert agreement.pairs == 25
    assert agreement.pearson.value == pytest.approx(1)


def test_nothing_to_compare_is_nan():
    agreement = effect_agreement(np.full((3, 4), np.nan), np.ones((3, 4)))
    assert agreement.pairs == 0
    assert np.isnan([agreement.pearson.value, agreement.same_sign.value, agreement.slope.value]).all()
    with pytest.raises(ValueError, match=r"got \(3, 4\) and \(3, 5\)"):
        effect_agreement(np.ones((3, 4)), np.ones((3, 5)))


def test_one_compound_has_no_interval(random):
    real = random.normal(size=(1, 30))
    agreement = effect_agreement(real, real)
    assert agreement.pearson.value == pytest.approx(1)
    assert math.isnan(agreement.pearson.low)
