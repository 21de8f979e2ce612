"""The path, its loss and the pairs on it, for samples of any rank."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellfluxrl import CellFluxFlowMatchScheduler
from cellfluxrl.data.pairs import PairBatch, vary_brightness
from cellfluxrl.flow.batches import draw_flow_batch
from cellfluxrl.flow.noise import sample_source_noise
from cellfluxrl.flow.paths import PathSample, draw_times, flow_matching_loss, per_sample

ranks = st.lists(st.integers(1, 4), min_size=1, max_size=3)


def samples_of(shape, count=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, count, *shape, generator=generator)
    return source, target, torch.rand(count, generator=generator)


@given(shape=ranks, seed=st.integers(0, 100))
def test_the_path_goes_from_source_to_target_at_a_constant_velocity(shape, seed):
    source, target, time = samples_of(shape, seed=seed)
    path = PathSample(source, target, time)
    assert path.x_t.shape == source.shape
    for i, t in enumerate(time.tolist()):
        torch.testing.assert_close(path.x_t[i], (1 - t) * source[i] + t * target[i])
    torch.testing.assert_close(path.x_t + per_sample(1 - time, source) * path.velocity, target)
    assert torch.equal(PathSample(source, target, torch.zeros(5)).x_t, source)
    assert torch.equal(PathSample(source, target, torch.tensor(1.0)).x_t, target)


@given(shape=ranks)
def test_the_loss_is_the_mean_over_each_sample(shape):
    source, target, time = samples_of(shape)
    path = PathSample(source, target, time)
    error = per_sample(torch.arange(5.0), source).expand_as(source)
    torch.testing.assert_close(flow_matching_loss(path.velocity + error, path), torch.arange(5.0) ** 2)
    remaining = (1 - time).clamp(min=0.1)
    found = flow_matching_loss(path.velocity + error, path, "target")
    exact = time < 0.9  # nearer to the end the velocity of the path would lead too far
    torch.testing.assert_close(found[exact], (remaining * torch.arange(5.0))[exact] ** 2, rtol=1e-4, atol=1e-5)


def test_training_times_have_the_mean_of_cellflux():
    times = draw_times(200_000, torch.Generator().manual_seed(0))
    assert 0 < times.min() < times.max() < 1
    assert float(times.mean()) == pytest.approx(0.72, abs=0.005)
    assert float(times.logit().std()) == pytest.approx(1.2, abs=0.01)


# --- what is pretrained on ---


def pairs_of(*shape):
    source, target, _ = samples_of(shape, count=32)
    return PairBatch(source, target, torch.arange(32))


def test_a_batch_of_vectors_is_points_on_the_paths_of_each(generators):
    pairs = pairs_of(50)
    noise = CellFluxFlowMatchScheduler(source_noise_scale=0.5).sample_source_noise
    batch = draw_flow_batch(pairs, torch.zeros(32, 4), noise, generators(*range(32)), source_noise_probability=0.5)
    assert batch.path.x_t.shape == batch.path.velocity.shape == (32, 50)
    added = batch.path.x_0 - pairs.control
    noised = added.abs().amax(dim=1) > 0
    assert 8 < noised.sum() < 24
    assert float(added[noised].std()) == pytest.approx(0.5, rel=0.1)
    torch.testing.assert_close(torch.lerp(batch.path.x_0, pairs.treated, batch.path.t[:, None]), batch.path.x_t)


def test_a_pair_does_not_depend_on_its_batch(generators):
    pairs, draw = pairs_of(7), CellFluxFlowMatchScheduler().sample_source_noise
    whole = draw_flow_batch(pairs, torch.zeros(32, 4), draw, generators(*range(32)), condition_dropout=0.5)
    row = PairBatch(*(column[3:4] for column in vars(pairs).values()))
    alone = draw_flow_batch(row, torch.zeros(1, 4), draw, generators(3), condition_dropout=0.5)
    assert torch.equal(alone.path.x_t, whole.path.x_t[3:4])
    assert alone.condition_mask == whole.condition_mask[3:4]


def test_only_images_have_a_brightness(generators):
    vectors = torch.randn(32, 50)
    assert vary_brightness(vectors, 0.0, generators(0)) is vectors
    with pytest.raises(ValueError, match=r"control_gain.*images \(N, C, H, W\), got shape \(32, 50\)"):
        vary_brightness(vectors, 0.2, generators(*range(32)))


# --- noise ---


@given(shape=ranks, scale=st.floats(0, 2))
def test_white_noise_has_any_rank(shape, scale):
    scheduler = CellFluxFlowMatchScheduler(source_noise_scale=scale)
    noise = scheduler.sample_source_noise((400, *shape), torch.Generator().manual_seed(1))
    assert noise.shape == (400, *shape)
    assert float(noise.std()) == pytest.approx(scale, rel=5 / math.sqrt(2 * noise.numel()))


@pytest.mark.parametrize("shape", [(8, 50), (8, 3, 50), (8,)])
def test_fine_noise_is_for_images(shape):
    scheduler = CellFluxFlowMatchScheduler(source_noise="band_limited")
    with pytest.raises(ValueError, match=r"band_limited noise is for images \(N, C, H, W\), got samples of shape"):
        scheduler.sample_source_noise(shape)


def test_noise_follows_the_generator(generator):
    state = generator.get_state()
    first = sample_source_noise((4, 5), generator=generator)
    generator.set_state(state)
    assert torch.equal(first, torch.randn(4, 5, generator=generator))
