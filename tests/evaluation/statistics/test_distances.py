import numpy as np
import pytest
import torch

from cellfluxrl.evaluation.statistics.distances import frechet_infinity, kernel_distance
from cellfluxrl.evaluation.statistics.metrics import frechet_distance


@pytest.fixture
def random():
    return np.random.default_rng(0)


class Identity(torch.nn.Module):
    """The feature extractor of features."""

    num_features = 12

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


# --- the arithmetic of torchmetrics ---


def test_the_frechet_distance_is_fid(random):
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = random.normal(size=(300, 12)), 0.5 + 2 * random.normal(size=(400, 12))
    metric = fid.FrechetInceptionDistance(Identity()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(b), real=True)
    metric.update(torch.from_numpy(a), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_the_kernel_distance_is_kid(random):
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = random.normal(size=(200, 12)), 0.5 + 2 * random.normal(size=(200, 12))
    metric = kid.KernelInceptionDistance(Identity(), subsets=2, subset_size=200)
    metric.update(torch.from_numpy(b), real=True)
    metric.update(torch.from_numpy(a), real=False)
    mean, std = metric.compute()
    assert kernel_distance(a, b).value == pytest.approx(float(mean), rel=1e-5)
    assert float(std) == pytest.approx(0, abs=1e-4)  # both subsets are all rows


# --- the kernel distance ---


def kernel_distance_of_pairs(a, b):
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def distinct(x):
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return distinct(a) + distinct(b) - 2 * kernel(a, b).mean()


def test_the_kernel_distance_of_many_rows_is_that_of_all_pairs(random):
    a, b = random.normal(size=(1500, 3)), 0.2 + random.normal(size=(1100, 3))
    assert kernel_distance(a, b, resamples=2).value == pytest.approx(kernel_distance_of_pairs(a, b))


def test_the_kernel_distance_is_unbiased(random):
    samples = [random.normal(size=(2, 20, 6)) for _ in range(300)]
    values = np.array([kernel_distance(a, b, resamples=2).value for a, b in samples])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))


def test_the_kernel_distance_of_the_smallest_sets():
    two, three = np.eye(2), np.arange(6.0).reshape(3, 2)
    distance = kernel_distance(two, three)
    assert distance.value == pytest.approx(kernel_distance_of_pairs(two, three))
    assert np.isnan(distance.low)
    assert np.isnan(kernel_distance(two[:1], three).value)


def test_the_error_of_the_kernel_distance_is_its_scatter(random):
    found = [
        kernel_distance(random.normal(size=(100, 6)), 0.8 + random.normal(size=(80, 6)), seed=k) for k in range(150)
    ]
    values, _, _, errors = np.array(found).T
    # A standard deviation from 150 values is known to 6 %.
    assert errors.mean() == pytest.approx(values.std(), rel=0.25)
    truth = values.mean()
    assert np.mean([d.low < truth < d.high for d in found]) > 0.88


# --- the Frechet distance without bias ---


def test_the_extrapolated_distance_is_nearer_to_the_truth_than_that_of_few_samples(random):
    truth = 16 * 0.3**2
    samples = [(random.normal(size=(150, 16)), 0.3 + random.normal(size=(200, 16))) for _ in range(20)]
    raw = np.array([frechet_distance(a, b) for a, b in samples])
    extrapolated = np.array([frechet_infinity(a, b, resamples=0).value for a, b in samples])
    assert raw.mean() - truth > 0.5
    assert abs(extrapolated.mean() - truth) < 0.25 * (raw.mean() - truth)
    assert np.abs(extrapolated - truth).mean() < 0.6 * np.abs(raw - truth).mean()


def test_the_interval_of_the_extrapolated_distance_holds_the_truth(random):
    hits = 0
    for seed in range(20):
        a, b = random.normal(size=(120, 6)), 0.5 + random.normal(size=(120, 6))
        interval = frechet_infinity(a, b, resamples=40, seed=seed)
        hits += interval.low < 6 * 0.5**2 < interval.high
    assert hits >= 16  # of 20; 19 are expected


def test_too_few_rows_for_an_extrapolation_are_refused(random):
    a = random.normal(size=(100, 30))
    assert np.isnan(frechet_infinity(a, a + 1).low)  # enough for a value, not for that of halves
    with pytest.raises(ValueError, match=r"30 features is extrapolated from more than 61 rows .* got 61 and 100"):
        frechet_infinity(a[:61], a)


def test_features_that_are_not_finite_are_refused(random):
    a = random.normal(size=(100, 3))
    holed = np.where(np.arange(100)[:, None] == 5, np.nan, a)
    for distance in (kernel_distance, frechet_infinity, frechet_distance):
        with pytest.raises(ValueError, match="of the second set are not all finite"):
            distance(a, holed)
        with pytest.raises(ValueError, match=r"got \(100, 3\) and \(100, 2\)"):
            distance(a, a[:, :2])
