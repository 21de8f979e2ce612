import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.rewards.statistics import FEW_IMAGES, MINIMUM_STD, REFERENCE_SIZE, fit_statistics, separability


def drawn(counts, means, std=1.0, seed=0, dim=1):
    """Statistics of `counts[k]` images of MoA k around `means[k]`, and their MoA."""
    random = torch.Generator().manual_seed(seed)
    values = [m + std * torch.randn(n, dim, generator=random) for n, m in zip(counts, means, strict=True)]
    return torch.cat(values), torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def test_with_enough_images_every_moa_keeps_its_own_numbers():
    values, index = drawn([FEW_IMAGES, 100], [0.0, 5.0], dim=2)
    fitted = fit_statistics(values, index, 2)
    for k in range(2):
        torch.testing.assert_close(fitted.mean[k], values[index == k].mean(dim=0))
        torch.testing.assert_close(fitted.std[k], values[index == k].std(dim=0))
    assert fitted.count.tolist() == [FEW_IMAGES, 100]


def test_reference_cells_are_real_cells_of_the_moa():
    values, index = drawn([50, 1000], [0.0, 5.0])
    fitted = fit_statistics(values, index, 2)
    for k in range(2):
        own = values[index == k][:, 0]
        cells = fitted.reference[k, :, 0] * fitted.std[k] + fitted.mean[k]
        assert ((cells[:, None] - own).abs().min(dim=1).values < 1e-4).all()
    # Each at most once, where there are enough.
    assert len(fitted.reference[1].unique()) == REFERENCE_SIZE


@pytest.mark.parametrize("dim", [1, 3])
def test_shrunk_means_are_nearer_to_the_truth(dim):
    random = torch.Generator().manual_seed(1)
    own_error = shrunk_error = 0.0
    for seed in range(60):
        means = torch.randn(12, generator=random).tolist()
        values, index = drawn([3] * 11 + [200], means, std=3.0, seed=seed, dim=dim)
        fitted = fit_statistics(values, index, 12)
        for k in range(11):
            own_error += float(((values[index == k].mean(dim=0) - means[k]) ** 2).mean())
            shrunk_error += float(((fitted.mean[k] - means[k]) ** 2).mean())
    assert shrunk_error < 0.6 * own_error


def test_moas_that_differ_widely_are_hardly_shrunk():
    values, index = drawn([5, 5, 200], [-100.0, 0.0, 100.0])
    fitted = fit_statistics(values, index, 3)
    torch.testing.assert_close(fitted.mean[0], values[index == 0].mean(dim=0), rtol=0, atol=0.02)


def test_moas_that_do_not_differ_are_one():
    # One image each of two MoAs, both at the same place between the images of a third.
    values, index = torch.tensor([[1.0], [3.0], [2.0], [2.0]]), torch.tensor([0, 0, 1, 2])
    fitted = fit_statistics(values, index, 3)
    torch.testing.assert_close(fitted.mean, torch.full((3, 1), 2.0))
    assert (fitted.std > 0.5).all()


def test_few_images_have_a_spread_that_is_not_taken_from_them_alone():
    values, index = drawn([2, 300], [0.0, 0.0])
    values[:2] = 0.5  # two images that happen to agree
    fitted = fit_statistics(values, index, 2)
    assert 0.8 < float(fitted.std[0, 0]) < 1.1
    assert float(fitted.reference[0].std()) == pytest.approx(1, abs=0.15)


def test_images_with_nothing_to_measure_are_left_out():
    values, index = drawn([40, 40], [0.0, 3.0], dim=2)
    values[:5, 1] = torch.nan
    fitted = fit_statistics(values, index, 2)
    torch.testing.assert_close(fitted.mean[0], values[5:40].mean(dim=0))
    assert fitted.count.tolist() == [35, 40]


def test_a_statistic_that_never_varies_has_a_spread_all_the_same():
    values, index = torch.ones(80, 1), torch.arange(2).repeat_interleave(40)
    assert fit_statistics(values, index, 2).std.min() == pytest.approx(MINIMUM_STD)


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_images_of_a_moa_there_is_nothing_to_fit(count):
    with pytest.raises(ValueError, match="no MoA has two images"):
        fit_statistics(torch.ones(count, 1), torch.zeros(count, dtype=torch.long), 2)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 45), min_size=1, max_size=5).filter(lambda counts: max(counts) >= 2),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
)
def test_whatever_the_counts_all_numbers_are_finite_and_spreads_positive(counts, scale):
    values, index = drawn(counts, [scale * k for k in range(len(counts))], std=scale)
    fitted = fit_statistics(values, index, len(counts))
    known = torch.tensor(counts) > 0
    for tensor in (fitted.mean[known], fitted.std, fitted.reference):
        assert tensor.isfinite().all()
    assert (fitted.std > 0).all()
    assert fitted.count.tolist() == counts


def test_separability_is_the_share_of_variance_between_moas():
    values, index = drawn([2000] * 4, [0.0, 0.0, 2.0, 2.0], dim=1)  # between: 1, within: 1
    fitted = fit_statistics(torch.cat([values, torch.randn(8000, 1)], dim=1), index, 5)
    between, none = separability(fitted).tolist()
    assert between == pytest.approx(0.5, abs=0.03)
    assert none == pytest.approx(0, abs=0.01)
