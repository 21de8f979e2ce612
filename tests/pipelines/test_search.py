"""Searches on a flow whose target distribution is known: from N(0, 1) to N(2, 1), in every dimension."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.pipelines.search import rotate_noise, search_noise, split_grid, steer, systematic_resample

MEAN, DIMENSIONS, STEPS = 2.0, 4, 10
GRID = torch.linspace(0, 1, STEPS + 1)


class ToyFlow:
    """The exact flow of x_t = (1 - t) x_0 + t x_1 with x_0 ~ N(0, 1) and x_1 ~ N(MEAN, 1), and what it has cost."""

    def __init__(self):
        self.evaluations = 0

    def advance(self, sample, part):
        for start, end in pairwise(part.tolist()):
            now, then = ((1 - time) ** 2 + time**2 for time in (start, end))
            target = MEAN + start / now * (sample - start * MEAN)  # the mean of x_1 given x_t
            sample = end * MEAN + (then / now) ** 0.5 * (sample - start * MEAN)
            self.evaluations += len(sample)
        return sample, target


def first_coordinate(samples):
    return samples[:, 0]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steered(controls=300, particles=8, flow=None, score=first_coordinate, seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(controls * particles, DIMENSIONS, generator=generator)
    return steer(
        source,
        GRID,
        (flow or ToyFlow()).advance,
        score,
        lambda candidates: torch.randn(len(candidates), DIMENSIONS, generator=generator),
        particles,
        generator=generator,
        **arguments,
    )


def likeness(samples):
    """Negative deviation from one sample, in all dimensions: the form of the paper's rewards."""
    return -(samples - MEAN - 0.5).abs().mean(dim=1)


def searched(controls=300, candidates=8, flow=None, score=likeness, seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return search_noise(
        lambda noise: (flow or ToyFlow()).advance(noise, GRID)[0],
        score,
        lambda start, end: torch.randn(controls * (end - start), DIMENSIONS, generator=generator),
        candidates,
        **arguments,
    )


def independent(controls=300, candidates=8, flow=None, seed=0):
    return (flow or ToyFlow()).advance(normal(controls * candidates, DIMENSIONS, seed=seed), GRID)[0]


def best_of(scores, candidates):
    return float(scores.view(-1, candidates).max(dim=1).values.mean())


# --- at equal evaluations ---


@pytest.mark.parametrize("candidates", [4, 8, 16])
@pytest.mark.parametrize("score", [first_coordinate, likeness])
def test_steering_reaches_higher_rewards_than_as_many_independent_samples(candidates, score):
    flows = ToyFlow(), ToyFlow()
    ours = score(steered(300, candidates, flows[0], score))
    theirs = score(independent(300, candidates, flows[1]))
    assert flows[0].evaluations == flows[1].evaluations == 300 * candidates * STEPS
    assert best_of(ours, candidates) > best_of(theirs, candidates) + 0.05


@pytest.mark.parametrize("candidates", [8, 16, 32])
def test_a_noise_search_reaches_higher_rewards_than_as_many_independent_samples(candidates):
    flows = ToyFlow(), ToyFlow()
    ours = likeness(searched(300, candidates, flows[0]))
    theirs = likeness(independent(300, candidates, flows[1]))
    assert flows[0].evaluations == flows[1].evaluations == 300 * candidates * STEPS
    assert best_of(ours, candidates) > best_of(theirs, candidates)


# --- steering ---


def test_with_strength_0_steering_changes_nothing():
    for seed in range(3):
        flow = ToyFlow()
        assert torch.equal(steered(flow=flow, strength=0.0, seed=seed), independent(seed=seed))


def test_steering_moves_all_particles_towards_the_reward_and_leaves_the_rest():
    means = []
    for strength in (0.0, 0.5, 1.0, 2.0):
        samples = steered(100, 64, strength=strength)
        means.append(float(samples[:, 0].mean()))
        others = samples[:, 1:]
        assert float(others.mean()) == pytest.approx(MEAN, abs=0.05)
        assert 0.85 < float(others.std()) < 1.05  # what copies lack of the spread: see the docstring
    assert means == sorted(means)
    # exp(r) N(2, 1) is N(3, 1): the particles get half of the way there, and not beyond.
    assert MEAN + 0.5 < means[2] < MEAN + 1.05


def test_a_copy_is_drawn_anew_and_the_first_is_kept():
    """One particle is far better than the others: all but one of its copies differ from it."""
    samples = steered(1, 8, strength=100.0, resample_times=[0.5])
    assert len(samples.unique(dim=0)) == 8
    # Which particle leads at 0.5 leads in the end, as the flow moves all alike.
    leader = independent(1, 8)[:, 0].max()
    assert float((samples[:, 0] - leader).abs().min()) < 1e-5


def test_controls_do_not_share_particles():
    """The reward is that of the control, 0 or 1, so no particle is better than the others of its control."""
    score = lambda samples: torch.arange(2.0).repeat_interleave(8)  # noqa: E731
    assert torch.equal(steered(2, 8, score=score), independent(2, 8))


def test_a_list_of_generators_makes_controls_independent_of_each_other():
    def run(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(candidates):
            return torch.stack([torch.randn(DIMENSIONS, generator=generators[i]) for i in candidates.tolist()])

        source = draw(torch.arange(len(seeds)))
        return steer(source, GRID, ToyFlow().advance, first_coordinate, draw, 4, generator=generators)

    assert torch.allclose(run(range(12))[4:8], run(range(4, 8)), atol=1e-6)


@pytest.mark.parametrize("search", [steered, searched])
def test_the_same_generator_gives_the_same_samples(search):
    assert torch.equal(search(10, 8, seed=1), search(10, 8, seed=1))
    assert not torch.equal(search(10, 8, seed=1), search(10, 8, seed=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strength must be a number of at least 0, got -1.0"),
        ({"strength": math.nan}, "strength must be a number of at least 0, got nan"),
        ({"resample_times": [0.5, 1.0]}, r"times between 0 and 1, got \(0.5, 1.0\)"),
        ({"resample_times": []}, r"times between 0 and 1, got \(\)"),
    ],
)
def test_steering_refuses_what_it_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        steered(**arguments)


# --- resampling ---


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=12), st.floats(0, 0.999))
def test_every_particle_is_drawn_as_often_as_its_weight_says(weights, offset):
    weights = torch.tensor([weights], dtype=torch.float64)
    weights /= weights.sum()
    drawn = systematic_resample(weights, torch.tensor([offset]))
    counts = torch.bincount(drawn[0], minlength=weights.shape[1])
    assert (drawn.diff() >= 0).all()
    assert int(counts.sum()) == weights.shape[1]
    assert ((counts - weights[0] * weights.shape[1]).abs() < 1 + 1e-5).all()


@given(st.integers(1, 300), st.floats(0, 0.9999))
def test_equal_weights_draw_every_particle_once(count, offset):
    weights = torch.full((1, count), 1 / count)
    assert systematic_resample(weights, torch.tensor([offset])).tolist() == [list(range(count))]


@given(st.integers(2, 20), st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5))
def test_the_parts_of_a_grid_are_the_grid(steps, times):
    grid = torch.linspace(0, 1, steps + 1)
    parts = split_grid(grid, times)
    assert all(len(part) >= 2 for part in parts)
    assert torch.cat([parts[0][:1], *(part[1:] for part in parts)]).tolist() == grid.tolist()
    assert all(a[-1] == b[0] for a, b in pairwise(parts))


def test_one_step_cannot_be_steered():
    with pytest.raises(ValueError, match="steering needs at least two steps to stop in between, got 1"):
        split_grid(torch.tensor([0.0, 1.0]), [0.5])


# --- noise search ---


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 24), st.integers(1, 6), st.floats(0.05, math.pi / 2), st.integers(0, 99))
def test_the_best_is_never_worse_than_the_first(candidates, rounds, angle, seed):
    samples = searched(5, candidates, seed=seed, num_rounds=rounds, angle=angle)
    values = likeness(samples).view(5, candidates)
    assert samples.shape == (5 * candidates, DIMENSIONS)
    assert (values.max(dim=1).values >= values[:, 0]).all()


def test_one_round_is_independent_samples():
    assert torch.equal(searched(num_rounds=1), independent())
    assert torch.equal(searched(candidates=7), independent(candidates=7))  # too few for a second round


def test_neighbours_keep_the_distribution_of_the_noise():
    noise, fresh = normal(20000, 2), normal(20000, 2, seed=1)
    covariance = torch.tensor([[2.0, 0.6], [0.6, 0.5]])
    root = torch.linalg.cholesky(covariance)
    for angle in (0.1, 0.6, 1.5):
        turned = rotate_noise(noise @ root.T, fresh @ root.T, angle)
        torch.testing.assert_close(turned.T.cov(), covariance, rtol=0.05, atol=0.02)
        assert float(turned.mean(dim=0).abs().max()) < 0.05
        correlation = torch.stack([turned[:, 0], (noise @ root.T)[:, 0]]).corrcoef()[0, 1]
        assert float(correlation) == pytest.approx(math.cos(angle), abs=0.02)


def test_a_reward_that_says_nothing_leaves_the_distribution_of_the_samples():
    generator = torch.Generator().manual_seed(5)
    samples = searched(2000, 8, score=lambda samples: torch.rand(len(samples), generator=generator))
    last = samples.view(2000, 8, DIMENSIONS)[:, -1]
    assert float(last.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(last.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rounds": 0}, "num_rounds must be at least 1, got 0"),
        ({"angle": 0.0}, r"angle must be in \(0, pi / 2\], got 0.0"),
        ({"angle": 2.0}, r"angle must be in \(0, pi / 2\], got 2.0"),
    ],
)
def test_noise_search_refuses_what_it_cannot_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        searched(**arguments)
