import numpy as np
import pytest
from scipy.spatial.distance import cdist

from cellfluxrl.evaluation.statistics.neighbours import coverage, memorisation, nearest_distances


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def training(random):
    return random.normal(size=(600, 8))


@pytest.fixture
def held_out(random):
    return random.normal(size=(300, 8))


def test_nearest_distances_are_those_of_all_pairs(random):
    a, b = random.normal(size=(700, 5)), 100 + random.normal(size=(40, 5))
    np.testing.assert_allclose(nearest_distances(a, b, 3), np.sort(cdist(a, b), axis=1)[:, :3])


# --- memorisation ---


def test_a_memorised_set_is_caught(training, held_out, random):
    copies = training[:200] + 0.05 * random.normal(size=(200, 8))
    found = memorisation(copies, training, held_out)
    assert found.copies.value > 0.9
    assert found.p_value < 1e-12
    assert found.distance_ratio.high < 0.2
    assert found.nearer_to_training.low > found.nearer_to_training_real.high


def test_new_real_cells_are_not_caught(training, held_out, random):
    found = memorisation(random.normal(size=(200, 8)), training, held_out)
    assert found.copies.value < 0.05
    assert found.p_value > 0.05
    assert found.distance_ratio.low < 1 < found.distance_ratio.high
    # With twice as many training as held-out cells, two of three are nearer to a training cell by chance.
    assert found.nearer_to_training.value == pytest.approx(2 / 3, abs=0.1)
    assert found.nearer_to_training_real.value == pytest.approx(2 / 3, abs=0.1)


def test_one_copy_in_ten_is_caught(training, held_out, random):
    mixed = np.concatenate([training[:30], random.normal(size=(270, 8))])
    found = memorisation(mixed, training, held_out)
    assert found.p_value < 1e-4
    assert found.copies.value == pytest.approx(0.1, abs=0.03)
    assert found.copies.low > 0.03


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: 0.3 * x, lambda x: 3 * x])
def test_another_plate_averages_and_noise_are_no_copies(training, held_out, random, change):
    found = memorisation(change(random.normal(size=(200, 8))), training, held_out)
    assert found.p_value > 0.01


def test_p_values_of_new_cells_are_not_too_small(random):
    p = [memorisation(*(random.normal(size=(n, 6)) for n in (80, 150, 70)), resamples=2).p_value for _ in range(150)]
    assert np.mean(np.array(p) < 0.05) <= 0.1  # standard error 1.8 %


def test_the_scale_of_features_does_not_matter(training, held_out, random):
    scale = np.array([1e-3, 1, 1, 1, 1, 1, 1, 1e4])
    generated = random.normal(size=(50, 8))
    plain, scaled = (memorisation(*(x * s for x in (generated, training, held_out))) for s in (1, scale))
    assert plain.distance_ratio.value == pytest.approx(scaled.distance_ratio.value)
    assert plain.copies.value == scaled.copies.value


def test_rows_with_nan_are_left_out_and_counted(training, held_out, random):
    generated = random.normal(size=(50, 8))
    expected = memorisation(generated[3:], training[1:], held_out)
    generated[:3, 2] = training[0, 1] = np.nan
    found = memorisation(generated, training, held_out)
    assert (found.generated, found.training, found.held_out, found.missing) == (47, 599, 300, 4)
    assert found.distance_ratio == expected.distance_ratio


def test_sets_that_cannot_be_compared_are_refused(training, held_out):
    with pytest.raises(ValueError, match=r"of one D, got .*'held_out': \(300, 7\)"):
        memorisation(training, training, held_out[:, :7])
    with pytest.raises(ValueError, match="generated must have at least two rows without NaN, got 0 of 5"):
        memorisation(np.full((5, 8), np.nan), training, held_out)


# --- coverage ---


def test_as_many_real_cells_cover_the_others(random):
    value = coverage(random.normal(size=(800, 4)), random.normal(size=(800, 4))).value
    assert value == pytest.approx(1 - 2**-5, abs=0.02)


def test_a_collapsed_mode_is_seen_where_the_total_variance_is_right(random):
    modes = np.array([[-3.0, 0], [0, 0], [3, 0]])
    real = modes.repeat(200, axis=0) + 0.2 * random.normal(size=(600, 2))
    collapsed = modes[[0, 2]].repeat(300, axis=0) * 0.82 + [[-0.5, 0]] + 0.2 * random.normal(size=(600, 2))
    assert coverage(collapsed, real).high < 0.5
    assert coverage(real + 0.01 * random.normal(size=real.shape), real).low > 0.95


def test_the_number_of_neighbours_is_checked(random):
    with pytest.raises(ValueError, match="between 1 and 9"):
        coverage(random.normal(size=(10, 2)), random.normal(size=(10, 2)), neighbours=10)
