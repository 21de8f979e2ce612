import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.stats import wasserstein_distance

from cellfluxrl.evaluation.statistics.metrics import (
    frechet_distance,
    image_features,
    mean_wasserstein,
    relative_spread,
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


# --- distances ---


def test_the_frechet_distance_has_its_textbook_value(random):
    a = random.normal(size=(300, 6)) @ random.normal(size=(6, 6))
    b = 1 + random.normal(size=(250, 6)) @ random.normal(size=(6, 6))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_is_that_of_torchmetrics(random):
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = random.normal(size=(200, 5)), 0.5 + 2 * random.normal(size=(300, 5))
    moments = [
        torch.from_numpy(m) for m in (a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))
    ]
    assert frechet_distance(a, b) == pytest.approx(float(fid._compute_fid(*moments)), rel=1e-6)


def test_the_frechet_distance_of_shifted_and_scaled_features(random):
    x = random.normal(size=(500, 4))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(4)
    assert frechet_distance(x, 3 * x) == pytest.approx(
        4 * (x.mean(axis=0) ** 2).sum() + 4 * x.var(axis=0, ddof=1).sum()
    )


def test_features_that_do_not_vary_are_no_problem(random):
    x = np.concatenate([random.normal(size=(50, 2)), np.ones((50, 3))], axis=1)
    assert frechet_distance(x, x + 1) == pytest.approx(5)


def test_the_mean_wasserstein_distance_is_in_units_of_the_real_spread(random):
    a, b = 3 + random.normal(size=(80, 2)), 5 * random.normal(size=(120, 2))
    expected = np.mean([wasserstein_distance(a[:, k], b[:, k]) / b[:, k].std() for k in range(2)])
    assert mean_wasserstein(a, b) == pytest.approx(expected)
    assert mean_wasserstein(b + 2 * b.std(axis=0), b) == pytest.approx(2)
    assert mean_wasserstein(b, b) == 0


def test_the_relative_spread_compares_standard_deviations(random):
    x = random.normal(size=(100, 3))
    assert relative_spread(x, x) == pytest.approx(1)
    assert relative_spread(5 + x / 2, x) == pytest.approx(0.5)
    assert relative_spread(np.zeros((10, 3)), x) == 0


# --- features of images ---


@pytest.fixture
def images(generator):
    return 2 * torch.rand(4, 3, 16, 16, generator=generator) - 1


@pytest.mark.parametrize(("channels", "features"), [(1, 8), (3, 27), (5, 50)])
def test_there_are_eight_features_a_channel_and_one_a_pair(channels, features, generator):
    images = torch.rand(2, channels, 16, 16, generator=generator)
    assert image_features(images).shape == (2, features)


@pytest.mark.parametrize("move", [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)])
def test_flips_and_transposition_do_not_change_the_features(images, move):
    torch.testing.assert_close(image_features(move(images)), image_features(images), rtol=0, atol=1e-5)


def test_features_do_not_depend_on_the_batch(images):
    torch.testing.assert_close(image_features(images)[2:3], image_features(images[2:3]))


def test_the_first_features_are_means_and_standard_deviations(images):
    features = image_features(images)
    torch.testing.assert_close(features[:, :3], images.mean(dim=(2, 3)))
    torch.testing.assert_close(features[:, 3:6], images.flatten(2).std(dim=2, correction=0))


def test_the_last_features_are_correlations_between_channels(images):
    images[:, 1] = -images[:, 0]
    torch.testing.assert_close(image_features(images)[:, -3], -torch.ones(4))
    expected = torch.stack([torch.corrcoef(image.flatten(1))[0, 2] for image in images])
    torch.testing.assert_close(image_features(images)[:, -2], expected, rtol=0, atol=1e-5)


def test_blurring_lowers_the_fine_detail_only(generator):
    images = torch.randn(4, 1, 32, 32, generator=generator).clamp(-1, 1)
    blurred = torch.nn.functional.avg_pool2d(images, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    before, after = image_features(images), image_features(blurred)
    assert (after[:, 4] < 1e-6).all()
    torch.testing.assert_close(after[:, 5:7], before[:, 5:7])


def test_a_uniform_image_has_finite_features():
    assert torch.isfinite(image_features(torch.full((2, 3, 16, 16), -1.0))).all()
